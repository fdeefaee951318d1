//! Installing an example as a set-user-ID or set-group-ID program, and running it as a player.

use std::fmt;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use nix::sys::statvfs::{FsFlags, statvfs};

use super::kernel::Status;
use super::{CannotRun, Outcome};

/// A user without privileges.
pub const PLAYER: u32 = 1234;

/// Copies this program to the folder with this owner and mode, and plays there as [`PLAYER`].
///
/// `installed` describes owner and mode.
pub fn install_and_play(
    folder: &Path,
    (user, group): (u32, u32),
    mode: u32,
    installed: fmt::Arguments<'_>,
    scores: &Path,
) -> Outcome {
    let game = folder.join("game");
    fs::copy("/proc/self/exe", &game)?;
    chown(&game, Some(user), Some(group))?;
    // After chown, which clears the bit.
    fs::set_permissions(&game, Permissions::from_mode(mode))?;

    println!("-- the game, installed {installed}, run by user {PLAYER}");
    // Without supplementary groups, as std::process has it where the user is named.
    let played = Command::new(&game)
        .arg("play")
        .arg(scores)
        .uid(PLAYER)
        .gid(PLAYER)
        .status();
    let played = played.map_err(|error| format!("the game did not start: {error}"))?;
    println!("-- and its parent, as root");
    if !played.success() {
        return Err(format!("the game failed: {played}").into());
    }
    Ok(())
}

/// Refuses a folder in which the kernel ignores the bits of a program.
pub fn check_folder(folder: &Path) -> Outcome {
    if Status::read()?.no_new_privs {
        return Err(CannotRun(
            "no_new_privs is set here, and set-user-ID and set-group-ID programs get no id".into(),
        )
        .into());
    }
    if statvfs(folder)?
        .flags()
        .intersects(FsFlags::ST_NOSUID | FsFlags::ST_NOEXEC)
    {
        let folder = std::env::temp_dir();
        return Err(CannotRun(format!(
            "{} is mounted nosuid or noexec; name another folder in TMPDIR",
            folder.display()
        ))
        .into());
    }
    Ok(())
}
