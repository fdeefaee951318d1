//! What the user namespace of the process allows (`user_namespaces(7)`).

use std::fs::read_to_string;

/// Whether an id that shows as 65534 may be another one, without a mapping: the map is not the whole range, or cannot be read.
pub(crate) fn hides_ids() -> bool {
    read_to_string("/proc/self/gid_map").map_or(true, |map| !is_whole(&map))
}

/// Whether `setgroups` is denied to everybody here.
pub(crate) fn denies_setgroups() -> bool {
    read_to_string("/proc/self/setgroups").is_ok_and(|answer| answer.trim() == "deny")
}

fn is_whole(gid_map: &str) -> bool {
    let lengths = gid_map.lines().map(|line| line.split_whitespace().nth(2)?.parse::<u64>().ok());
    // The kernel lets no two ranges overlap, and none holds (gid_t)-1.
    lengths.sum::<Option<u64>>() == Some(u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::is_whole;

    #[test]
    fn only_a_map_of_every_id_is_whole() {
        assert!(is_whole("         0          0 4294967295\n"));
        assert!(is_whole("0 100000 65536\n65536 0 4294901759\n"));
        for part in ["", "0 0 1\n", "0 0 4294967294\n", "0 100000 65536\n", "0 0\n", "0 0 all\n"] {
            assert!(!is_whole(part), "{part:?}");
        }
    }
}
