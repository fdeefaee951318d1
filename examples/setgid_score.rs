//! A set-group-ID program, as the games with a common score file: it lives as its user, lends itself its group for the one write, and
//! gives it up for good.
//!
//! Run as root, it installs itself in a folder of its own, and plays as user 1234:
//! `cargo build --examples && sudo target/debug/examples/setgid_score`.

mod drop_common;

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use drop_common::{CannotRun, Result, may_read, may_write, verify};
use nix::sys::statvfs::{FsFlags, statvfs};
use privilege_guard::{GroupGuard, GroupIds};

/// The group `games`, on many systems.
const GAMES: u32 = 60;
const PLAYER: u32 = 1234;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match &arguments[..] {
        [_, play, scores] if play == "play" => drop_common::run(|| play_as_user(scores.as_ref())),
        _ => drop_common::run_as_root(&[0, GAMES, PLAYER], install_and_play),
    }
}

/// The program: real group the user's, effective and saved group `games`.
fn play_as_user(scores: &Path) -> Result<()> {
    let start = GroupIds::current()?;
    println!("started with {start}");
    if start.real == start.effective {
        return Err("not installed as a set-group-ID program".into());
    }

    // First of all, the user's own group is what permission checks go by.
    let as_user = GroupGuard::assume_effective(start.real)?;
    verify(!may_write(scores)?, "as its user, it cannot write the score file")?;

    GroupGuard::assume_effective(start.effective)?.run(|| write_score(scores, 4200))??;
    println!("wrote a score as group {}", start.effective);
    verify(!may_write(scores)?, "after that, it cannot write the score file")?;

    let report = as_user.drop_permanently()?;
    println!("dropped: {report}");

    verify(!may_write(scores)? && !may_read(scores)?, "for good, it can neither write nor read the score file")?;
    let tries = drop_common::try_to_get_back([start.effective.as_raw()])?;
    verify(tries.answered.is_empty(), format_args!("the group cannot be taken back: {tries}"))?;
    let now = drop_common::own_status()?;
    verify(now.groups == [PLAYER; 4] && now.users == [PLAYER; 4], "all ids are the user's")?;
    verify(now.supplementary.is_empty() && now.held_capabilities == 0, "no supplementary group, no capability")
}

fn write_score(scores: &Path, score: u32) -> io::Result<()> {
    // Closed when written: an open file would outlive the group.
    OpenOptions::new().append(true).open(scores)?.write_all(format!("user {PLAYER}: {score}\n").as_bytes())
}

fn install_and_play() -> Result<()> {
    let folder = drop_common::folder(0)?;
    if drop_common::own_status()?.no_new_privs {
        return Err(CannotRun("no_new_privs is set here, and set-group-ID programs get no group".into()).into());
    }
    if statvfs(folder.path())?.flags().intersects(FsFlags::ST_NOSUID | FsFlags::ST_NOEXEC) {
        let folder = std::env::temp_dir();
        return Err(CannotRun(format!("{} is mounted nosuid or noexec; name another folder in TMPDIR", folder.display())).into());
    }
    let scores = drop_common::file(folder.path().join("scores"), (0, GAMES), 0o660, "")?;
    let game = folder.path().join("game");
    fs::copy("/proc/self/exe", &game)?;
    chown(&game, Some(0), Some(GAMES))?;
    // After chown, which clears the bit.
    fs::set_permissions(&game, Permissions::from_mode(0o2755))?;

    println!("-- the game, installed root:{GAMES} 2755, run by user {PLAYER}");
    // Without supplementary groups, as std::process has it where the user is named.
    let played = Command::new(&game).arg("play").arg(&scores).uid(PLAYER).gid(PLAYER).status();
    let played = played.map_err(|error| format!("the game did not start: {error}"))?;
    println!("-- and its parent, as root");
    if !played.success() {
        return Err(format!("the game failed: {played}").into());
    }

    let kept = fs::metadata(&scores)?;
    verify((kept.uid(), kept.gid(), kept.mode() & 0o7777) == (0, GAMES, 0o660), format_args!("the score file is root:{GAMES}, 0660"))?;
    verify(fs::read_to_string(&scores)? == format!("user {PLAYER}: 4200\n"), "it has the one score")
}
