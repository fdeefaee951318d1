//! Cases that fail today, each a finding; each moves to the file of its promise once it is fixed.

mod common;

use common::kernel::{self, Namespace};
use common::sandbox;
use common::scopes::BOTH_SCOPES;
use common::subscriber::{listen_and, told};
use privilege_guard::{Error, GroupChange, GroupGuard};

fn main() -> std::process::ExitCode {
    common::main(cases![
        Nothing: a_subscriber_whose_guard_is_refused_ends,
        Nothing: a_subscriber_that_uses_a_guard_on_a_refusal_is_told_once,
        Root: a_mapped_65534_taken_on_without_cap_setgid_is_irreversible,
        Root: no_groups_asked_for_where_there_are_none_and_setgroups_is_denied,
        Nothing: a_signal_handler_does_not_run_before_the_abort,
    ])
}

/// Ends in a stack overflow: a refusal inside a refusal's event is told again.
fn a_subscriber_whose_guard_is_refused_ends() {
    listen_and(|| assert!(GroupGuard::assume(u32::MAX).is_err()));
    for scope in BOTH_SCOPES {
        assert!(scope.assume(GroupChange::both(u32::MAX)).is_err());
        assert_eq!(told().len(), 1);
    }
}

/// The subscriber's own guard is told, to the subscriber that is telling the refusal.
fn a_subscriber_that_uses_a_guard_on_a_refusal_is_told_once() {
    listen_and(|| GroupGuard::assume_on_thread(kernel::getresgid()[0]).unwrap().restore().unwrap());
    for scope in BOTH_SCOPES {
        assert!(scope.assume(GroupChange::both(u32::MAX)).is_err());
        assert_eq!(told().len(), 1);
    }
}

/// The map has 65534, as that of most containers has, but is not whole.
fn a_mapped_65534_taken_on_without_cap_setgid_is_irreversible() {
    let container = Namespace { ids: [1000, 1000, 65534, 1000], groups: &[], gid_map: "0 0 65536\n", denies_setgroups: false };
    kernel::passes_in(container, || {
        kernel::give_up_capabilities(kernel::CAP_SETGID);
        let before = kernel::identity();
        for scope in BOTH_SCOPES {
            let error = scope.assume(GroupChange::both(65534)).map(|guard| guard.restore()).unwrap_err();
            assert!(matches!(error, Error::Irreversible { .. }), "{error:?}");
            assert_eq!(kernel::identity(), before);
            // Here nothing is lost.
            scope.assume(GroupChange::new().real(65534)).unwrap().restore().unwrap();
            assert_eq!(kernel::identity(), before);
        }
    });
}

/// The change asks for what is there already; "whatever can be undone is served".
fn no_groups_asked_for_where_there_are_none_and_setgroups_is_denied() {
    let denied = Namespace { ids: [1, 2, 3, 2], groups: &[], gid_map: "0 0 10\n", denies_setgroups: true };
    kernel::passes_in(denied, || {
        for scope in BOTH_SCOPES {
            scope.assume(GroupChange::both(4).no_supplementary()).unwrap().restore().unwrap();
        }
    });
}

fn refused_undoing() -> GroupGuard {
    let own = kernel::getresgid()[0];
    let guard = GroupGuard::assume(own).unwrap();
    sandbox::refuse(libc::SYS_setresgid, &[(0, own), (1, own), (2, own)]);
    guard
}

extern "C" fn handle(_: i32) {
    // SAFETY: async-signal-safe.
    unsafe { libc::_exit(0) };
}

/// A pipe without reader as stderr, and a handler of SIGPIPE: code of the program runs as the wrong group, and here ends it with success.
fn a_signal_handler_does_not_run_before_the_abort() {
    kernel::aborts(|| {
        let guard = refused_undoing();
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        // SAFETY: the handler does nothing that a signal handler may not do.
        unsafe { libc::signal(libc::SIGPIPE, handle as *const () as libc::sighandler_t) };
        rustix::stdio::dup2_stderr(&writer).unwrap();
        drop(reader);
        drop(guard);
    });
}
