//! What docs/porting.md says of other code and of this crate: theirs made with the same calls, ours, and the kernel as judge.
//!
//! docs/traceability.md maps each row of its tables to a case.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::channel;

use crate::cases;
use crate::common::attack;
use crate::common::calls;
use crate::common::kernel::{self, CAP_SETGID, Ids};
use crate::common::sandbox::{self, Answer};
use crate::common::{self, Case};
use nix::unistd;
use privilege_guard::{
    CapabilitySet, Error, GroupChange, GroupGuard, Identity, PermanentDrop, RestoreError, Thread,
};

pub const CASES: &[Case] = cases![
    Setgid: never_taken_back,
    Setgid: set_group_id_program_becomes_its_user,
    Setgid: changed_and_changed_back,
    Setgid: saved_or_filesystem_id_is_another,
    Setgid: nothing_is_named,
    Setgid: old_group_wanted_back,
    Root: supplementary_groups_of_the_old_group,
    Setgid: user_stays_0,
    Setgid: number_of_the_user,
    Setgid: supplementary_groups_of_root,
    Setgid: effective_group_is_neither_real_nor_saved,
    Setgid: way_back_refused,
    Setgid: only_the_group_is_named,
    Setgid: user_without_an_account,
    Setgid: keep_caps,
    Setgid: setuid_refused,
    Setgid: set_group_id_program_takes_its_group_as_real,
    Setgid: two_threads_at_once,
    Setgid: filesystem_id,
    Setgid: death_signal,
    Setgid: leave_alone,
    Setgid: dropped_in_the_order_made,
    Setgid: always_back_to_0,
    Setgid: refusal_is_logged,
    Setgid: moved_to_another_thread,
    Setgid: not_root,
    Setgid: one_inside_another,
    Setgid: way_back_is_fatal,
    Setgid: drop_could_be_taken_back,
    Root: started_as_the_account,
    Setgid: a_capability_is_needed_afterwards,
    Root: a_new_root_and_a_refused_setuid,
    Setgid: daemonize_leaves_the_groups,
    Root: daemonize_leaves_the_working_directory,
    Setgid: daemonize_with_a_refused_setuid,
];

/// Each in a process of its own, from these ids.
fn theirs_and_ours(start: Ids, theirs: impl FnOnce(), ours: impl FnOnce()) {
    from(start, theirs);
    from(start, ours);
}

fn from(start: Ids, f: impl FnOnce()) {
    kernel::passes_in_child(|| {
        kernel::start_from(start, &[]);
        f();
    });
}

fn without_privilege() {
    kernel::give_up_capabilities(CAP_SETGID);
}

fn setregid(real: Option<u32>, effective: Option<u32>) {
    kernel::raw_setregid(real, effective).unwrap();
}

fn is(ids: Ids) {
    assert_eq!(kernel::ids_by_calls(), ids);
}

fn effective_only(group: u32) -> GroupGuard<Thread> {
    GroupChange::new()
        .effective(group)
        .assume_on_thread()
        .unwrap()
}

/// the change is never taken back
fn never_taken_back() {
    let theirs = || {
        setregid(Some(1001), Some(1001));
        is([1001; 4]);
    };
    let ours = || {
        GroupGuard::assume(1001)
            .unwrap()
            .run(|| is([1001, 1001, 3, 1001]));
        is([3; 4]);
        GroupGuard::assume(1001)
            .unwrap()
            .drop_permanently()
            .unwrap();
        is([1001; 4]);
    };
    theirs_and_ours([3; 4], theirs, ours);
}

/// a set-group-ID program becomes its user for a moment
fn set_group_id_program_becomes_its_user() {
    let theirs = || {
        without_privilege();
        setregid(Some(3), Some(3));
        is([3; 4]);
        assert_eq!(kernel::raw_setregid(None, Some(50)), Err(libc::EPERM));
    };
    let ours = || {
        without_privilege();
        GroupGuard::assume(3).unwrap().run(|| is([3, 3, 50, 3]));
        is([3, 50, 50, 50]);
    };
    theirs_and_ours([3, 50, 50, 50], theirs, ours);
}

/// it was changed and changed back
fn changed_and_changed_back() {
    let theirs = || {
        setregid(None, Some(1002));
        setregid(None, Some(3));
        is([3, 3, 1002, 3]);
        without_privilege();
        setregid(None, Some(1002));
    };
    let ours = || {
        drop(GroupGuard::assume_effective(1002).unwrap());
        is([3; 4]);
        without_privilege();
        assert_eq!(kernel::raw_setregid(None, Some(1002)), Err(libc::EPERM));
    };
    theirs_and_ours([3; 4], theirs, ours);
}

/// the saved set-group-ID or the filesystem group ID is another
fn saved_or_filesystem_id_is_another() {
    let theirs = || {
        setregid(Some(1003), None);
        is([1003, 4, 4, 4]);
        setregid(Some(3), None);
        is([3, 4, 4, 4]);
    };
    let ours = || {
        GroupGuard::assume_real(1003)
            .unwrap()
            .run(|| is([1003, 4, 5, 4]));
        is([3, 4, 5, 7]);
    };
    theirs_and_ours([3, 4, 5, 7], theirs, ours);
}

/// nothing is named: `os.setregid(-1, -1)`
fn nothing_is_named() {
    let theirs = || {
        setregid(None, None);
        is([3; 4]);
    };
    let ours = || {
        GroupChange::new()
            .assume()
            .unwrap()
            .run(|| is([3, 3, 3, 7]));
        is([3, 3, 3, 7]);
    };
    theirs_and_ours([3, 3, 3, 7], theirs, ours);
}

/// a process with CAP_SETGID wants its old group back
fn old_group_wanted_back() {
    let theirs = || {
        setregid(Some(1001), Some(1001));
        setregid(Some(0), Some(0));
        is([0; 4]);
    };
    let ours = || {
        PermanentDrop::to_group(1001).apply().unwrap();
        assert_eq!(attack::ways_back(&[0]), Vec::<String>::new());
    };
    theirs_and_ours([0; 4], theirs, ours);
}

/// the supplementary groups
fn supplementary_groups_of_the_old_group() {
    let groups = || kernel::identity().groups;
    let theirs = || {
        kernel::start_from([0; 4], &[0, 7]);
        setregid(Some(1001), Some(1001));
        assert_eq!(groups(), [0, 7]);
    };
    let ours = || {
        kernel::start_from([0; 4], &[0, 7]);
        PermanentDrop::to_group(1001).apply().unwrap();
        assert_eq!(groups(), [0u32; 0]);
    };
    theirs_and_ours([0; 4], theirs, ours);
    let Ok(Some(account)) = unistd::User::from_name("daemon") else {
        common::ignore("no account is named daemon here")
    };
    from([0; 4], || {
        let of_account = unistd::getgrouplist(c"daemon", account.gid).unwrap();
        PermanentDrop::to_account("daemon")
            .unwrap()
            .apply()
            .unwrap();
        assert_eq!(
            groups(),
            of_account
                .iter()
                .map(|group| group.as_raw())
                .collect::<Vec<_>>()
        );
    });
}

/// only the group is dropped, and the user stays 0
fn user_stays_0() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let open = || {
        std::fs::File::open(file.path())
            .map(drop)
            .map_err(|error| error.kind())
    };
    let theirs = || {
        setregid(Some(1001), Some(1001));
        assert_eq!(open(), Ok(()));
    };
    let ours = || {
        PermanentDrop::to_group(1001).apply().unwrap();
        assert_eq!(open(), Ok(()));
    };
    theirs_and_ours([0; 4], theirs, ours);
    from([0; 4], || {
        PermanentDrop::to_group(1001).user(1234).apply().unwrap();
        assert_eq!(open(), Err(std::io::ErrorKind::PermissionDenied));
    });
}

/// the user's number is not the group's
fn number_of_the_user() {
    let theirs = || {
        setregid(Some(1005), Some(1005));
        let user = unistd::getuid().as_raw();
        setregid(Some(user), Some(user));
        is([0; 4]);
    };
    theirs_and_ours([3; 4], theirs, || {
        GroupGuard::assume(1005)
            .unwrap()
            .run(|| is([1005, 1005, 3, 1005]));
        is([3; 4]);
    });
}

/// `uzers` goes back to the group first, `users` to the user.
#[derive(Clone, Copy, PartialEq)]
enum First {
    Group,
    User,
}

struct SwitchedUserGroup {
    group: u32,
    user: u32,
    back: First,
}

fn switch_user_group(user: u32, group: u32, back: First) -> SwitchedUserGroup {
    let old = SwitchedUserGroup {
        group: unistd::getegid().as_raw(),
        user: unistd::geteuid().as_raw(),
        back,
    };
    unistd::setegid(group.into()).unwrap();
    unistd::seteuid(user.into()).unwrap();
    old
}

impl Drop for SwitchedUserGroup {
    fn drop(&mut self) {
        if self.back == First::User {
            unistd::seteuid(self.user.into()).unwrap();
        }
        unistd::setegid(self.group.into()).unwrap();
        unistd::seteuid(self.user.into()).unwrap();
    }
}

fn drop_panics<T>(guard: T) -> bool {
    catch_unwind(AssertUnwindSafe(|| drop(guard))).is_err()
}

/// root's supplementary groups
fn supplementary_groups_of_root() {
    let start = || kernel::start_from([0; 4], &[0, 7]);
    let groups = || kernel::identity().groups;
    let theirs = || {
        start();
        let _guard = switch_user_group(1234, 1004, First::Group);
        assert_eq!(groups(), [0, 7]);
    };
    let ours = || {
        start();
        let guard = GroupChange::new()
            .effective(1004)
            .no_supplementary()
            .assume()
            .unwrap();
        guard.run(|| assert_eq!(groups(), [0u32; 0]));
        assert_eq!(groups(), [0, 7]);
    };
    theirs_and_ours([0; 4], theirs, ours);
}

/// the effective group was neither the real nor the saved one
fn effective_group_is_neither_real_nor_saved() {
    let theirs = || {
        assert!(drop_panics(switch_user_group(1234, 1004, First::Group)));
        is([3, 1004, 5, 1004]);
    };
    let ours = || {
        let guard = GroupChange::new().effective(1004).assume().unwrap();
        unistd::seteuid(1234.into()).unwrap();
        unistd::seteuid(0.into()).unwrap();
        drop(guard);
        is([3, 4, 5, 4]);
    };
    theirs_and_ours([3, 4, 5, 4], theirs, ours);
    from([3, 4, 5, 4], || {
        assert!(!drop_panics(switch_user_group(1234, 1004, First::User)));
        is([3, 4, 5, 4]);
    });
}

fn refuse_the_way_back_to_3() {
    sandbox::refuse(calls::SYS_setresgid, &[(1, 3)]);
}

/// the way back is refused
fn way_back_refused() {
    let theirs = || {
        refuse_the_way_back_to_3();
        assert!(drop_panics(switch_user_group(0, 1004, First::Group)));
        is([3, 1004, 3, 1004]);
    };
    let ours = || {
        refuse_the_way_back_to_3();
        let assume = || GroupChange::new().effective(1004).assume().unwrap();
        kernel::aborts(|| drop(assume()));
        kernel::aborts(|| assume().run(|| ()));
    };
    theirs_and_ours([3; 4], theirs, ours);
    from([3; 4], || {
        refuse_the_way_back_to_3();
        let guard = GroupChange::new().effective(1004).assume().unwrap();
        assert!(matches!(guard.restore(), Err(RestoreError::Refused { .. })));
    });
}

/// In the order of `privdrop`.
fn privdrop(group: Option<u32>, user: Option<u32>) -> nix::Result<()> {
    if let Some(group) = group {
        unistd::setgroups(&[group.into()])?;
        unistd::setgid(group.into())?;
    }
    user.map_or(Ok(()), |user| unistd::setuid(user.into()))
}

/// only `.group(..)` is named
fn only_the_group_is_named() {
    let theirs = || {
        privdrop(Some(1001), None).unwrap();
        is([1001; 4]);
        kernel::raw_setgid(0).unwrap();
        is([0; 4]);
    };
    let ours = || {
        PermanentDrop::to_group(1001).apply().unwrap();
        assert_eq!(kernel::capabilities().permitted & CAP_SETGID, 0);
        assert_eq!(kernel::raw_setgid(0), Err(libc::EPERM));
    };
    theirs_and_ours([0; 4], theirs, ours);
}

/// a user by a number that has no account (`fallback_to_ids_if_names_are_numeric`)
fn user_without_an_account() {
    let theirs = || {
        kernel::start_from([0; 4], &[0, 7]);
        privdrop(None, Some(1234)).unwrap();
        is([0; 4]);
        assert_eq!(kernel::identity().groups, [0, 7]);
    };
    let ours = || {
        kernel::start_from([0; 4], &[0, 7]);
        PermanentDrop::to_group(1001).user(1234).apply().unwrap();
        is([1001; 4]);
        assert_eq!(kernel::identity().groups, [0u32; 0]);
    };
    theirs_and_ours([0; 4], theirs, ours);
}

/// `PR_SET_KEEPCAPS` is set
fn keep_caps() {
    let start = kernel::keep_capabilities;
    let theirs = || {
        start();
        privdrop(Some(1001), Some(1234)).unwrap();
        kernel::raise_capabilities(CAP_SETGID);
        kernel::raw_setgid(0).unwrap();
    };
    let ours = || {
        start();
        PermanentDrop::to_group(1001).user(1234).apply().unwrap();
        assert_eq!(kernel::capabilities().permitted & CAP_SETGID, 0);
    };
    theirs_and_ours([0; 4], theirs, ours);
}

/// `setuid` is refused
fn setuid_refused() {
    let start = || {
        for call in [calls::SYS_setuid, calls::SYS_setresuid] {
            sandbox::refuse(call, &[(0, 1234)]);
        }
    };
    let theirs = || {
        start();
        privdrop(Some(1001), Some(1234)).unwrap_err();
        is([1001; 4]);
    };
    let ours = || {
        start();
        let before = kernel::state();
        PermanentDrop::to_group(1001)
            .user(1234)
            .apply()
            .unwrap_err();
        assert_eq!(kernel::state(), before);
    };
    theirs_and_ours([0; 4], theirs, ours);
}

fn setresgid(real: u32, effective: u32, saved: u32) -> nix::Result<()> {
    unistd::setresgid(real.into(), effective.into(), saved.into())
}

/// a set-group-ID program takes its group as real group too
fn set_group_id_program_takes_its_group_as_real() {
    let theirs = || {
        without_privilege();
        setresgid(50, 50, 50).unwrap();
        is([50; 4]);
        assert_eq!(setresgid(3, 50, 50), Err(nix::errno::Errno::EPERM));
    };
    let ours = || {
        without_privilege();
        GroupGuard::assume(50).unwrap().run(|| is([50, 50, 3, 50]));
        is([3, 50, 50, 50]);
    };
    theirs_and_ours([3, 50, 50, 50], theirs, ours);
}

/// two threads do it at once
fn two_threads_at_once() {
    let theirs = || {
        let (go_on, wait) = channel();
        let (tell, told) = channel();
        setresgid(1004, 1004, 1004).unwrap(); // this thread found 3
        let other = std::thread::spawn(move || {
            let found = unistd::getresgid().unwrap();
            setresgid(1005, 1005, 1005).unwrap();
            tell.send(()).unwrap();
            wait.recv().unwrap();
            is([3; 4]);
            unistd::setresgid(found.real, found.effective, found.saved).unwrap();
        });
        told.recv().unwrap();
        setresgid(3, 3, 3).unwrap();
        go_on.send(()).unwrap();
        other.join().unwrap();
        is([1004; 4]);
    };
    let ours = || {
        let first = GroupGuard::assume(1004).unwrap();
        let second = || matches!(GroupGuard::assume(1005), Err(Error::Busy { .. }));
        assert!(std::thread::spawn(second).join().unwrap());
        is([1004, 1004, 3, 1004]);
        drop(first);
        is([3; 4]);
    };
    theirs_and_ours([3; 4], theirs, ours);
}

/// Goes back to the effective group that it found.
struct ScopedGid {
    old: u32,
}

impl ScopedGid {
    fn new(group: u32) -> Self {
        let old = unistd::getegid().as_raw();
        kernel::raw_setresgid(None, Some(group), None).unwrap();
        ScopedGid { old }
    }
}

impl Drop for ScopedGid {
    fn drop(&mut self) {
        if let Err(errno) = kernel::raw_setresgid(None, Some(self.old), None) {
            println!("cannot go back: {errno}");
        }
    }
}

/// the filesystem group ID was another
fn filesystem_id() {
    let theirs = || {
        drop(ScopedGid::new(1004));
        is([3; 4]);
    };
    theirs_and_ours([3, 3, 3, 7], theirs, || {
        drop(effective_only(1004));
        is([3, 3, 3, 7]);
    });
    from([3, 3, 3, 7], || {
        drop(switch_user_group(0, 1004, First::Group));
        is([3; 4]);
    });
}

/// a parent-death signal was set
fn death_signal() {
    fn left(guard: impl FnOnce()) -> i32 {
        kernel::set_death_signal(libc::SIGUSR1);
        guard();
        kernel::death_signal()
    }
    assert_eq!(left(|| drop(ScopedGid::new(1004))), 0);
    assert_eq!(left(|| drop(switch_user_group(0, 1004, First::Group))), 0);
    assert_eq!(left(|| drop(effective_only(1004))), libc::SIGUSR1);
}

/// the group is `(gid_t)-1`
fn leave_alone() {
    let theirs = || {
        let _guard = ScopedGid::new(u32::MAX);
        is([3; 4]);
    };
    theirs_and_ours([3; 4], theirs, || {
        assert!(matches!(
            GroupChange::new().effective(u32::MAX).assume_on_thread(),
            Err(Error::InvalidGid)
        ));
    });
}

/// guards dropped in the order they were made
fn dropped_in_the_order_made() {
    fn after<T>(guard: impl Fn(u32) -> T) -> u32 {
        let (first, second) = (guard(1004), guard(1005));
        drop(first);
        drop(second);
        kernel::getresgid()[1]
    }
    from([3; 4], || assert_eq!(after(ScopedGid::new), 1004));
    from([3; 4], || {
        assert_eq!(
            after(|group| switch_user_group(0, group, First::Group)),
            1004
        )
    });
    from([3; 4], || assert_eq!(after(effective_only), 3));
}

/// it always goes back to 0, and was not 0
fn always_back_to_0() {
    let theirs = || {
        let mut guard = ScopedGid::new(1004);
        guard.old = 0;
        drop(guard);
        is([3, 0, 3, 0]);
    };
    theirs_and_ours([3; 4], theirs, || {
        drop(effective_only(1004));
        is([3; 4]);
    });
}

/// the kernel refuses, and it is logged
fn refusal_is_logged() {
    let theirs = || {
        refuse_the_way_back_to_3();
        drop(ScopedGid::new(1004));
        is([3, 1004, 3, 1004]);
    };
    theirs_and_ours([3; 4], theirs, || {
        refuse_the_way_back_to_3();
        kernel::aborts(|| drop(effective_only(1004)));
    });
}

/// the guard is moved to another thread
fn moved_to_another_thread() {
    from([3; 4], || {
        let guard = ScopedGid::new(1004);
        let other = move || {
            drop(guard);
            is([3; 4]);
        };
        std::thread::spawn(other).join().unwrap();
        is([3, 1004, 3, 1004]);
    });
    assert!(
        include_str!("../compile/moved_into_a_thread.stderr")
            .contains("cannot be sent between threads safely")
    );
}

/// The three statics of OpenSSH's uidswap.c.
#[derive(Default)]
struct UidSwap {
    privileged: bool,
    user: u32,
    group: u32,
    groups: Vec<unistd::Gid>,
}

impl UidSwap {
    fn temporarily_use_uid(&mut self, user: u32, group: u32) {
        (self.user, self.group) = (unistd::geteuid().as_raw(), unistd::getegid().as_raw());
        self.privileged = self.user == 0;
        if self.privileged {
            self.groups = unistd::getgroups().unwrap();
            unistd::setgroups(&[group.into()]).unwrap();
            unistd::setegid(group.into()).unwrap();
            unistd::seteuid(user.into()).unwrap();
        }
    }

    fn restore_uid(&self) {
        if self.privileged {
            unistd::seteuid(self.user.into()).unwrap();
            unistd::setegid(self.group.into()).unwrap_or_else(|_| fatal());
            unistd::setgroups(&self.groups).unwrap();
        }
    }
}

/// Ends the process with this exit code.
const FATAL: i32 = 255;

fn fatal() -> ! {
    std::process::exit(FATAL)
}

/// Without the tries for the user, which come after these.
fn permanently_set_uid(user: u32, group: u32) {
    let old = unistd::getgid();
    setresgid(group, group, group).unwrap_or_else(|_| fatal());
    unistd::setresuid(user.into(), user.into(), user.into()).unwrap_or_else(|_| fatal());
    if old.as_raw() != group
        && user != 0
        && (unistd::setgid(old).is_ok() || unistd::setegid(old).is_ok())
    {
        fatal();
    }
}

/// the program is not root
fn not_root() {
    let theirs = || {
        kernel::become_user(1234, 3);
        UidSwap::default().temporarily_use_uid(1235, 1004);
        is([3; 4]);
    };
    theirs_and_ours([3; 4], theirs, || {
        kernel::become_user(1234, 3);
        assert!(matches!(
            GroupGuard::assume_effective(1004),
            Err(Error::NotPermitted { .. })
        ));
    });
}

/// one inside another
fn one_inside_another() {
    let theirs = || {
        let mut statics = UidSwap::default();
        statics.temporarily_use_uid(1234, 1004);
        statics.temporarily_use_uid(1235, 1005);
        is([3, 1004, 3, 1004]);
        statics.restore_uid();
        statics.restore_uid();
        is([3, 1004, 3, 1004]);
        assert_eq!(unistd::geteuid().as_raw(), 1234);
    };
    theirs_and_ours([3; 4], theirs, || {
        let outer = GroupChange::new()
            .effective(1004)
            .no_supplementary()
            .assume()
            .unwrap();
        let inner = GroupChange::new()
            .effective(1005)
            .supplementary([1005])
            .assume()
            .unwrap();
        assert_eq!(kernel::getresgid()[1], 1005);
        inner.restore().unwrap();
        is([3, 1004, 3, 1004]);
        outer.restore().unwrap();
        is([3; 4]);
    });
    // Where they do not nest, theirs comes back.
    from([3; 4], || {
        let mut statics = UidSwap::default();
        statics.temporarily_use_uid(1234, 1004);
        is([3, 1004, 3, 1004]);
        statics.restore_uid();
        is([3; 4]);
    });
}

/// the kernel refuses the way back
fn way_back_is_fatal() {
    let theirs = kernel::in_child(|| {
        kernel::start_from([3; 4], &[]);
        refuse_the_way_back_to_3();
        let mut statics = UidSwap::default();
        statics.temporarily_use_uid(1234, 1004);
        statics.restore_uid();
        0
    });
    assert_eq!(theirs.code(), Some(FATAL));
    from([3; 4], || {
        refuse_the_way_back_to_3();
        let assume = || GroupChange::new().effective(1004).assume().unwrap();
        kernel::aborts(|| drop(assume()));
        kernel::aborts(|| assume().run(|| ()));
    });
    from([3; 4], || {
        refuse_the_way_back_to_3();
        let guard = GroupChange::new().effective(1004).assume().unwrap();
        assert!(matches!(guard.restore(), Err(RestoreError::Refused { .. })));
    });
}

/// the permanent drop could be taken back
fn drop_could_be_taken_back() {
    // A filter that says so is all that makes one of them believe it.
    let say_done = || {
        for call in [calls::SYS_setgid, calls::SYS_setresgid] {
            sandbox::answer(
                call,
                &[(if call == calls::SYS_setgid { 0 } else { 1 }, 3)],
                Answer::SuccessWithoutDoing,
            );
        }
    };
    let theirs = |could: bool| {
        let ended = kernel::in_child(|| {
            kernel::start_from([3; 4], &[]);
            if could {
                say_done();
            }
            permanently_set_uid(1234, 1004);
            0
        });
        ended.code()
    };
    assert_eq!((theirs(false), theirs(true)), (Some(0), Some(FATAL)));
    let ours = || PermanentDrop::to_group(1004).user(1234).apply();
    from([3; 4], || drop(ours().unwrap()));
    from([3; 4], || {
        say_done();
        let line = kernel::aborts(|| drop(ours()));
        assert!(
            line.contains("setresgid might have regained group 3"),
            "{line}"
        );
    });
}

/// the program has been started as the account
fn started_as_the_account() {
    let theirs = || {
        kernel::become_user(1234, 1001);
        assert_eq!(
            privdrop(Some(1001), Some(1234)),
            Err(nix::errno::Errno::EPERM)
        );
    };
    let ours = || {
        kernel::become_user(1234, 1001);
        PermanentDrop::to(&Identity::new(1234, 1001))
            .apply()
            .unwrap();
    };
    theirs_and_ours([0; 4], theirs, ours);
}

/// a low port is bound after the drop
fn a_capability_is_needed_afterwards() {
    let theirs = || {
        privdrop(Some(1001), Some(1234)).unwrap();
        assert_eq!(kernel::capabilities().permitted, 0);
    };
    let ours = || {
        PermanentDrop::to(&Identity::new(1234, 1001))
            .keep_capabilities(CapabilitySet::NET_BIND_SERVICE)
            .apply()
            .unwrap();
        assert_eq!(kernel::capabilities().effective, 1 << 10);
    };
    theirs_and_ours([0; 4], theirs, ours);
}

fn chroot(path: &std::path::Path) {
    rustix::process::chroot(path).unwrap();
}

/// A folder that is to be the root, with a file beside it.
fn new_root() -> std::path::PathBuf {
    let root = std::env::temp_dir().join("root");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(std::env::temp_dir().join("secret"), "").unwrap();
    root
}

/// `chroot` is given, and `setuid` is refused
fn a_new_root_and_a_refused_setuid() {
    let root = new_root();
    let refuse = || {
        for call in [calls::SYS_setuid, calls::SYS_setresuid] {
            sandbox::refuse(call, &[(0, 1234)]);
        }
    };
    let theirs = || {
        refuse();
        std::env::set_current_dir(&root).unwrap();
        chroot(&root);
        std::env::set_current_dir("/").unwrap();
        privdrop(Some(1001), Some(1234)).unwrap_err();
        is([1001; 4]);
        assert!(!std::path::Path::new("/usr").exists());
    };
    let ours = || {
        refuse();
        let before = kernel::all_threads();
        let drop = PermanentDrop::to(&Identity::new(1234, 1001)).chroot(&root);
        drop.apply().unwrap_err();
        assert_eq!(kernel::all_threads(), before);
    };
    theirs_and_ours([0; 4], theirs, ours);
}

/// In the order of `daemonize`.
fn daemonize(root: Option<&std::path::Path>, group: u32, user: u32) -> nix::Result<()> {
    root.into_iter().for_each(chroot);
    unistd::setgid(group.into())?;
    unistd::setuid(user.into())
}

/// `.user(..)` and `.group(..)` are given to a process with root's groups
fn daemonize_leaves_the_groups() {
    let start = || kernel::start_from([0; 4], &[0, 7]);
    let theirs = || {
        start();
        daemonize(None, 1001, 1234).unwrap();
        assert_eq!(kernel::identity().groups, [0, 7]);
    };
    let ours = || {
        start();
        PermanentDrop::to(&Identity::new(1234, 1001))
            .apply()
            .unwrap();
        assert_eq!(kernel::identity().groups, [0u32; 0]);
    };
    theirs_and_ours([0; 4], theirs, ours);
}

/// `.chroot(..)` is given, and the working directory is outside
fn daemonize_leaves_the_working_directory() {
    let root = new_root();
    std::fs::set_permissions(
        std::env::temp_dir().join("secret"),
        std::os::unix::fs::PermissionsExt::from_mode(0o644),
    )
    .unwrap();
    let start = || std::env::set_current_dir(std::env::temp_dir()).unwrap();
    let theirs = || {
        start();
        daemonize(Some(&root), 1001, 1234).unwrap();
        assert!(std::fs::File::open("secret").is_ok());
    };
    let ours = || {
        start();
        let drop = PermanentDrop::to(&Identity::new(1234, 1001)).chroot(&root);
        drop.apply().unwrap();
        assert!(std::fs::File::open("secret").is_err());
        assert!(std::fs::File::open("../secret").is_err());
    };
    theirs_and_ours([0; 4], theirs, ours);
}

/// `setuid` is refused
fn daemonize_with_a_refused_setuid() {
    let theirs = || {
        sandbox::refuse(calls::SYS_setuid, &[(0, 1234)]);
        daemonize(None, 1001, 1234).unwrap_err();
        is([1001; 4]);
    };
    let ours = || {
        sandbox::refuse(calls::SYS_setresuid, &[(0, 1234)]);
        PermanentDrop::to(&Identity::new(1234, 1001))
            .apply()
            .unwrap_err();
        is([3; 4]);
    };
    theirs_and_ours([3; 4], theirs, ours);
}
