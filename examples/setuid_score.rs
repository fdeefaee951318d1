//! A set-user-ID program, as the games with a score file of their own: it lives as the user who starts it, takes the rights of its owner
//! for the one write, and gives them up at its end.
//!
//! Run as root, it installs itself in a folder of its own, once for the user `games` and once for root, and plays as user 1234:
//! `cargo build --examples && sudo target/debug/examples/setuid_score`.

mod common;

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::ExitCode;

use common::files::{self, may_read};
use common::game::{self, PLAYER};
use common::kernel::Status;
use common::{Outcome, verify};
use privilege_guard::{UserGuard, UserIds};
use rustix::process::Uid;
use rustix::thread::set_thread_res_uid;

/// The user `games`, on many systems.
const GAMES: u32 = 5;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match &arguments[..] {
        [_, play, scores] if play == "play" => common::exit_code(play_as_user(scores.as_ref())),
        _ => common::run_as_root(&[0, GAMES, PLAYER], || {
            install_and_play(GAMES)?;
            install_and_play(0)
        }),
    }
}

/// The program: real user the player, effective and saved user the owner of the file.
fn play_as_user(folder: &Path) -> Outcome {
    let start = UserIds::current()?;
    println!("started with {start}");
    if start.real == start.effective {
        return Err("not installed as a set-user-ID program".into());
    }
    let score = folder.join(format!("score.{}", start.real));
    let refused = || -> io::Result<bool> {
        let made = File::create_new(folder.join("forged"));
        Ok(made.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied))
    };

    // First of all, permission checks use the player's own id.
    let as_player = UserGuard::assume_effective(start.real)?;
    let living = Status::read()?;
    verify("as the player, making a score is refused", refused()?, true)?;
    verify("capabilities in use", living.effective_capabilities, 0)?;

    UserGuard::assume_effective(start.effective)?.run(|| write_score(&score, 4200))?;
    println!("wrote a score as user {}", start.effective);
    verify("identity, as before", Status::read()?, living)?;
    verify("after that, making a score is refused", refused()?, true)?;
    verify("the score can be read", may_read(&score)?, false)?;

    // For ever: the saved id too. This needs no privilege, and root's capabilities go with the last id that is 0.
    let report = as_player.drop_permanently()?;
    println!("{report}");
    let owner = Uid::from_raw(start.effective.as_raw());
    verify(
        "taking the owner's id again is refused",
        set_thread_res_uid(None, Some(owner), None).is_err(),
        true,
    )?;
    let now = Status::read()?;
    verify(
        "all user ids are the player's",
        now.users == [start.real.as_raw(); 4],
        true,
    )?;
    verify("capabilities", now.held_capabilities(), 0)?;
    println!("ends with {now}");
    Ok(())
}

fn write_score(path: &Path, score: u32) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    file.write_all(format!("user {PLAYER}: {score}\n").as_bytes())
}

fn install_and_play(owner: u32) -> Outcome {
    let folder = files::folder(0)?;
    game::check_folder(folder.path())?;
    let scores = folder.path().join("scores");
    fs::create_dir(&scores)?;
    fs::set_permissions(&scores, Permissions::from_mode(0o755))?;
    chown(&scores, Some(owner), None)?;
    game::install_and_play(
        folder.path(),
        (owner, 0),
        0o4755,
        format_args!("for user {owner}, 4755"),
        &scores,
    )?;

    let score = scores.join(format!("score.{PLAYER}"));
    let made = fs::metadata(&score)?;
    verify(
        format_args!("the score is {owner}:{PLAYER}, 0600"),
        (made.uid(), made.gid(), made.mode() & 0o7777) == (owner, PLAYER, 0o600),
        true,
    )?;
    verify("files in the folder", fs::read_dir(&scores)?.count(), 1)?;
    verify(
        "it holds",
        fs::read_to_string(&score)?.trim_end(),
        &format!("user {PLAYER}: 4200"),
    )
}
