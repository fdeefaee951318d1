//! The user namespace of the process (`user_namespaces(7)`).

use std::fs::read_to_string;

use crate::ids::{Gid, Id, Uid};

/// Kinds of id, each with a map of its own in a user namespace.
pub(crate) trait MappedId: Id {
    const MAP: &'static str;
}

impl MappedId for Gid {
    const MAP: &'static str = "/proc/self/gid_map";
}

impl MappedId for Uid {
    const MAP: &'static str = "/proc/self/uid_map";
}

/// Whether one of these ids, which were read, might be another one that has no mapping.
///
/// Only a map that was read and does not cover all ids counts. Without `/proc`, the kernel refuses
/// an id that it cannot map.
pub(crate) fn may_hide_unmapped<I: MappedId>(mut ids: impl Iterator<Item = I>) -> bool {
    ids.any(|id| id == I::OVERFLOW) && read_to_string(I::MAP).is_ok_and(|map| !covers_all_ids(&map))
}

/// Whether these ids have a mapping. If the map cannot be read, the kernel will decide.
pub(crate) fn are_mapped<I: MappedId>(mut ids: impl Iterator<Item = I>) -> bool {
    read_to_string(I::MAP).map_or(true, |map| ids.all(|id| map_contains(&map, id.raw())))
}

/// Whether `setgroups` is denied to everybody in this namespace.
pub(crate) fn setgroups_is_denied() -> bool {
    read_to_string("/proc/self/setgroups").is_ok_and(|answer| answer.trim() == "deny")
}

/// The first id inside the namespace and the length of each range.
fn ranges(map: &str) -> Option<Vec<(u64, u64)>> {
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.nth(1)??))
    };
    map.lines().map(range).collect()
}

fn covers_all_ids(map: &str) -> bool {
    // The kernel allows no two ranges to overlap, and none to hold id -1.
    ranges(map).is_some_and(|ranges| {
        ranges.iter().map(|(_, length)| length).sum::<u64>() == u64::from(u32::MAX)
    })
}

fn map_contains(map: &str, id: u32) -> bool {
    ranges(map).is_none_or(|ranges| {
        ranges
            .iter()
            .any(|&(first, length)| (first..first + length).contains(&u64::from(id)))
    })
}

#[cfg(test)]
mod tests {
    use super::{covers_all_ids, map_contains};

    #[test]
    fn an_id_is_mapped_if_a_range_contains_it() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        let expected = [
            (0, true),
            (1, true),
            (65536, true),
            (65537, false),
            (u32::MAX - 1, false),
        ];
        for (id, mapped) in expected {
            assert_eq!(map_contains(map, id), mapped, "{id}");
        }
        assert!(!map_contains("", 0));
    }

    #[test]
    fn only_a_map_of_every_id_covers_all() {
        assert!(covers_all_ids("         0          0 4294967295\n"));
        assert!(covers_all_ids("0 100000 65536\n65536 0 4294901759\n"));
        for part in [
            "",
            "0 0 1\n",
            "0 0 4294967294\n",
            "0 100000 65536\n",
            "0 0\n",
            "0 0 all\n",
        ] {
            assert!(!covers_all_ids(part), "{part:?}");
        }
    }
}
