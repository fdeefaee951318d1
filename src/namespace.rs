//! What the user namespace of the process allows (`user_namespaces(7)`).

use std::fs::read_to_string;

use crate::ids::Gid;

/// Whether an id that shows as 65534 may be another one, without a mapping: the map is not the whole range, or cannot be read.
fn hides_ids() -> bool {
    read_to_string("/proc/self/gid_map").map_or(true, |map| !is_whole(&map))
}

/// Whether a call can name this id, which was read: not where it may be any id without a mapping in this user namespace.
pub(crate) fn nameable(gid: Gid) -> bool {
    gid != Gid::OVERFLOW || !hides_ids()
}

/// Whether `setgroups` is denied to everybody here.
pub(crate) fn denies_setgroups() -> bool {
    read_to_string("/proc/self/setgroups").is_ok_and(|answer| answer.trim() == "deny")
}

/// Whether these groups can be named here; where that cannot be found out, the kernel will say.
pub(crate) fn maps_groups(mut groups: impl Iterator<Item = Gid>) -> bool {
    read_to_string("/proc/self/gid_map").map_or(true, |map| groups.all(|gid| maps(&map, gid.as_raw())))
}

/// Whether this user can be named here; where that cannot be found out, the kernel will say.
pub(crate) fn maps_user(user: u32) -> bool {
    read_to_string("/proc/self/uid_map").map_or(true, |map| maps(&map, user))
}

/// First id and length of each range, as they are inside.
fn ranges(map: &str) -> Option<Vec<(u64, u64)>> {
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
        Some((numbers.next()??, numbers.nth(1)??))
    };
    map.lines().map(range).collect()
}

fn is_whole(gid_map: &str) -> bool {
    // The kernel lets no two ranges overlap, and none holds (gid_t)-1.
    ranges(gid_map).is_some_and(|ranges| ranges.iter().map(|(_, length)| length).sum::<u64>() == u64::from(u32::MAX))
}

fn maps(map: &str, id: u32) -> bool {
    ranges(map).is_none_or(|ranges| ranges.iter().any(|&(first, length)| (first..first + length).contains(&u64::from(id))))
}

#[cfg(test)]
mod tests {
    use super::{is_whole, maps};

    #[test]
    fn an_id_is_mapped_where_a_range_holds_it() {
        let map = "         0       1000          1\n         1     100000      65536\n";
        for (id, mapped) in [(0, true), (1, true), (65536, true), (65537, false), (u32::MAX - 1, false)] {
            assert_eq!(maps(map, id), mapped, "{id}");
        }
        assert!(!maps("", 0));
    }

    #[test]
    fn only_a_map_of_every_id_is_whole() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(is_whole("0 100000 65536\n65536 0 4294901759\n"));
        for part in ["", "0 0 1\n", "0 0 4294967294\n", "0 100000 65536\n", "0 0\n", "0 0 all\n"] {
            assert!(!is_whole(part), "{part:?}");
        }
    }
}
