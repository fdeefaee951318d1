//! The privilege dropping pattern: do what needs privilege, then give it up for good, and find out that it is gone.
//!
//! Run as root: `cargo build --examples && sudo target/debug/examples/privilege_drop`.

mod drop_common;

use std::process::ExitCode;

use drop_common::{Result, may_read, verify};
use privilege_guard::{GroupGuard, GroupIds, PermanentDrop, supplementary_groups};

const GROUP: u32 = 1001;
const USER: u32 = 1001;

fn main() -> ExitCode {
    drop_common::run_as_root(&[0, GROUP, USER], privilege_drop)
}

fn privilege_drop() -> Result<()> {
    let old = GroupIds::current()?;
    let old_groups = supplementary_groups()?;
    // The folder is the later user's, so that it can clear it away.
    let folder = drop_common::folder(USER)?;
    let protected = drop_common::file(folder.path().join("shadow"), (0, old.effective.as_raw()), 0o640, "root:*:\n")?;

    verify(may_read(&protected)?, format_args!("the protected file (root:{}, 0640) can be read", old.effective))?;

    // What the tutorial does. It drops nothing: the user is still the file's owner, and root.
    let still = GroupGuard::assume(GROUP)?.run(|| may_read(&protected))??;
    verify(still, "under another group only, as `os.setregid(1001, 1001)`, it can still be read")?;

    let report = PermanentDrop::to_group(GROUP).user(USER).apply()?;
    println!("dropped: {report}");

    verify(!may_read(&protected)?, "the protected file can no longer be read")?;
    let old_ids = [old.real, old.effective, old.saved, old.filesystem].into_iter().chain(old_groups).map(|gid| gid.as_raw());
    let tries = drop_common::try_to_get_back(old_ids.filter(|&gid| gid != GROUP))?;
    verify(tries.answered.is_empty(), format_args!("the old group cannot be taken back: {tries}"))?;
    let now = drop_common::own_status()?;
    verify(now.groups == [GROUP; 4] && now.users == [USER; 4], "real, effective, saved and filesystem ids are 1001, of group and user")?;
    verify(now.supplementary.is_empty() && now.held_capabilities == 0, "no supplementary group, no capability")
}
