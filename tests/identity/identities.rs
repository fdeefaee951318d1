//! Guards of user, group and supplementary groups together, judged by what the kernel shows.

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::cases;
use crate::common::Case;
use crate::common::calls;
use crate::common::kernel::{self, CAP_SETGID, CAP_SETUID, Capabilities, Privileges, State};
use crate::common::sandbox::{self, Answer};
use crate::common::sibling::Sibling;
use privilege_guard::{Error, Identity, IdentityChange, IdentityGuard};

pub const CASES: &[Case] = cases![
    Root: walk,
    Root: walk_with_fewer_capabilities,
    Root: a_file_server_writes_as_its_client,
    Root: switching_between_clients,
    Root: each_call_of_a_switch_refused_or_faked,
    Root: each_call_refused_or_faked,
    Root: every_thread_follows_and_is_restored,
    Root: a_program_run_as_someone_cannot_return,
    Root: a_set_user_id_program_takes_its_rights_back,
    Root: a_failed_change_is_rolled_back_in_its_order,
    Root: a_switch_raises_no_capability,
];

fn everything() -> (State, Privileges) {
    (kernel::state(), kernel::all_threads()[0].privileges.clone())
}

fn clients() -> Vec<Identity> {
    vec![
        Identity::new(1000, 1000),
        Identity::new(1000, 1000).supplementary([1010, 1011]),
        Identity::new(1000, 1001).supplementary([1010, 1011]),
        Identity::new(1002, 1001),
        Identity::new(0, 1001),
        Identity::new(1002, 0).supplementary([0]),
        Identity::new(0, 0),
    ]
}

/// What a change requests.
fn is_inside(client: &Identity, both: bool, kept: Option<&[u32]>, before: &(State, Privileges)) {
    let (state, privileges) = everything();
    let (user, group) = (client.user().as_raw(), client.group().as_raw());
    assert_eq!([privileges.users[1], privileges.users[3]], [user; 2]);
    assert_eq!([state.identity.ids[1], state.identity.ids[3]], [group; 2]);
    let (real_user, real_group) = (before.1.users[0], before.0.identity.ids[0]);
    assert_eq!(privileges.users[0], if both { user } else { real_user });
    assert_eq!(state.identity.ids[0], if both { group } else { real_group });
    let groups: Vec<u32> = client
        .supplementary_groups()
        .iter()
        .map(|gid| gid.as_raw())
        .collect();
    assert_eq!(state.identity.groups, kept.map_or(groups, <[u32]>::to_vec));
    assert_eq!(state.death_signal, before.0.death_signal);
}

/// Every client from several starts of root: all are served, and restored exactly.
fn walk() {
    let mut states = 0;
    for group_ids in [[0; 4], [3, 4, 5, 4], [3, 4, 5, 9]] {
        for groups in [&[][..], &[7, 8]] {
            for user_ids in [[0; 3], [0, 0, 1], [1, 0, 0], [0, 0, 1000], [5, 0, 6]] {
                kernel::passes_in_child(|| {
                    kernel::start_from(group_ids, groups);
                    kernel::raw_setresuid(Some(user_ids[0]), Some(user_ids[1]), Some(user_ids[2]))
                        .unwrap();
                    kernel::set_death_signal(libc::SIGTERM);
                    let before = everything();
                    for client in clients() {
                        for both in [false, true] {
                            for keeps in [false, true] {
                                let change = || {
                                    let make = if both {
                                        IdentityChange::both
                                    } else {
                                        IdentityChange::effective
                                    };
                                    let change = make(&client);
                                    if keeps {
                                        change.keep_supplementary()
                                    } else {
                                        change
                                    }
                                };
                                let kept = keeps.then_some(groups);
                                let inside = || is_inside(&client, both, kept, &before);
                                change().assume_on_thread().unwrap().run(inside);
                                assert_eq!(everything(), before, "{}", change());
                                change().assume().unwrap().run(inside);
                                assert_eq!(everything(), before, "{}", change());
                            }
                        }
                    }
                });
                states += clients().len() * 8;
            }
        }
    }
    println!("= {states} changes from root, all served, 0 violations");
    assert_eq!(states, 3 * 2 * 5 * 7 * 8);
}

/// Every client from starts with fewer capabilities: served and restored exactly, or refused
/// unchanged.
fn walk_with_fewer_capabilities() {
    use std::io::{Read, Seek, Write};

    const BOTH: u64 = CAP_SETUID | CAP_SETGID;
    let all = kernel::capabilities().permitted;
    // Effective, permitted.
    let sets = [
        (all, all),
        (CAP_SETUID, all),
        (CAP_SETGID, all),
        (0, all),
        (BOTH, BOTH),
        (CAP_SETUID, BOTH),
        (0, 0),
    ];
    let users = [
        [0; 3],
        [1000; 3],
        [1000, 0, 0],
        [1000, 1000, 0],
        [1000, 0, 1000],
    ];
    let groups = [[3, 4, 5, 4], [1000; 4]];
    let mut counts = tempfile::tempfile().unwrap();
    let mut starts = 0;
    for (effective, permitted) in sets {
        for users in users {
            for group_ids in groups {
                starts += 1;
                kernel::passes_in_child(|| {
                    kernel::start_from(group_ids, &[7, 8]);
                    start_as(users, effective, permitted);
                    kernel::set_death_signal(libc::SIGTERM);
                    let before = everything();
                    let (mut served, mut refused) = (0, 0);
                    for client in clients() {
                        for (both, keeps) in
                            [(false, false), (false, true), (true, false), (true, true)]
                        {
                            let change = match both {
                                true => IdentityChange::both(&client),
                                false => IdentityChange::effective(&client),
                            };
                            let change = match keeps {
                                true => change.keep_supplementary(),
                                false => change,
                            };
                            let kept = keeps.then_some(&[7, 8][..]);
                            let mut judge = |is_served: Result<(), Error>| {
                                assert_eq!(everything(), before, "{change}: {is_served:?}");
                                match is_served {
                                    Ok(()) => served += 1,
                                    Err(
                                        Error::NotPermitted { .. } | Error::Irreversible { .. },
                                    ) => refused += 1,
                                    Err(error) => panic!("{change}: {error}"),
                                }
                            };
                            let inside = || is_inside(&client, both, kept, &before);
                            let guard = change.clone().assume_on_thread();
                            judge(guard.map(|guard| guard.run(inside)));
                            let guard = change.clone().assume();
                            judge(guard.map(|guard| guard.run(inside)));
                        }
                    }
                    let mut counts = &counts;
                    writeln!(counts, "{served} {refused}").unwrap();
                });
            }
        }
    }
    let mut text = String::new();
    counts.rewind().unwrap();
    counts.read_to_string(&mut text).unwrap();
    let [mut served, mut refused] = [0, 0];
    for line in text.lines() {
        let (of_served, of_refused) = line.split_once(' ').unwrap();
        served += of_served.parse::<usize>().unwrap();
        refused += of_refused.parse::<usize>().unwrap();
    }
    println!(
        "= {starts} starts, {} changes: {served} served, {refused} refused, 0 violations",
        served + refused
    );
    assert_eq!(starts, 7 * 5 * 2);
    assert_eq!(served + refused, starts * clients().len() * 8);
    assert!(served > 0 && refused > 0);
}

fn a_file_server_writes_as_its_client() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(
        folder.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o777),
    )
    .unwrap();
    let client = Identity::new(1000, 1001).supplementary([1010]);
    let path = folder.path().join("reply");
    IdentityGuard::assume_effective_on_thread(&client)
        .unwrap()
        .run(|| std::fs::write(&path, "reply"))
        .unwrap();
    let owner = std::fs::metadata(&path).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (1000, 1001));
}

fn switching_between_clients() {
    kernel::start_from([0, 0, 0, 0], &[7]);
    kernel::set_death_signal(libc::SIGTERM);
    let before = everything();
    let mut switches = 0;
    for first in clients() {
        for second in clients() {
            for both in [false, true] {
                let make = if both {
                    IdentityChange::both
                } else {
                    IdentityChange::effective
                };
                let mut guard = make(&first).assume_on_thread().unwrap();
                for client in [&second, &second, &first, &second] {
                    guard.switch_to(client).unwrap();
                    is_inside(client, both, None, &before);
                    switches += 1;
                }
                drop(guard);
                assert_eq!(everything(), before, "{first} to {second}");
            }
        }
    }
    println!("= {switches} switches, 0 violations");
    assert_eq!(switches, 7 * 7 * 2 * 4);
}

/// Each call that sets something, with the argument that tells it apart.
const SETS: [(libc::c_long, &[(u8, u32)]); 6] = [
    (calls::SYS_setgroups, &[(0, 2)]),
    (calls::SYS_setresgid, &[(1, 1001)]),
    (calls::SYS_setresuid, &[(1, 1001)]),
    (calls::SYS_setresuid, &[(1, 0)]),
    (calls::SYS_setresgid, &[(1, 1000)]),
    (calls::SYS_setresuid, &[(1, 1000)]),
];

const ANSWERS: [Answer; 4] = [
    Answer::Errno(libc::EPERM),
    Answer::Errno(libc::EINVAL),
    Answer::Errno(libc::ENOMEM),
    Answer::SuccessWithoutDoing,
];

/// Whether the child ended by an abort; otherwise it must have passed.
fn passes_or_aborts(f: impl FnOnce()) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let status = kernel::in_child(|| {
        f();
        0
    });
    assert!(
        status.success() || status.signal() == Some(libc::SIGABRT),
        "{status}"
    );
    !status.success()
}

fn each_call_of_a_switch_refused_or_faked() {
    let (first, second) = (
        Identity::new(1000, 1000),
        Identity::new(1001, 1001).supplementary([1010, 1011]),
    );
    let (mut rows, mut aborts) = (0, 0);
    for (call, arguments) in SETS {
        for answer in ANSWERS {
            aborts += i32::from(passes_or_aborts(|| {
                let before = everything();
                let mut guard = IdentityGuard::assume_effective_on_thread(&first).unwrap();
                sandbox::answer(call, arguments, answer);
                match guard.switch_to(&second) {
                    Ok(()) => is_inside(&second, false, None, &before),
                    Err(_) => is_inside(&first, false, None, &before),
                }
                std::mem::forget(guard);
                // Not restored: the filter might refuse that too.
                std::process::exit(0);
            }));
            rows += 1;
        }
    }
    println!("= {rows} rows, {aborts} aborts, 0 left changed");
    // The filter refuses the way through the original user, and then the rollback too.
    assert_eq!((rows, aborts), (24, 4));
}

fn each_call_refused_or_faked() {
    const BOTH: u64 = CAP_SETUID | CAP_SETGID;
    let all = kernel::capabilities().permitted;
    let client = Identity::new(1000, 1000).supplementary([1010, 1011]);
    let user_0 = Identity::new(0, 1000).supplementary([1010, 1011]);
    // Real, effective and saved user; effective and permitted set; the number of aborts.
    let starts = [
        ([0; 3], all, all, &client, 16),
        ([0, 0, 1], all, all, &client, 16),
        ([5, 0, 6], all, all, &client, 16),
        ([0; 3], BOTH, all, &client, 16),
        ([1001; 3], BOTH, BOTH, &client, 16),
        ([1001, 1001, 0], BOTH, BOTH, &user_0, 16),
        ([1001, 1001, 0], CAP_SETUID, BOTH, &user_0, 16),
    ];
    let (mut rows, mut aborts) = (0, 0);
    for (users, effective, permitted, client, expected) in starts {
        let mut of_start = 0;
        for both in [false, true] {
            for (call, arguments) in SETS {
                for answer in ANSWERS {
                    for after in [false, true] {
                        of_start += i32::from(passes_or_aborts(|| {
                            kernel::start_from([0; 4], &[7]);
                            start_as(users, effective, permitted);
                            let before = everything();
                            let change = match both {
                                true => IdentityChange::both(client),
                                false => IdentityChange::effective(client),
                            };
                            if !after {
                                sandbox::answer(call, arguments, answer);
                            }
                            match change.assume_on_thread() {
                                Err(error) => assert!(!after, "{error}"),
                                Ok(guard) => {
                                    is_inside(client, both, None, &before);
                                    if after {
                                        sandbox::answer(call, arguments, answer);
                                    }
                                    drop(guard);
                                }
                            }
                            let mut now = everything();
                            now.1.no_new_privs = before.1.no_new_privs;
                            assert_eq!(now, before);
                        }));
                        rows += 1;
                    }
                }
            }
        }
        println!("= from users {users:?}, effective {effective:x}: {of_start} aborts");
        // Only where the filter refuses the restore or the rollback.
        assert_eq!(of_start, expected, "{users:?} {effective:x}");
        aborts += of_start;
    }
    println!(
        "= {} starts, {rows} rows, {aborts} aborts, 0 left changed",
        starts.len()
    );
    assert_eq!(rows, 7 * 96);
}

/// The user ids and the capability sets of a forked child of root.
fn start_as([real, effective, saved]: [u32; 3], effective_set: u64, permitted_set: u64) {
    kernel::keep_capabilities();
    kernel::raw_setresuid(Some(real), Some(effective), Some(saved)).unwrap();
    kernel::set_capabilities(Capabilities {
        effective: effective_set,
        permitted: permitted_set,
        inheritable: 0,
    });
}

fn every_thread_follows_and_is_restored() {
    kernel::start_from([0; 4], &[7]);
    let _other = Sibling::start();
    let before = kernel::all_threads();
    let client = Identity::new(1000, 1001).supplementary([1010]);
    IdentityGuard::assume_effective(&client).unwrap().run(|| {
        for thread in kernel::all_threads() {
            assert_eq!(thread.privileges.users, [0, 1000, 0, 1000]);
            assert_eq!(
                thread.identity,
                kernel::Identity {
                    ids: [0, 1001, 0, 1001],
                    groups: vec![1010]
                }
            );
        }
    });
    assert_eq!(kernel::all_threads(), before);
    let error = IdentityGuard::assume_real_and_effective(&client).unwrap_err();
    assert!(matches!(error, Error::ThreadDiffers { .. }), "{error}");
    assert_eq!(kernel::all_threads(), before);
}

/// The program reads its own status, and under an effective-only guard it could return.
fn a_program_run_as_someone_cannot_return() {
    kernel::start_from([0; 4], &[7]);
    let client = Identity::new(1000, 1001).supplementary([1010]);
    let status = || {
        let output = Command::new("cat")
            .arg("/proc/self/status")
            .output()
            .unwrap_or_else(|error| {
                crate::common::ignore(&format!("needs cat: {error}"));
            });
        let text = String::from_utf8(output.stdout).unwrap();
        let field = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            line.split_whitespace()
                .map(String::from)
                .collect::<Vec<_>>()
                .join(" ")
        };
        [
            "Uid:", "Gid:", "Groups:", "CapPrm:", "CapEff:", "CapInh:", "CapAmb:",
        ]
        .map(field)
    };
    let none = "0000000000000000";
    let inside = IdentityGuard::assume_real_and_effective_on_thread(&client)
        .unwrap()
        .run(status);
    assert_eq!(
        inside,
        [
            "1000 1000 1000 1000",
            "1001 1001 1001 1001",
            "1010",
            none,
            none,
            none,
            none
        ]
    );
    let [users, ..] = IdentityGuard::assume_effective_on_thread(&client)
        .unwrap()
        .run(status);
    assert_eq!(users, "0 1000 1000 1000");
}

/// It lives as its user, and is root again for one piece of work: the user goes first, then the groups.
fn a_set_user_id_program_takes_its_rights_back() {
    kernel::start_from([1000; 4], &[1000]);
    kernel::raw_setresuid(Some(1000), Some(1000), Some(0)).unwrap();
    kernel::set_death_signal(libc::SIGTERM);
    let before = everything();
    let root = Identity::new(0, 0);
    IdentityGuard::assume_effective_on_thread(&root)
        .unwrap()
        .run(|| is_inside(&root, false, None, &before));
    assert_eq!(everything(), before);
    IdentityGuard::assume_effective(&root)
        .unwrap()
        .run(|| is_inside(&root, false, None, &before));
    assert_eq!(everything(), before);
}

/// The user goes first, so a rollback restores it last: the groups need the capabilities of user 0.
fn a_failed_change_is_rolled_back_in_its_order() {
    let set_groups: (_, &[_]) = (calls::SYS_setgroups, &[(0, 0)]);
    let set_ids: (_, &[_]) = (calls::SYS_setresgid, &[(1, 0)]);
    for (call, arguments) in [set_groups, set_ids] {
        for answer in ANSWERS {
            kernel::passes_in_child(|| {
                kernel::start_from([1000; 4], &[1000]);
                kernel::raw_setresuid(Some(1000), Some(1000), Some(0)).unwrap();
                sandbox::answer(call, arguments, answer);
                kernel::set_death_signal(libc::SIGTERM);
                let before = everything();
                IdentityGuard::assume_effective_on_thread(&Identity::new(0, 0)).unwrap_err();
                assert_eq!(everything(), before, "{answer:?}");
            });
        }
    }
}

/// The restore sets the capability sets, because CAP_SETPCAP was not effective before.
fn a_switch_raises_no_capability() {
    kernel::lower_capabilities(kernel::CAP_SETPCAP);
    let before = everything();
    let client = |groups: [u32; 2]| Identity::new(1000, 1000).supplementary(groups);
    let effective = || kernel::capabilities().effective;
    let mut guard = IdentityGuard::assume_effective_on_thread(&client([1010, 1011])).unwrap();
    assert_eq!(effective(), 0);
    // Nothing has to be set: the groups are the same, in another order.
    guard.switch_to(&client([1011, 1010])).unwrap();
    assert_eq!(effective(), 0);
    guard.switch_to(&client([1011, 1012])).unwrap();
    assert_eq!(effective(), 0);
    sandbox::refuse(calls::SYS_setresuid, &[(1, 1001)]);
    guard.switch_to(&Identity::new(1001, 1001)).unwrap_err();
    assert_eq!(effective(), 0);
    drop(guard);
    let mut now = everything();
    now.1.no_new_privs = before.1.no_new_privs;
    assert_eq!(now, before);
}
