//! The files `status` and `stat` of a thread (`proc_pid_status(5)`, `proc_pid_stat(5)`).
//!
//! Each check by a process guard might read `status` for every thread, and parsing all fields would
//! take longer than the kernel takes to write them. Only the fields that the crate uses are parsed.

use std::io;
use std::str::{FromStr, SplitAsciiWhitespace};

use rustix::thread::CapabilitySet;

use crate::ids::{Gid, GroupIds, Ids, Uid, UserIds};

/// The fields of `status` that matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) thread_id: u32,
    pub(super) has_ended: bool,
    pub(super) user_ids: UserIds,
    pub(super) group_ids: GroupIds,
    /// Sorted, as the kernel keeps them.
    pub(super) groups: Vec<Gid>,
    pub(super) inheritable: CapabilitySet,
    pub(super) permitted: CapabilitySet,
    pub(super) effective: CapabilitySet,
    /// All capabilities if the kernel does not report this field.
    pub(super) bounding: CapabilitySet,
    pub(super) ambient: CapabilitySet,
    pub(super) no_new_privs: bool,
}

impl FromStr for Status {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let (mut thread_id, mut has_ended) = (None, None);
        let (mut user_ids, mut group_ids, mut groups) = (None, None, None);
        let (mut inheritable, mut permitted, mut effective) = (None, None, None);
        let (mut bounding, mut ambient, mut no_new_privs) = (None, None, None);
        // The kernel escapes a newline in the name, which is in the first line.
        for line in text.lines().skip(1) {
            let Some((field, value)) = line.split_once(':') else {
                continue;
            };
            let mut words = value.split_ascii_whitespace();
            match field {
                "State" => has_ended = words.next().map(|state| ["Z", "X"].contains(&state)),
                "Pid" => thread_id = Some(next(&mut words)?),
                "Uid" => user_ids = Some(four(&mut words)?.map(Uid::from_raw)),
                "Gid" => group_ids = Some(four(&mut words)?.map(Gid::from_raw)),
                "Groups" => groups = Some(words.map(number).collect::<io::Result<_>>()?),
                "CapInh" => inheritable = Some(set(&mut words)?),
                "CapPrm" => permitted = Some(set(&mut words)?),
                "CapEff" => effective = Some(set(&mut words)?),
                "CapBnd" => bounding = Some(set(&mut words)?),
                "CapAmb" => ambient = Some(set(&mut words)?),
                "NoNewPrivs" => {
                    no_new_privs = Some(next::<u32>(&mut words)? == 1);
                    // No field after this one matters.
                    break;
                }
                _ => {}
            }
        }
        Ok(Status {
            thread_id: thread_id.ok_or_else(malformed)?,
            has_ended: has_ended.ok_or_else(malformed)?,
            user_ids: user_ids.ok_or_else(malformed)?,
            group_ids: group_ids.ok_or_else(malformed)?,
            groups: groups.ok_or_else(malformed)?,
            inheritable: inheritable.ok_or_else(malformed)?,
            permitted: permitted.ok_or_else(malformed)?,
            effective: effective.ok_or_else(malformed)?,
            // CapBnd, CapAmb and NoNewPrivs exist since Linux 2.6.26, 4.3 and 4.10.
            bounding: bounding.unwrap_or(CapabilitySet::from_bits_retain(u64::MAX)),
            ambient: ambient.unwrap_or(CapabilitySet::empty()),
            no_new_privs: no_new_privs.unwrap_or(false),
        })
    }
}

/// The fields of `stat` that matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) thread_id: u32,
    pub(super) has_ended: bool,
    /// PF_* (include/linux/sched.h).
    pub(super) flags: u32,
}

impl FromStr for Stat {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        // The name may hold any characters, and is followed by numbers only.
        let (id, rest) = text.split_once(' ').ok_or_else(malformed)?;
        let (_, rest) = rest.rsplit_once(')').ok_or_else(malformed)?;
        let mut words = rest.split_ascii_whitespace();
        let state = words.next().ok_or_else(malformed)?;
        Ok(Stat {
            thread_id: number(id)?,
            has_ended: ["Z", "X"].contains(&state),
            flags: words.nth(5).map(number).ok_or_else(malformed)??,
        })
    }
}

fn number<T: FromStr<Err: Into<Box<dyn std::error::Error + Send + Sync>>>>(
    word: &str,
) -> io::Result<T> {
    word.parse().map_err(io::Error::other)
}

fn next<T: FromStr<Err: Into<Box<dyn std::error::Error + Send + Sync>>>>(
    words: &mut SplitAsciiWhitespace<'_>,
) -> io::Result<T> {
    words.next().map(number).ok_or_else(malformed)?
}

fn four(words: &mut SplitAsciiWhitespace<'_>) -> io::Result<Ids<u32>> {
    Ok(Ids {
        real: next(words)?,
        effective: next(words)?,
        saved: next(words)?,
        filesystem: next(words)?,
    })
}

fn set(words: &mut SplitAsciiWhitespace<'_>) -> io::Result<CapabilitySet> {
    let word = words.next().ok_or_else(malformed)?;
    let bits = u64::from_str_radix(word, 16).map_err(io::Error::other)?;
    Ok(CapabilitySet::from_bits_retain(bits))
}

fn malformed() -> io::Error {
    io::Error::other("/proc shows a thread in an unknown format")
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tUid:\\n\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t7\nPid:\t8\n\
        Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t4294967294\nFDSize:\t64\nGroups:\t4 1005 \n\
        CapInh:\t0000000000000001\nCapPrm:\t0000000000000003\nCapEff:\t0000000000000002\n\
        CapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000001\nNoNewPrivs:\t1\nSeccomp:\t0\n";

    #[test]
    fn reads_each_field() {
        let set = CapabilitySet::from_bits_retain;
        let status: Status = STATUS.parse().unwrap();
        assert_eq!((status.thread_id, status.has_ended), (8, false));
        assert_eq!(status.user_ids.to_array(), [1, 2, 3, 4].map(Uid::from));
        assert_eq!(
            status.group_ids.to_array(),
            [5, 6, 7, 4294967294].map(Gid::from)
        );
        assert_eq!(status.groups, [4, 1005].map(Gid::from));
        assert_eq!((status.inheritable, status.permitted), (set(1), set(3)));
        assert_eq!((status.effective, status.ambient), (set(2), set(1)));
        assert_eq!(status.bounding, set(0x1ff_ffff_ffff));
        assert!(status.no_new_privs);
        for (state, has_ended) in [
            ("Z (zombie)", true),
            ("X (dead)", true),
            ("R (running)", false),
        ] {
            let text = STATUS.replace("S (sleeping)", state);
            assert_eq!(text.parse::<Status>().unwrap().has_ended, has_ended);
        }
    }

    #[test]
    fn old_kernels_do_not_show_everything() {
        let lines = STATUS.lines().filter(|line| {
            !["CapBnd", "CapAmb", "NoNewPrivs"]
                .iter()
                .any(|field| line.starts_with(field))
        });
        let text: String = lines.map(|line| format!("{line}\n")).collect();
        let status: Status = text.parse().unwrap();
        assert_eq!(status.bounding.bits(), u64::MAX);
        assert!(status.ambient.is_empty() && !status.no_new_privs);
    }

    #[test]
    fn a_missing_or_malformed_field_is_an_error() {
        for field in [
            "State", "Pid", "Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff",
        ] {
            let text = STATUS.replace(&format!("\n{field}:"), "\nOther:");
            assert!(text.parse::<Status>().is_err(), "{field}");
        }
        for (from, to) in [
            ("\t1\t2\t3\t4", "\t1\t2\t3"),
            ("4 1005", "4 x"),
            ("Pid:\t8", "Pid:\t-8"),
            ("CapEff:\t0", "CapEff:\tg"),
        ] {
            assert!(STATUS.replace(from, to).parse::<Status>().is_err(), "{to}");
        }
    }

    #[test]
    fn a_name_does_not_mislead() {
        let stat: Stat = "8 (a) Z 1 1 1 1 1 4 (b) S 1 7 7 0 -1 4194368 112 0\n"
            .parse()
            .unwrap();
        assert_eq!(
            (stat.thread_id, stat.has_ended, stat.flags),
            (8, false, 4194368)
        );
        assert!("8 (a) X 1 7 7 0 -1 4 0".parse::<Stat>().unwrap().has_ended);
        for text in [
            "",
            "8 (a)",
            "8 (a) S 1 7 7 0 -1",
            "8 (a) S 1 7 7 0 -1 x",
            "x (a) S 1 7 7 0 -1 4",
        ] {
            assert!(text.parse::<Stat>().is_err(), "{text}");
        }
    }
}
