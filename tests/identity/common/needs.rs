//! What a case needs, and what of it this run lacks.

use std::process::{Command, Stdio};

use super::kernel;

/// What a case needs; where it is not there, the case is ignored and says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// CAP_SETGID over the group ids 0 to 9999, and `setgroups` allowed: root, or a user namespace with mapped subordinate ids.
    Setgid,
    /// Root outside any user namespace, with [`kernel::ROOT_CAPABILITIES`]: other users, file capabilities, new namespaces with any map.
    Root,
    /// No CAP_SETGID: an ordinary user.
    NoSetgid,
    /// As `Setgid`, and time: only where it is asked for, with `--ignored` or `--include-ignored`.
    Long,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    Root,
    User,
    Userns,
}

/// What this run has, asked of the kernel.
pub fn environment() -> Environment {
    let setgid = kernel::capabilities().effective & kernel::CAP_SETGID != 0;
    match (setgid, kernel::maps_all_ids()) {
        (true, true) => Environment::Root,
        (true, false) => Environment::Userns,
        (false, _) => Environment::User,
    }
}

pub fn missing(needs: Needs) -> Option<String> {
    let mapped = kernel::are_mapped(0..10_000);
    let needs = if needs == Needs::Long {
        Needs::Setgid
    } else {
        needs
    };
    match (needs, environment()) {
        (Needs::Nothing, _)
        | (Needs::Setgid, Environment::Root)
        | (Needs::NoSetgid, Environment::User) => None,
        (Needs::Root, Environment::Root)
            if kernel::capabilities().effective & kernel::ROOT_CAPABILITIES
                == kernel::ROOT_CAPABILITIES =>
        {
            None
        }
        (Needs::Setgid, Environment::Userns) if mapped && !kernel::setgroups_denied() => None,
        (Needs::Setgid, Environment::Userns) => Some(
            "needs mapped group ids and setgroups (unshare --user --map-root-user --map-auto)"
                .into(),
        ),
        (Needs::Setgid, Environment::User) => Some("needs CAP_SETGID".into()),
        (Needs::Root, _) => {
            Some("needs root with its capabilities, outside any user namespace".into())
        }
        (Needs::NoSetgid, _) => Some("for ordinary users: this run has CAP_SETGID".into()),
        (Needs::Long, _) => unreachable!("as Setgid"),
    }
}

// The rest is for `+` in a list of cases. They run while other threads do: none changes anything in this process.

/// The program strace, and that it may trace.
pub fn strace() -> Option<String> {
    let mut strace = Command::new("strace");
    strace
        .args(["-o", "/dev/null", "strace", "-V"])
        .stdin(Stdio::null());
    match strace.output() {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!(
            "strace may not trace here: {}",
            String::from_utf8_lossy(&output.stderr).trim_end()
        )),
        Err(error) => Some(format!("needs the program strace: {error}")),
    }
}

/// A user namespace that a process may make by itself.
pub fn user_namespace() -> Option<String> {
    kernel::why_no_user_namespace()
        .map(|error| format!("needs a user namespace, and none can be made here: {error}"))
}

/// An io_uring: many systems and containers allow none.
pub fn io_uring() -> Option<String> {
    super::ring::idle()
        .err()
        .map(|error| format!("needs an io_uring: {error}"))
}

/// The group that most examples and messages are about.
pub fn group_1004() -> Option<String> {
    (!kernel::are_mapped(1004..1005))
        .then(|| "needs group 1004, which this user namespace does not map".into())
}

/// What `unshare --map-auto` runs.
pub fn uidmap() -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_there =
        |program: &&str| std::env::split_paths(&path).any(|folder| folder.join(program).is_file());
    let missing = ["unshare", "newuidmap", "newgidmap"]
        .iter()
        .find(|program| !is_there(program))?;
    Some(format!(
        "needs the program {missing}, of the package {}",
        if *missing == "unshare" {
            "util-linux"
        } else {
            "uidmap"
        }
    ))
}
