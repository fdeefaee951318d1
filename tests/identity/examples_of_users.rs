//! The examples about users, judged by the owners of files and by what a program that they start can do.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cases;
use crate::common::Case;
use crate::common::calls;
use crate::common::kernel::{self, Capabilities};
use crate::common::program::{self, TRIES_TO_RETURN};
use crate::common::sandbox::{self, Answer};
use crate::examples::{Examples, Ran};
use privilege_guard::{Identity, IdentityGuard};

pub const CASES: &[Case] = cases![
    Setgid: the_file_server_under_load,
    Root: a_set_user_id_program,
    Root: a_set_user_id_program_whose_filter_lies,
    Root: a_program_that_is_run_as_somebody,
    Root: a_program_that_is_run_has_no_capability_of_its_parent,
    Root: an_effective_guard_lets_a_program_return,
    Root: run_as_passes_the_exit_status_on,
    NoSetgid: run_as_without_privilege,
];

fn open_folder(path: PathBuf) -> PathBuf {
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
    path
}

/// User, group and supplementary group of a client of the file server.
fn client(number: u32) -> [u32; 3] {
    [3001, 2001, 2201].map(|first| first + number)
}

const CLIENTS: u32 = 8;
const CONNECTIONS: u32 = 16;
const REQUESTS: u32 = 2000;

fn the_file_server_under_load() {
    let examples = Examples::new();
    let folder = open_folder(examples.temporary().join("served"));
    let ran = Ran::of(
        examples
            .command("file_server")
            .args(["--clients", &CLIENTS.to_string()])
            .args(["--connections", &CONNECTIONS.to_string()])
            .args(["--requests", &REQUESTS.to_string()])
            .arg("--folder")
            .arg(&folder),
    );
    ran.verified_at_once(0, &["verified: requests that failed: 0\n"]);

    let (mut wrong, mut replies) = (0, 0);
    for request in 0..REQUESTS {
        let [user, group, _] = client((request + request / CONNECTIONS) % CLIENTS);
        let reply = folder.join(format!("reply.{request}"));
        let made = fs::metadata(&reply).unwrap();
        wrong += u32::from((made.uid(), made.gid()) != (user, group));
        // Of three files each: what the client could read of its own, and of the next client's.
        wrong += u32::from(fs::read_to_string(&reply).unwrap() != "3 0\n");
        replies += 1;
    }
    let accesses = CLIENTS * CLIENTS * 3;
    let wrong_accesses: u32 = (0..CLIENTS)
        .map(|reader| wrong_accesses(&folder, reader))
        .sum();
    let files = fs::read_dir(&folder).unwrap().count();
    assert_eq!(
        (wrong, replies, wrong_accesses, files),
        (0, REQUESTS, 0, (REQUESTS + 3 * CLIENTS) as usize)
    );
    println!(
        "= {replies} files of {CLIENTS} clients on {CONNECTIONS} connections: 0 wrong owners or groups; {} accesses under load, \
         {accesses} compared with raw calls: 0 wrong",
        6 * REQUESTS
    );
}

/// Compares what a process of this client may read, by raw calls alone, with what it must.
fn wrong_accesses(folder: &Path, reader: u32) -> u32 {
    let [user, group, supplementary] = client(reader);
    let status = kernel::in_child(|| {
        kernel::start_from([group; 4], &[supplementary]);
        kernel::raw_setresuid(Some(user), Some(user), Some(user)).unwrap();
        let wrong = (0..CLIENTS).flat_map(|owner| {
            ["user", "group", "supplementary"].map(|by| {
                let read = fs::read(folder.join(format!("for-{by}.{owner}")));
                i32::from(read.is_ok() != (owner == reader))
            })
        });
        wrong.sum()
    });
    status.code().unwrap().unsigned_abs()
}

const PLAYER: u32 = 1234;

/// Installs the game for this owner; returns its command and the folder of the scores.
fn installed_for(examples: &Examples, owner: u32) -> (Command, PathBuf) {
    let game = examples.copy("setuid_score");
    let scores = open_folder(examples.temporary().join(format!("scores-of-{owner}")));
    fs::set_permissions(&scores, PermissionsExt::from_mode(0o755)).unwrap();
    chown(&scores, Some(owner), None).unwrap();
    chown(&game, Some(owner), Some(0)).unwrap();
    fs::set_permissions(&game, PermissionsExt::from_mode(0o4755)).unwrap();
    let mut command = examples.command("setuid_score");
    command.arg("play").arg(&scores);
    (command, scores)
}

fn a_set_user_id_program() {
    for owner in [0, 5] {
        let examples = Examples::new();
        let (mut command, scores) = installed_for(&examples, owner);
        let ran = Ran::of(command.uid(PLAYER).gid(PLAYER));
        assert_eq!(ran.code, Some(0), "{ran:?}");
        let start =
            format!("started with real 1234, effective {owner}, saved {owner}, filesystem {owner}");
        assert!(ran.stdout.contains(&start), "{ran:?}");
        // From /proc, by the program itself.
        let end = "ends with user real 1234, effective 1234, saved 1234, filesystem 1234; \
                   group real 1234, effective 1234, saved 1234, filesystem 1234, supplementary []; \
                   capabilities effective 0, permitted 0, inheritable 0, ambient 0\n";
        assert!(ran.stdout.ends_with(end), "{ran:?}");
        let made: Vec<_> = fs::read_dir(&scores)
            .unwrap()
            .map(|file| file.unwrap())
            .collect();
        assert_eq!(made.len(), 1, "{made:?}");
        let score = made[0].metadata().unwrap();
        assert_eq!((score.uid(), score.gid()), (owner, PLAYER));
        assert_eq!(
            fs::read_to_string(made[0].path()).unwrap(),
            "user 1234: 4200\n"
        );
    }
}

fn a_set_user_id_program_whose_filter_lies() {
    for owner in [0, 5] {
        let examples = Examples::new();
        let (mut command, scores) = installed_for(&examples, owner);
        // SAFETY: the child makes system calls, and allocates while it is a process of one thread.
        unsafe {
            command.pre_exec(|| {
                let call = (calls::SYS_setresuid, &[(0, u32::MAX), (1, PLAYER)]);
                sandbox::answer_over_exec(call.0, call.1, Answer::SuccessWithoutDoing);
                kernel::become_user(PLAYER, PLAYER);
                Ok(())
            });
        }
        let ran = Ran::of(&mut command);
        let lie = "setresuid: it reported success without effect";
        assert!(ran.stderr.contains(lie), "{ran:?}");
        assert_ne!(ran.code, Some(0), "{ran:?}");
        assert_eq!(fs::read_dir(&scores).unwrap().count(), 0);
    }
}

/// A copy of this test that every user may execute, which shows its status and tries to return.
fn tries_to_return(examples: &Examples) -> PathBuf {
    let copy = examples.temporary().join("program");
    fs::copy("/proc/self/exe", &copy).unwrap();
    fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
    copy
}

/// What a program of [`TRIES_TO_RETURN`] is and could do.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    users: String,
    groups: String,
    supplementary: String,
    /// Inheritable, permitted, effective, ambient.
    capabilities: [u64; 4],
    /// `setresuid`, `setresgid`, `setgroups`, all to 0 or none.
    returns: [bool; 3],
}

impl Seen {
    fn in_output(text: &str) -> Self {
        let field = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let words = line.unwrap_or_else(|| panic!("no {name} in {text}"));
            words.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let refused = format!("Err({})", libc::EPERM);
        Seen {
            users: field("Uid"),
            groups: field("Gid"),
            supplementary: field("Groups"),
            capabilities: ["CapInh", "CapPrm", "CapEff", "CapAmb"]
                .map(|set| u64::from_str_radix(&field(set), 16).unwrap()),
            returns: ["setresuid", "setresgid", "setgroups"].map(|call| {
                let result = field(call);
                assert!(result == refused || result == "Ok(())", "{call}: {result}");
                result != refused
            }),
        }
    }

    fn without_privilege(user: u32, group: u32, supplementary: &str) -> Self {
        let four = |id: u32| {
            [
                id.to_string(),
                id.to_string(),
                id.to_string(),
                id.to_string(),
            ]
        };
        Seen {
            users: four(user).join(" "),
            groups: four(group).join(" "),
            supplementary: supplementary.into(),
            capabilities: [0; 4],
            returns: [false; 3],
        }
    }
}

/// Runs the program by the example, from the state that this process is in.
fn run_as(examples: &Examples, identity: &str) -> Seen {
    let program = tries_to_return(examples);
    let mut run_as = examples.command("run_as");
    let role = program::copy_in_role(&program, TRIES_TO_RETURN);
    run_as.args([identity, "--"]).arg(&program);
    run_as.envs(
        role.get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    let ran = Ran::of(&mut run_as);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.is_empty(), "{ran:?}");
    Seen::in_output(&ran.stdout)
}

fn a_program_that_is_run_as_somebody() {
    let examples = Examples::new();
    kernel::start_from([0; 4], &[7, 8]);
    assert_eq!(
        run_as(&examples, "1000:1001"),
        Seen::without_privilege(1000, 1001, "")
    );
    // An account with its groups, as the system's own program has them.
    let account = "games";
    let groups = Command::new("id").args(["-G", account]).output().unwrap();
    let mut groups: Vec<u32> = String::from_utf8(groups.stdout)
        .unwrap()
        .split_whitespace()
        .map(|group| group.parse().unwrap())
        .collect();
    groups.sort_unstable();
    let groups: Vec<String> = groups.iter().map(u32::to_string).collect();
    assert_eq!(
        run_as(&examples, account),
        Seen::without_privilege(5, 60, &groups.join(" "))
    );
    assert_eq!(
        run_as(&examples, "games:daemon"),
        Seen::without_privilege(5, 1, "")
    );
    println!(
        "= a program run as 3 identities: ids and groups exact, no capabilities, 9 of 9 calls to return refused"
    );
}

/// Inheritable and ambient ones too, which an exec would keep.
fn a_program_that_is_run_has_no_capability_of_its_parent() {
    let examples = Examples::new();
    let all = kernel::capabilities();
    kernel::set_capabilities(Capabilities {
        inheritable: kernel::CAP_SETUID | 1,
        ..all
    });
    assert_eq!(
        // SAFETY: numbers only.
        unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, 7, 0, 0) },
        0
    );
    assert_eq!(
        run_as(&examples, "1000:1001"),
        Seen::without_privilege(1000, 1001, "")
    );
}

fn an_effective_guard_lets_a_program_return() {
    let examples = Examples::new();
    let program = tries_to_return(&examples);
    let client = Identity::new(1000, 1001).supplementary([1010]);
    let output = || {
        program::copy_in_role(&program, TRIES_TO_RETURN)
            .output()
            .unwrap()
    };
    let seen =
        |output: std::process::Output| Seen::in_output(&String::from_utf8(output.stdout).unwrap());
    let effective = IdentityGuard::assume_effective_on_thread(&client)
        .unwrap()
        .run(output);
    let effective = seen(effective);
    assert_eq!(effective.users, "0 1000 1000 1000");
    assert_eq!(effective.returns, [true; 3]);
    let both = IdentityGuard::assume_real_and_effective_on_thread(&client)
        .unwrap()
        .run(output);
    assert_eq!(seen(both), Seen::without_privilege(1000, 1001, "1010"));
}

fn run_as_passes_the_exit_status_on() {
    let examples = Examples::new();
    let code = |arguments: &[&str]| {
        let ran = Ran::of(
            examples
                .command("run_as")
                .env("PATH", "/usr/bin:/bin")
                .args(arguments),
        );
        (ran.code, ran.stderr)
    };
    for (script, status) in [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137)] {
        let (found, _) = code(&["1000:1001", "--", "sh", "-c", script]);
        assert_eq!(found, Some(status), "{script}");
    }
    for (arguments, status, reason) in [
        (
            &["1000:1001", "--", "no-such-program"][..],
            127,
            "run_as: no-such-program: ",
        ),
        (
            &["1000:1001", "--", "/etc/passwd"],
            126,
            "run_as: /etc/passwd: ",
        ),
        (
            &["no-such-user", "--", "true"],
            125,
            "no user is named \"no-such-user\"",
        ),
        (
            &["games:no-such-group", "--", "true"],
            125,
            "no group is named \"no-such-group\"",
        ),
        (
            &["4321", "--", "true"],
            125,
            "no account has the user ID 4321",
        ),
        (&["1:2:3", "--", "true"], 125, "is not an identity"),
        (&["4294967295:1", "--", "true"], 125, "4294967295"),
        (&["1000:1001"], 125, "Usage: "),
    ] {
        let (found, stderr) = code(arguments);
        assert_eq!(found, Some(status), "{arguments:?}: {stderr}");
        assert!(stderr.contains(reason), "{arguments:?}: {stderr}");
    }
    assert_eq!(code(&["--help"]).0, Some(0));
}

fn run_as_without_privilege() {
    let examples = Examples::new();
    let run = |identity: &str| {
        Ran::of(
            examples
                .command("run_as")
                .args([identity, "--", "/bin/sh", "-c", "exit 7"]),
        )
    };
    let ran = run("4321:4321");
    ran.fails(125, &["run_as: cannot change to ", "this requires CAP_SET"]);
    // Whoever one is already.
    let threads = kernel::all_threads();
    if threads[0].identity.groups.is_empty() {
        let own = (threads[0].privileges.users[1], threads[0].identity.ids[1]);
        let ran = run(&format!("{}:{}", own.0, own.1));
        assert_eq!(ran.code, Some(7), "{ran:?}");
    }
}
