//! The same few checks wherever a process may find itself: what the kernel's answers to raw calls allow is served and exact, all else
//! is refused with nothing changed, and a permanent drop holds or changes nothing.

use crate::cases;
use crate::common::attack::ways_back;
use crate::common::guard::{self, SCOPES};
use crate::common::kernel::{self, CAP_SETGID, Identity, Namespace, SUBORDINATE};
use crate::common::sibling::Sibling;
use crate::common::{self, Case};
use privilege_guard::{GroupChange, PermanentDrop};

pub const CASES: &[Case] = cases![
    Nothing: as_the_run_is,
    Setgid: ordinary_user,
    Root: user_namespace_with_subordinate_ids,
    Root: user_namespace_without_all_groups,
    Nothing + user_namespace: user_namespace_of_one_id_without_setgroups,
    Nothing: no_new_privs,
    Setgid: bounding_set_without_setgid,
    Setgid: more_than_32_groups,
    Setgid: as_many_groups_as_there_may_be,
    Setgid: three_different_ids,
    Setgid: three_different_ids_of_an_ordinary_user,
    Root: group_65534_is_restored_with_descriptors_used_up,
    Root: group_65534_is_restored_after_a_chroot,
];

/// A group that no process here has, and another user.
const OTHER_GROUP: u32 = 1004;
const OTHER: Option<u32> = Some(1235);

/// Every drop, with every capability, from user and group 0.
const ANYTHING: [(u32, Option<u32>); 4] = [
    (0, None),
    (0, OTHER),
    (OTHER_GROUP, None),
    (OTHER_GROUP, OTHER),
];

fn as_the_run_is() {
    check();
}

fn ordinary_user() {
    kernel::become_user(1234, 1234);
    check().drops(&[(1234, None)]);
}

fn user_namespace_with_subordinate_ids() {
    kernel::passes_in(SUBORDINATE, || check().drops(&ANYTHING));
}

fn user_namespace_without_all_groups() {
    kernel::passes_in(
        Namespace {
            groups: &[100_004, 5],
            ..SUBORDINATE
        },
        || check().drops(&ANYTHING),
    );
}

fn user_namespace_of_one_id_without_setgroups() {
    // CAP_SETGID is there, but nothing takes the supplementary groups away.
    if !kernel::passes_in_own_namespace(|| check().drops(&[])) {
        common::ignore("needs user namespaces, which this system does not allow");
    }
}

fn no_new_privs() {
    kernel::set_no_new_privs();
    check();
}

fn bounding_set_without_setgid() {
    kernel::start_from([0; 4], &[]);
    assert_eq!(
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_SETGID.trailing_zeros(), 0, 0, 0) },
        0
    );
    kernel::give_up_capabilities(CAP_SETGID);
    check().drops(&[(0, None), (0, OTHER)]);
}

fn more_than_32_groups() {
    kernel::start_from([0; 4], &(2000..2040).collect::<Vec<_>>());
    check().drops(&ANYTHING);
}

fn as_many_groups_as_there_may_be() {
    // The kernel takes a group twice, and a namespace may have no 65,536 of them.
    kernel::start_from(
        [0; 4],
        &(0..65_536).map(|group| group % 5000).collect::<Vec<_>>(),
    );
    check().drops(&ANYTHING);
}

/// The filesystem id is not the effective one.
const THREE_IDS: [u32; 4] = [33, 7, 9, 9];

fn three_different_ids() {
    kernel::start_from(THREE_IDS, &[7]);
    let all = [33, 7, 9, OTHER_GROUP].map(|group| [(group, None), (group, OTHER)]);
    check().drops(all.as_flattened());
}

fn three_different_ids_of_an_ordinary_user() {
    kernel::start_from(THREE_IDS, &[7]);
    kernel::raw_setresuid(Some(1234), Some(1234), Some(1234)).expect("setresuid");
    check().drops(&[(33, None), (7, None), (9, None)]);
}

/// The permanent drops that held: to which group and user.
struct Held(Vec<(u32, Option<u32>)>);

impl Held {
    #[track_caller]
    fn drops(self, expected: &[(u32, Option<u32>)]) {
        assert_eq!(self.0, expected);
    }
}

fn check() -> Held {
    let before = kernel::identity();
    let mut groups = Vec::new();
    for group in [before.ids[0], before.ids[1], before.ids[2], OTHER_GROUP] {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    let (mut served, mut refused) = (0, 0);
    for wish in wishes(&groups, &before.groups) {
        let possible = wish.is_possible(&before);
        for scope in SCOPES {
            kernel::passes_in_child(|| match scope.assume(wish.change()) {
                Ok(guard) => {
                    assert!(possible, "{scope:?}, {wish:?} served");
                    wish.assert_inside(&before);
                    drop(guard);
                    assert_eq!(kernel::identity(), before, "{scope:?}, {wish:?}");
                }
                Err(error) => {
                    assert!(!possible, "{scope:?}, {wish:?}: {error}");
                    assert_eq!(kernel::identity(), before, "{scope:?}, {wish:?}: {error}");
                }
            });
            *(if possible { &mut served } else { &mut refused }) += 1;
        }
    }
    assert!(served > 0);

    let asked = groups
        .iter()
        .flat_map(|&group| [(group, None), (group, OTHER)]);
    let (held, kept): (Vec<_>, Vec<_>) = asked.partition(|&(group, user)| drop_holds(group, user));
    println!(
        "= guards: {served} served, {refused} refused; permanent drops: {} hold, {} refused; 0 wrong",
        held.len(),
        kept.len()
    );
    Held(held)
}

/// What a guard is asked for; `None` is left alone.
#[derive(Clone, Debug, Default)]
struct Wish {
    real: Option<u32>,
    effective: Option<u32>,
    groups: Option<Vec<u32>>,
}

fn wishes(groups: &[u32], supplementary: &[u32]) -> Vec<Wish> {
    let nothing = Wish::default;
    // Which no namespace maps but the first.
    let groups: Vec<u32> = groups.iter().copied().chain([u32::MAX - 1]).collect();
    let mut wishes = vec![nothing()];
    for &group in &groups {
        wishes.push(Wish {
            real: Some(group),
            ..nothing()
        });
        wishes.push(Wish {
            effective: Some(group),
            ..nothing()
        });
        wishes.push(Wish {
            real: Some(group),
            effective: Some(group),
            ..nothing()
        });
    }
    wishes.push(Wish {
        real: Some(groups[0]),
        effective: groups.get(1).copied(),
        ..nothing()
    });
    let last = groups.last().copied();
    wishes.push(Wish {
        real: last,
        effective: last,
        groups: Some(vec![]),
    });
    for list in [vec![], supplementary.to_vec(), vec![OTHER_GROUP]] {
        wishes.push(Wish {
            groups: Some(list.clone()),
            ..nothing()
        });
        wishes.push(Wish {
            real: Some(groups[0]),
            effective: Some(groups[0]),
            groups: Some(list),
        });
    }
    wishes
}

impl Wish {
    fn change(&self) -> GroupChange {
        guard::change(self.real, self.effective, self.groups.as_deref())
    }

    #[track_caller]
    fn assert_inside(&self, before: &Identity) {
        assert!(
            self.is_inside(before),
            "{self:?} from {before:?}: {:?}",
            kernel::identity()
        );
    }

    fn is_inside(&self, before: &Identity) -> bool {
        let now = kernel::identity();
        let [real, effective, saved, filesystem] = before.ids;
        let names_ids = self.real.is_some() || self.effective.is_some();
        let [wanted_real, wanted_effective] = [
            self.real.unwrap_or(real),
            self.effective.unwrap_or(effective),
        ];
        // The kernel sorts by what the groups are outside the namespace.
        let sorted = |mut groups: Vec<u32>| {
            groups.sort_unstable();
            groups
        };
        now.ids[..2] == [wanted_real, wanted_effective]
            && now.ids[3]
                == if names_ids {
                    wanted_effective
                } else {
                    filesystem
                }
            && (names_ids || now.ids[2] == saved)
            && sorted(now.groups) == sorted(self.groups.clone().unwrap_or(before.groups.clone()))
    }

    /// Whether raw calls lead there and back: the way in with each saved id there may be, the way back with what the kernel takes.
    fn is_possible(&self, before: &Identity) -> bool {
        let [real, effective, saved, filesystem] = before.ids;
        [None, Some(real), Some(effective), Some(saved)]
            .into_iter()
            .any(|parked| {
                let there_and_back = || {
                    // A group without a mapping, which shows as 65534, is not known to be the one that is asked for.
                    let is_known = kernel::maps_all_ids() || !before.groups.contains(&65534);
                    let sets_groups = self
                        .groups
                        .as_ref()
                        .is_some_and(|groups| *groups != before.groups || !is_known);
                    if sets_groups {
                        kernel::raw_setgroups(self.groups.as_deref().unwrap_or_default())?;
                    }
                    let sets_ids = self.real.is_some() || self.effective.is_some();
                    if sets_ids {
                        kernel::raw_setresgid(
                            self.real,
                            Some(self.effective.unwrap_or(effective)),
                            parked,
                        )?;
                    }
                    let inside = self.is_inside(before);
                    if sets_ids {
                        kernel::raw_setresgid(Some(real), Some(effective), Some(saved))?;
                        kernel::raw_setfsgid(filesystem);
                    }
                    if sets_groups {
                        kernel::raw_setgroups(&before.groups)?;
                    }
                    Ok::<_, i32>(inside && kernel::identity() == *before)
                };
                kernel::in_child(|| i32::from(!there_and_back().unwrap_or(false))).success()
            })
    }
}

/// Whether the drop is made; then it holds against an attacker, and else nothing is changed.
fn drop_holds(group: u32, user: Option<u32>) -> bool {
    const REFUSED: i32 = 1;
    let status = kernel::in_child(|| {
        let before = kernel::all_threads();
        let asked = PermanentDrop::to_group(group);
        let asked = user.into_iter().fold(asked, PermanentDrop::user);
        match asked.apply() {
            Ok(report) => {
                let now = &kernel::all_threads()[0];
                let groups = if report.supplementary_unchanged {
                    &before[0].identity.groups[..]
                } else {
                    &[]
                };
                assert_eq!(
                    now.identity,
                    Identity {
                        ids: [group; 4],
                        groups: groups.to_vec()
                    },
                    "{report}"
                );
                assert!(!now.privileges.hold(CAP_SETGID), "{report}");
                assert!(
                    user.is_none_or(|user| now.privileges.users == [user; 4]),
                    "{report}"
                );
                let old: Vec<u32> = before[0]
                    .identity
                    .ids
                    .into_iter()
                    .chain([0, 1005])
                    .filter(|&old| old != group)
                    .collect();
                assert_eq!(ways_back(&old), Vec::<String>::new(), "{report}");
                0
            }
            Err(error) => {
                assert_eq!(kernel::all_threads(), before, "{error}");
                REFUSED
            }
        }
    });
    match status.code() {
        Some(0) => true,
        Some(REFUSED) => false,
        _ => panic!("drop to group {group}, user {user:?}: {status}"),
    }
}

/// Guards over ids and groups that read as 65534, which is a group of its own here; what `inside` does is done under them.
fn over_group_65534(inside: impl Fn()) {
    const OVERFLOW: u32 = 65534;
    let starts = [
        ([OVERFLOW; 4], vec![7]),
        ([3, OVERFLOW, 4, OVERFLOW], vec![]),
        ([3; 4], vec![7, OVERFLOW]),
        ([OVERFLOW; 4], vec![OVERFLOW]),
    ];
    let changes = [
        GroupChange::both(OTHER_GROUP),
        GroupChange::both(OTHER_GROUP).no_supplementary(),
        GroupChange::new().supplementary([OTHER_GROUP]),
    ];
    let mut guards = 0;
    for (ids, groups) in &starts {
        for change in &changes {
            for scope in SCOPES {
                for (others, ends_by_drop) in [(0, true), (0, false), (2, true), (2, false)] {
                    kernel::passes_in_child(|| {
                        kernel::start_from(*ids, groups);
                        let _others: Vec<_> = (0..others).map(|_| Sibling::start()).collect();
                        let status = kernel::Watched::this_thread();
                        let before = status.identity();
                        let guard = scope.assume(change.clone()).unwrap();
                        inside();
                        match ends_by_drop {
                            true => drop(guard),
                            false => guard.restore().unwrap(),
                        }
                        assert_eq!(status.identity(), before);
                    });
                    guards += 1;
                }
            }
        }
    }
    println!("= {guards} guards over group 65534 restored");
}

fn group_65534_is_restored_with_descriptors_used_up() {
    over_group_65534(|| {
        let few = libc::rlimit {
            rlim_cur: 64,
            rlim_max: 64,
        };
        assert_eq!(
            // SAFETY: a valid pointer.
            unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const few) },
            0
        );
        while let Ok(file) = std::fs::File::open("/dev/null") {
            std::mem::forget(file);
        }
        assert!(std::fs::read("/proc/self/gid_map").is_err());
    });
}

fn group_65534_is_restored_after_a_chroot() {
    over_group_65534(|| {
        let empty = tempfile::tempdir().unwrap();
        std::os::unix::fs::chroot(empty.path()).unwrap();
        std::env::set_current_dir("/").unwrap();
        std::mem::forget(empty);
        assert!(std::fs::read("/proc/self/gid_map").is_err());
    });
}
