//! A set-group-ID program, as the games with a common score file: it lives as its user, lends itself its group for the one write, and
//! gives it up for good.
//!
//! Run as root, it installs itself in a folder of its own, and plays as user 1234:
//! `cargo build --examples && sudo target/debug/examples/setgid_score`.

mod common;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::ExitCode;

use common::files::{self, may_read, may_write};
use common::game::{self, PLAYER};
use common::kernel::{self, Identity, Status};
use common::{Outcome, verify};
use privilege_guard::{GroupGuard, GroupIds};

/// The group `games`, on many systems.
const GAMES: u32 = 60;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match &arguments[..] {
        [_, play, scores] if play == "play" => common::exit_code(play_as_user(scores.as_ref())),
        _ => common::run_as_root(&[0, GAMES, PLAYER], install_and_play),
    }
}

/// The program: real group the user's, effective and saved group `games`.
fn play_as_user(scores: &Path) -> Outcome {
    let start = GroupIds::current()?;
    println!("started with {start}");
    if start.real == start.effective {
        return Err("not installed as a set-group-ID program".into());
    }

    // First of all, the user's own group is what permission checks go by.
    let as_user = GroupGuard::assume_effective(start.real)?;
    verify(
        "as its user, it can write the score file",
        may_write(scores)?,
        false,
    )?;

    GroupGuard::assume_effective(start.effective)?.run(|| write_score(scores, 4200))?;
    println!("wrote a score as group {}", start.effective);
    verify(
        "after that, it can write the score file",
        may_write(scores)?,
        false,
    )?;

    let report = as_user.drop_permanently()?;
    println!("dropped: {report}");

    verify(
        "after the drop, it can write the score file",
        may_write(scores)?,
        false,
    )?;
    verify(
        "after the drop, it can read the score file",
        may_read(scores)?,
        false,
    )?;
    kernel::try_to_get_back([start.effective.as_raw()])?.verify_all_refused()?;
    let now = Status::read()?;
    verify("groups", now.groups.clone(), Identity::only(PLAYER))?;
    verify(
        "all user ids are the player's",
        now.users == [PLAYER; 4],
        true,
    )?;
    verify("capabilities", now.held_capabilities(), 0)
}

fn write_score(scores: &Path, score: u32) -> io::Result<()> {
    // Closed when written: an open file would outlive the group.
    OpenOptions::new()
        .append(true)
        .open(scores)?
        .write_all(format!("user {PLAYER}: {score}\n").as_bytes())
}

fn install_and_play() -> Outcome {
    let folder = files::folder(0)?;
    game::check_folder(folder.path())?;
    let scores = files::file(folder.path().join("scores"), (0, GAMES), 0o660, "")?;
    game::install_and_play(
        folder.path(),
        (0, GAMES),
        0o2755,
        format_args!("root:{GAMES} 2755"),
        &scores,
    )?;

    let kept = fs::metadata(&scores)?;
    verify(
        format_args!("the score file is root:{GAMES}, 0660"),
        (kept.uid(), kept.gid(), kept.mode() & 0o7777) == (0, GAMES, 0o660),
        true,
    )?;
    verify(
        "it holds",
        fs::read_to_string(&scores)?.trim_end(),
        &format!("user {PLAYER}: 4200"),
    )
}
