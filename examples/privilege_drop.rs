//! The privilege dropping pattern: do what needs privilege, then give it up for good, and find out that it is gone.
//!
//! Run as root: `cargo build --examples && sudo target/debug/examples/privilege_drop`.

mod common;

use std::process::ExitCode;

use common::files::{self, may_read};
use common::kernel::{self, Identity, Status};
use common::{Outcome, verify};
use privilege_guard::{GroupGuard, GroupIds, PermanentDrop, supplementary_groups};

const GROUP: u32 = 1001;
const USER: u32 = 1001;

fn main() -> ExitCode {
    common::run_as_root(&[0, GROUP, USER], privilege_drop)
}

fn privilege_drop() -> Outcome {
    let old = GroupIds::current()?;
    let old_groups = supplementary_groups()?;
    // The folder is the later user's, so that it can clear it away.
    let folder = files::folder(USER)?;
    let protected = files::file(
        folder.path().join("shadow"),
        (0, old.effective.as_raw()),
        0o640,
        "root:*:\n",
    )?;

    verify(
        format_args!(
            "the protected file (root:{}, 0640) can be read",
            old.effective
        ),
        may_read(&protected)?,
        true,
    )?;

    // What the tutorial does. It drops nothing: the user is still the file's owner, and root.
    let still = GroupGuard::assume(GROUP)?.run(|| may_read(&protected))?;
    verify(
        "under another group only, as `os.setregid(1001, 1001)`, it can be read",
        still,
        true,
    )?;

    let report = PermanentDrop::to_group(GROUP).user(USER).apply()?;
    println!("dropped: {report}");

    verify(
        "after the drop, it can be read",
        may_read(&protected)?,
        false,
    )?;
    let old_ids = [old.real, old.effective, old.saved, old.filesystem]
        .into_iter()
        .chain(old_groups)
        .map(|gid| gid.as_raw());
    kernel::try_to_get_back(old_ids.filter(|&gid| gid != GROUP))?.verify_all_refused()?;
    let now = Status::read()?;
    verify("groups", now.groups.clone(), Identity::only(GROUP))?;
    verify("all user ids are 1001", now.users == [USER; 4], true)?;
    verify("capabilities", now.held_capabilities(), 0)
}
