//! The audit: `threads()` shows what the kernel shows, of each thread.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{read_dir, read_to_string};
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use crate::cases;
use crate::common::kernel::{self, CAP_SETGID, Capabilities, Identity};
use crate::common::ring;
use crate::common::{self, Case};
use privilege_guard::{
    CapabilitySet, Error, Gid, GroupChange, GroupGuard, GroupIds, ThreadIds, threads,
};

pub const CASES: &[Case] = cases![
    Nothing: the_only_thread_is_shown_as_it_is,
    Setgid: every_thread_is_shown_as_the_kernel_has_it,
    Setgid: a_thread_guard_shows_on_its_thread_only,
    Setgid: a_process_guard_shows_on_every_thread,
    Setgid: cap_setgid_is_held_by_any_of_three_sets,
    Setgid: an_audit_says_in_words_what_it_shows,
    Nothing: threads_that_come_and_go_are_no_error,
    Nothing: a_thread_of_any_name_is_shown,
    Nothing: a_name_that_the_kernel_cut_in_a_letter_is_shown,
    Nothing: a_thread_that_is_named_as_an_io_uring_thread_is_none,
    Nothing + io_uring: an_io_uring_thread_is_told_apart,
    Setgid + io_uring: an_io_uring_thread_keeps_its_identity_under_a_process_guard,
    Root: an_audit_without_proc_is_an_error,
    Root: an_audit_without_its_own_thread_is_an_error,
    Root: an_audit_of_files_that_look_like_proc_is_an_error,
];

/// A thread in a state of its own, until it is dropped.
struct Other {
    thread: u32,
    end: Option<Sender<()>>,
    handle: Option<JoinHandle<()>>,
}

impl Other {
    fn start<T>(name: &str, state: impl FnOnce() -> T + Send + 'static) -> Self {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let run = move || {
            let _kept = state();
            tell.send(kernel::gettid() as u32).unwrap();
            _ = ended.recv();
        };
        let handle = std::thread::Builder::new()
            .name(name.into())
            .spawn(run)
            .unwrap();
        Other {
            thread: told.recv().unwrap(),
            end: Some(end),
            handle: Some(handle),
        }
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        drop(self.end.take());
        self.handle.take().map(JoinHandle::join);
    }
}

fn audit() -> BTreeMap<u32, ThreadIds> {
    threads()
        .unwrap()
        .into_iter()
        .map(|thread| (thread.thread_id, thread))
        .collect()
}

fn raw(ids: GroupIds) -> [u32; 4] {
    common::guard::raw(ids)
}

fn field(status: &str, name: &str) -> String {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .expect(name)
        .trim()
        .into()
}

/// Every thread that the kernel lists, against the audit.
fn is_what_the_kernel_shows() {
    let shown = audit();
    let listed: Vec<u32> = read_dir("/proc/self/task")
        .unwrap()
        .map(|entry| {
            entry
                .unwrap()
                .file_name()
                .into_string()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    let mut sorted = listed.clone();
    sorted.sort_unstable();
    assert_eq!(shown.keys().copied().collect::<Vec<_>>(), sorted);
    for thread in listed {
        let (status, shown) = (
            read_to_string(format!("/proc/self/task/{thread}/status")).unwrap(),
            &shown[&thread],
        );
        let Identity { ids, groups } = kernel::identity_of(thread as i32);
        assert_eq!(raw(shown.group_ids), ids);
        assert_eq!(
            shown.supplementary,
            groups.into_iter().map(Gid::from).collect::<Vec<_>>()
        );
        let held = ["CapPrm:", "CapInh:", "CapAmb:"]
            .map(|set| u64::from_str_radix(&field(&status, set), 16).unwrap());
        assert_eq!(
            shown.holds(CapabilitySet::SETGID),
            held.into_iter().any(|set| set & CAP_SETGID != 0),
            "{status}"
        );
        assert_eq!(
            shown.is_kernel_worker,
            kernel::is_io_worker(thread as i32),
            "{shown}"
        );
        let name = read_to_string(format!("/proc/self/task/{thread}/comm")).unwrap();
        assert_eq!(shown.name, name.trim_end_matches('\n'));
    }
}

fn the_only_thread_is_shown_as_it_is() {
    let shown = threads().unwrap();
    let [only] = &shown[..] else {
        panic!("{shown:?}")
    };
    let Identity { ids, groups } = kernel::identity();
    assert_eq!(only.thread_id, std::process::id());
    assert_eq!(raw(only.group_ids), ids);
    assert_eq!(
        only.supplementary,
        groups.into_iter().map(Gid::from).collect::<Vec<_>>()
    );
    assert_eq!(
        only.holds(CapabilitySet::SETGID),
        kernel::capabilities().permitted & CAP_SETGID != 0
    );
    assert!(!only.is_kernel_worker);
    is_what_the_kernel_shows();
}

fn every_thread_is_shown_as_the_kernel_has_it() {
    kernel::start_from([1, 2, 3, 4], &[7, 8]);
    let states = [[11, 12, 13, 14], [21, 21, 21, 21], [31, 31, 32, 33]];
    let others = states.map(|ids| {
        Other::start("state", move || {
            kernel::start_from(ids, &[ids[0] + 1000, ids[1] + 2000])
        })
    });
    let without_groups = Other::start("no groups", || kernel::start_from([41; 4], &[]));
    let with_many = Other::start("many groups", || {
        kernel::start_from([51; 4], &(1000..3000).collect::<Vec<_>>())
    });
    is_what_the_kernel_shows();
    let shown = audit();
    for (other, ids) in others.iter().zip(states) {
        assert_eq!(raw(shown[&other.thread].group_ids), ids);
        assert_eq!(
            shown[&other.thread].supplementary,
            [Gid::from(ids[0] + 1000), Gid::from(ids[1] + 2000)]
        );
        assert!(shown[&other.thread].holds(CapabilitySet::SETGID));
    }
    assert_eq!(shown[&without_groups.thread].supplementary, []);
    assert_eq!(shown[&with_many.thread].supplementary.len(), 2000);
    assert_eq!(shown.len(), 6);
    drop(others);
    drop((without_groups, with_many));
    assert_eq!(audit().len(), 1);
}

fn a_thread_guard_shows_on_its_thread_only() {
    let before = audit();
    let sibling = Other::start("sibling", || ());
    let change = GroupChange::both(1001).supplementary([2001]);
    let guarded = Other::start("guarded", || change.assume_on_thread().unwrap());
    is_what_the_kernel_shows();
    let shown = audit();
    let main = &before[&std::process::id()];
    assert_eq!(&shown[&main.thread_id], main);
    assert_eq!(
        (
            shown[&sibling.thread].group_ids,
            &shown[&sibling.thread].supplementary
        ),
        (main.group_ids, &main.supplementary)
    );
    assert_eq!(
        raw(shown[&guarded.thread].group_ids),
        [1001, 1001, main.group_ids.saved.as_raw(), 1001]
    );
    assert_eq!(shown[&guarded.thread].supplementary, [Gid::from(2001)]);
    drop(guarded);

    // The same where the audit itself is made under the guard.
    let guard = GroupGuard::assume_on_thread(1002).unwrap();
    is_what_the_kernel_shows();
    let shown = audit();
    assert_eq!(
        raw(shown[&main.thread_id].group_ids),
        [1002, 1002, main.group_ids.saved.as_raw(), 1002]
    );
    assert_eq!(shown[&sibling.thread].group_ids, main.group_ids);
    guard.restore().unwrap();
    assert_eq!(&audit()[&main.thread_id], main);
}

fn a_process_guard_shows_on_every_thread() {
    let start = kernel::identity();
    let others = ["first", "second"].map(|name| Other::start(name, || ()));
    let guard = GroupGuard::assume(1001).unwrap();
    is_what_the_kernel_shows();
    let shown = audit();
    assert_eq!(shown.len(), 3);
    for thread in shown.values() {
        assert_eq!(raw(thread.group_ids), [1001, 1001, start.ids[2], 1001]);
    }
    guard.restore().unwrap();
    for thread in audit().values() {
        assert_eq!(raw(thread.group_ids), start.ids);
    }
    drop(others);
}

fn cap_setgid_is_held_by_any_of_three_sets() {
    let with = |permitted: bool, effective: bool, inheritable: bool| {
        let all = kernel::capabilities();
        let set = |now: u64, wanted: bool| {
            if wanted {
                now | CAP_SETGID
            } else {
                now & !CAP_SETGID
            }
        };
        // The inheritable set takes only what is permitted, so that comes first.
        kernel::set_capabilities(Capabilities {
            inheritable: set(all.inheritable, inheritable),
            ..all
        });
        let (effective, permitted) = (set(all.effective, effective), set(all.permitted, permitted));
        kernel::set_capabilities(Capabilities {
            effective,
            permitted,
            ..kernel::capabilities()
        });
    };
    let all = Other::start("all", move || with(true, true, false));
    let not_effective = Other::start("not effective", move || with(true, false, false));
    let inheritable = Other::start("inheritable", move || with(false, false, true));
    let none = Other::start("none", move || with(false, false, false));
    let gave_up = Other::start("gave up", || kernel::give_up_capabilities(u64::MAX));
    let ambient = Other::start("ambient", move || {
        with(true, true, true);
        assert_eq!(
            // SAFETY: numbers only.
            unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 6, 0, 0) },
            0
        );
    });
    is_what_the_kernel_shows();
    let shown = audit();
    for (other, holds) in [
        (&all, true),
        (&not_effective, true),
        (&inheritable, true),
        (&ambient, true),
        (&none, false),
        (&gave_up, false),
    ] {
        let thread = &shown[&other.thread];
        assert_eq!(thread.holds(CapabilitySet::SETGID), holds, "{thread}");
    }
    assert!(shown[&std::process::id()].holds(CapabilitySet::SETGID));
}

fn an_audit_says_in_words_what_it_shows() {
    let state = || {
        kernel::start_from([1, 2, 3, 4], &[7, 8]);
        kernel::give_up_capabilities(CAP_SETGID);
    };
    let other = Other::start("worker", state);
    let shown = audit();
    let words = format!(
        "thread {} (worker): user ids real 0, effective 0, saved 0, filesystem 0; group ids real 1, effective 2, saved 3, filesystem 4; 2 supplementary groups; holds CAP_SETUID",
        other.thread
    );
    assert_eq!(shown[&other.thread].to_string(), words);
    assert!(
        shown[&std::process::id()]
            .to_string()
            .ends_with(" supplementary groups; holds CAP_SETUID; holds CAP_SETGID")
    );
}

fn threads_that_come_and_go_are_no_error() {
    let maker =
        || std::thread::spawn(|| (0..2000).for_each(|_| std::thread::spawn(|| ()).join().unwrap()));
    let makers: Vec<_> = (0..3).map(|_| maker()).collect();
    let mut staying = VecDeque::new();
    let mut audits = 0;
    while makers.iter().any(|maker| !maker.is_finished()) {
        // Last in the kernel's list: where a thread before it ends, the kernel skips one.
        staying.push_back(Other::start("stays", || ()));
        let shown = audit();
        assert!(
            shown.contains_key(&std::process::id())
                && staying
                    .iter()
                    .all(|other| shown.contains_key(&other.thread))
        );
        audits += 1;
        if staying.len() == 8 {
            staying.pop_front();
        }
    }
    makers.into_iter().for_each(|maker| maker.join().unwrap());
    println!(
        "= {audits} audits while 6000 threads came and went: 0 refused, 0 without a thread that stayed"
    );
    assert!(audits > 0);
}

fn a_thread_of_any_name_is_shown() {
    let named = [
        ("", ""),
        ("worker 7", "worker 7"),
        ("a) (b: c\td", "a) (b: c\td"),
        ("two\nlines", "two\nlines"),
        ("back\\slash", "back\\slash"),
        // What the kernel keeps has 15 bytes.
        ("sixteen letters.", "sixteen letters"),
    ];
    for (name, shown_as) in named {
        let other = Other::start(name, || ());
        let shown = audit();
        assert_eq!(shown[&other.thread].name, shown_as);
        assert!(!shown[&other.thread].is_kernel_worker);
        assert_eq!(raw(shown[&other.thread].group_ids), kernel::ids());
    }
}

fn a_name_that_the_kernel_cut_in_a_letter_is_shown() {
    let other = Other::start("Gr\u{fc}\u{df}e aus K\u{f6}ln", || ());
    let other_kept = Other::start("\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}", || ());
    let shown = audit();
    assert_eq!(shown[&other.thread].name, "Gr\u{fc}\u{df}e aus K\u{f6}");
    assert_eq!(
        shown[&other_kept.thread].name,
        "\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fc}\u{fffd}"
    );
    assert_eq!(shown.len(), 3);
}

fn a_thread_that_is_named_as_an_io_uring_thread_is_none() {
    let other = Other::start("iou-sqp-1004", || ());
    let shown = audit();
    assert_eq!(shown[&other.thread].name, "iou-sqp-1004");
    assert!(!shown[&other.thread].is_kernel_worker);
}

fn an_io_uring_thread_is_told_apart() {
    let other = Other::start("other", || ());
    assert!(audit().values().all(|thread| !thread.is_kernel_worker));
    let ring = ring::idle().unwrap();
    let shown = audit();
    let of_io_uring: Vec<_> = shown
        .values()
        .filter(|thread| thread.is_kernel_worker)
        .collect();
    let [polls] = of_io_uring[..] else {
        panic!("{shown:#?}")
    };
    assert!(polls.to_string().ends_with("; a kernel worker"), "{polls}");
    assert_eq!(raw(polls.group_ids), kernel::ids());
    assert_eq!(shown.len(), 3);
    assert!(!shown[&other.thread].is_kernel_worker);
    // Its name is set a moment later.
    let comm = format!("/proc/self/task/{}/comm", polls.thread_id);
    while !read_to_string(&comm).unwrap().starts_with("iou-sqp-") {
        std::thread::yield_now();
    }
    is_what_the_kernel_shows();
    drop(ring);
}

fn an_io_uring_thread_keeps_its_identity_under_a_process_guard() {
    let start = kernel::identity();
    let _ring = ring::idle().unwrap();
    let guard = GroupGuard::assume_on_thread(1001).unwrap();
    for thread in audit().values() {
        let expected = if kernel::is_io_worker(thread.thread_id as i32) {
            start.ids
        } else {
            [1001, 1001, start.ids[2], 1001]
        };
        assert_eq!(raw(thread.group_ids), expected, "{thread}");
    }
    guard.restore().unwrap();
    assert_eq!(kernel::identity(), start);
}

/// Runs `f` in a child that sees nothing in there.
fn with_nothing_at(folder: &str, f: impl FnOnce()) {
    kernel::passes_in_child(|| {
        kernel::hide(folder);
        f();
    });
}

fn an_audit_without_proc_is_an_error() {
    with_nothing_at("/proc", || {
        let before = kernel::getresgid();
        let error = threads().unwrap_err();
        assert!(
            matches!(error, Error::ThreadsUnreadable { .. }),
            "{error:?}"
        );
        assert!(
            error.to_string().contains("/proc must be mounted"),
            "{error}"
        );
        // A guard can do without it.
        let guard = GroupGuard::assume_on_thread(1001).unwrap();
        assert_eq!(kernel::getresgid(), [1001, 1001, before[2]]);
        guard.restore().unwrap();
        assert_eq!(kernel::getresgid(), before);
    });
}

fn an_audit_of_files_that_look_like_proc_is_an_error() {
    let read = |file: &str| std::fs::read(format!("/proc/thread-self/{file}")).unwrap();
    let files = ["status", "stat", "comm"].map(|file| (file, read(file)));
    let thread = format!("/proc/self/task/{}", kernel::gettid());
    assert_eq!(threads().unwrap().len(), 1);
    kernel::hide("/proc");
    for folder in [thread.as_str(), "/proc/thread-self"] {
        std::fs::create_dir_all(folder).unwrap();
        files
            .iter()
            .for_each(|(file, text)| std::fs::write(format!("{folder}/{file}"), text).unwrap());
    }
    let error = threads().unwrap_err();
    assert!(
        matches!(error, Error::ThreadsUnreadable { .. }) && error.to_string().contains("no procfs"),
        "{error}"
    );
}

/// A list that leaves out who reads it is no list of this process's threads.
fn an_audit_without_its_own_thread_is_an_error() {
    with_nothing_at("/proc/self/task", || {
        assert!(
            matches!(threads(), Err(Error::ThreadsUnreadable { .. })),
            "{:?}",
            threads()
        )
    });
}
