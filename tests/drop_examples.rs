//! The examples of the permanent drop, run as root, in user namespaces and by ordinary users; and under a kernel that lies to them.

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::Environment;
use common::kernel;
use common::sandbox::{self, Answer};

fn main() -> std::process::ExitCode {
    common::main(cases![
        Setgid: privilege_drop,
        Setgid: check_permissions,
        Setgid: setgid_score,
        Setgid: daemon,
        Setgid: a_daemon_needs_an_account_that_is_not_root,
        Nothing: ordinary_users_are_told_what_is_missing,
        Root: in_a_user_namespace,
        Root: in_a_user_namespace_of_one_id,
        Root: ordinary_users_with_subordinate_ids_get_a_user_namespace,
        Root: a_set_group_id_program_that_gets_no_group_is_told,
        Root: under_filters_that_lie,
        Root: under_filters_that_refuse,
    ])
}

const ALL: [&str; 4] = ["privilege_drop", "check_permissions", "setgid_score", "daemon"];

/// The examples, where every user can run them.
struct Examples(tempfile::TempDir);

impl Examples {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let test = std::env::current_exe().unwrap();
        // target/<profile>/deps/<this test>, target/<profile>/examples/<example>
        let built = test.ancestors().nth(2).unwrap().join("examples");
        for example in ALL {
            let from = built.join(example);
            std::fs::copy(&from, folder.path().join(example))
                .unwrap_or_else(|error| panic!("{}: {error}; cargo build --examples makes it", from.display()));
        }
        let examples = Examples(folder);
        std::fs::create_dir(examples.temporary()).unwrap();
        std::fs::set_permissions(examples.temporary(), PermissionsExt::from_mode(0o1777)).unwrap();
        examples
    }

    fn path(&self, example: &str) -> PathBuf {
        self.0.path().join(example)
    }

    /// What an aborted example leaves behind is cleared away with the rest.
    fn command(&self, example: &str) -> Command {
        let mut command = Command::new(self.path(example));
        command.env("TMPDIR", self.temporary());
        command
    }

    fn temporary(&self) -> PathBuf {
        self.path("tmp")
    }

    fn run(&self, example: &str) -> Ran {
        Ran::of(self.command(example))
    }

    /// After `prepare`, in a process of its own.
    fn run_after(&self, prepare: impl FnOnce(), example: &str) -> Ran {
        let results = tempfile::tempdir().unwrap();
        std::fs::set_permissions(results.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let file = |name: &str| std::fs::File::create(results.path().join(name)).unwrap();
        let (stdout, stderr) = (file("stdout"), file("stderr"));
        let mut command = self.command(example);
        command.stdout(stdout).stderr(stderr);
        let status = kernel::in_child(|| {
            prepare();
            let error = std::os::unix::process::CommandExt::exec(&mut command);
            panic!("{error}");
        });
        let read = |name: &str| std::fs::read_to_string(results.path().join(name)).unwrap();
        Ran { example: example.into(), code: status.code(), stdout: read("stdout"), stderr: read("stderr") }
    }
}

#[derive(Debug)]
struct Ran {
    example: String,
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(mut command: Command) -> Self {
        let Output { status, stdout, stderr } = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let example = Path::new(command.get_program()).file_name().unwrap().to_string_lossy().into_owned();
        Ran { example, code: status.code(), stdout: text(stdout), stderr: text(stderr) }
    }

    /// It says that all is verified, and that each of these was.
    #[track_caller]
    fn verified(&self, lines: &[&str]) {
        let Ran { example, code, stdout, stderr } = self;
        assert_eq!((*code, stderr.as_str()), (Some(0), ""), "{example}: {stdout}");
        assert!(stdout.ends_with("all verified\n"), "{example}: {stdout}");
        for line in lines {
            let found = stdout.lines().any(|printed| printed.strip_prefix("verified: ").is_some_and(|what| what.starts_with(line)));
            assert!(found, "{example}: {line:?} is not in:\n{stdout}");
        }
    }

    /// It says what is missing, and verifies nothing.
    #[track_caller]
    fn cannot_run(&self, reasons: &[&str]) {
        let Ran { example, code, stdout, stderr } = self;
        assert_eq!(*code, Some(2), "{example}: {stdout}{stderr}");
        assert!(!stdout.contains("verified"), "{example}: {stdout}");
        for reason in reasons {
            assert!(stderr.contains(reason), "{example}: {reason:?} is not in:\n{stderr}");
        }
    }
}

const PRIVILEGE_DROP: [&str; 6] = [
    "the protected file (root:",
    "under another group only, as `os.setregid(1001, 1001)`, it can still be read",
    "the protected file can no longer be read",
    "the old group cannot be taken back: ",
    "real, effective, saved and filesystem ids are 1001, of group and user",
    "no supplementary group, no capability",
];

const CHECK_PERMISSIONS: [&str; 7] = [
    "of-1005 opens",
    "of-1006 opens",
    "group 1005 may open of-1005",
    "group 1005 may not open of-1006",
    "group 1006 may not open of-1005",
    "group 1006 may open of-1006",
    "this thread is what it was",
];

const SETGID_SCORE: [&str; 7] = [
    "as its user, it cannot write the score file",
    "after that, it cannot write the score file",
    "for good, it can neither write nor read the score file",
    "the group cannot be taken back: ",
    "all ids are the user's",
    "the score file is root:60, 0660",
    "it has the one score",
];

const DAEMON: [&str; 10] = [
    "GET /nothing: 404",
    "POST /identity: 405",
    "nonsense: 400",
    "GET /identity: 200",
    "it has 5 threads",
    "all user ids of all threads are 33",
    "all group ids of all threads are 33",
    "no capability, and no_new_privs",
    "each thread has tried to get back, and was refused",
    "its log is root's, and was written to the end",
];

fn lines_of(example: &str) -> &'static [&'static str] {
    match example {
        "privilege_drop" => &PRIVILEGE_DROP,
        "check_permissions" => &CHECK_PERMISSIONS,
        "setgid_score" => &SETGID_SCORE,
        "daemon" => &DAEMON,
        _ => unreachable!("{example}"),
    }
}

fn privilege_drop() {
    Examples::new().run("privilege_drop").verified(&PRIVILEGE_DROP);
}

fn check_permissions() {
    Examples::new().run("check_permissions").verified(&CHECK_PERMISSIONS);
}

fn setgid_score() {
    Examples::new().run("setgid_score").verified(&SETGID_SCORE);
}

fn daemon() {
    Examples::new().run("daemon").verified(&DAEMON);
}

fn a_daemon_needs_an_account_that_is_not_root() {
    let examples = Examples::new();
    let with = |account: &str| {
        let mut command = examples.command("daemon");
        command.arg(account);
        Ran::of(command)
    };
    with("no-such-account").cannot_run(&["no account no-such-account"]);
    with("root").cannot_run(&["root is root"]);
    with("games").verified(&["all user ids of all threads are 5", "all group ids of all threads are 60"]);
}

fn ordinary_users_are_told_what_is_missing() {
    let examples = Examples::new();
    for example in ALL {
        let ran = match common::environment() {
            Environment::User => examples.run(example),
            Environment::Root | Environment::Userns => examples.run_after(|| kernel::become_user(1234, 1234), example),
        };
        // An ordinary user may have subordinate ids.
        if common::environment() == Environment::User && ran.code == Some(0) {
            assert!(ran.stdout.contains("running again in a user namespace"), "{ran:?}");
            ran.verified(lines_of(example));
        } else {
            ran.cannot_run(&["this needs CAP_SETGID", "as root:", "unshare --user --map-root-user --map-auto"]);
        }
    }
}

/// Enters a user namespace as its root; a process outside writes the maps.
fn enter_user_namespace(map: &str, setgroups: &str) {
    use std::io::{Read, Write};
    let pid = std::process::id();
    let (mut inside, mut outside) = std::os::unix::net::UnixStream::pair().unwrap();
    kernel::raw_setgroups(&[]).unwrap();
    // SAFETY: this process has one thread.
    if unsafe { libc::fork() } == 0 {
        outside.read_exact(&mut [0]).unwrap();
        std::fs::write(format!("/proc/{pid}/setgroups"), setgroups).unwrap();
        std::fs::write(format!("/proc/{pid}/uid_map"), map).unwrap();
        std::fs::write(format!("/proc/{pid}/gid_map"), map).unwrap();
        outside.write_all(&[0]).unwrap();
        std::process::exit(0);
    }
    // SAFETY: a flag only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWUSER) }, 0);
    inside.write_all(&[0]).unwrap();
    inside.read_exact(&mut [0]).unwrap();
    kernel::raw_setresgid(Some(0), Some(0), Some(0)).unwrap();
    kernel::raw_setresuid(Some(0), Some(0), Some(0)).unwrap();
}

fn in_a_user_namespace() {
    let examples = Examples::new();
    for example in ALL {
        examples.run_after(|| enter_user_namespace("0 100000 65536", "allow"), example).verified(lines_of(example));
    }
}

fn in_a_user_namespace_of_one_id() {
    let examples = Examples::new();
    for example in ALL {
        let reason = if example == "daemon" { "setgroups, which is denied" } else { "does not map" };
        examples.run_after(|| enter_user_namespace("0 100000 1", "deny"), example).cannot_run(&[reason]);
    }
}

/// What is mounted from now on, this process alone sees, and what it starts.
fn own_mounts() {
    // SAFETY: a flag only.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0);
    mount(&["--make-rprivate", "/"]);
}

fn mount(arguments: &[&str]) {
    assert!(Command::new("mount").args(arguments).status().unwrap().success(), "mount {arguments:?}");
}

/// In a mount namespace, where this user is named in the system's files.
fn ordinary_users_with_subordinate_ids_get_a_user_namespace() {
    let examples = Examples::new();
    let folder = tempfile::tempdir().unwrap();
    own_mounts();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap() + "privilege-guard-player:x:1234:1234::/:/bin/sh\n";
    let subordinate = "privilege-guard-player:100000:65536\n";
    for (path, content) in [("/etc/passwd", accounts.as_str()), ("/etc/subuid", subordinate), ("/etc/subgid", subordinate)] {
        let own = folder.path().join(path.replace('/', "-"));
        std::fs::write(&own, content).unwrap();
        std::fs::set_permissions(&own, PermissionsExt::from_mode(0o644)).unwrap();
        mount(&["--bind", own.to_str().unwrap(), path]);
    }
    for example in ALL {
        let ran = examples.run_after(|| kernel::become_user(1234, 1234), example);
        assert!(ran.stdout.starts_with("this needs CAP_SETGID, CAP_SETUID and CAP_CHOWN; running again in a user namespace: "), "{ran:?}");
        ran.verified(lines_of(example));
    }
}

fn a_set_group_id_program_that_gets_no_group_is_told() {
    let examples = Examples::new();
    let without = || rustix::thread::set_no_new_privs(true).unwrap();
    examples.run_after(without, "setgid_score").cannot_run(&["no_new_privs"]);
    let nosuid = || {
        own_mounts();
        mount(&["-t", "tmpfs", "-o", "nosuid", "none", examples.temporary().to_str().unwrap()]);
    };
    examples.run_after(nosuid, "setgid_score").cannot_run(&["nosuid"]);
}

/// The calls that set an identity, and their arguments.
const SETTING_CALLS: [(libc::c_long, &[(u8, u32)]); 7] = [
    (libc::SYS_setresgid, &[]),
    (libc::SYS_setgroups, &[]),
    (libc::SYS_setresuid, &[]),
    (libc::SYS_capset, &[]),
    (libc::SYS_prctl, &[(0, libc::PR_CAPBSET_DROP as u32)]),
    (libc::SYS_setgid, &[]),
    (libc::SYS_setfsgid, &[]),
];

const THAT_DROP: [&str; 3] = ["privilege_drop", "daemon", "setgid_score"];

/// Each call in turn answers with success and does nothing, also in every program that is executed.
fn under_filters_that_lie() {
    let examples = Examples::new();
    let mut rows = 0;
    for (call, arguments) in SETTING_CALLS {
        for example in THAT_DROP {
            let lies = || sandbox::answer_over_exec(call, arguments, Answer::SuccessWithoutDoing);
            let ran = examples.run_after(lies, example);
            println!("call {call}: {ran:?}");
            // An abort has no exit code.
            assert!(!matches!(ran.code, Some(0 | 2)), "call {call}: {ran:?}");
            assert!(!ran.stdout.contains("all verified") && !ran.stderr.is_empty(), "call {call}: {ran:?}");
            rows += 1;
        }
    }
    println!("= {rows} rows, 0 false successes");
}

/// Each call in turn is refused: what has a use for it fails, what has none is verified as ever.
fn under_filters_that_refuse() {
    let examples = Examples::new();
    let mut succeeded = Vec::new();
    for (call, arguments) in SETTING_CALLS {
        for example in THAT_DROP {
            let refuses = || sandbox::answer_over_exec(call, arguments, Answer::Errno(libc::EPERM));
            let ran = examples.run_after(refuses, example);
            println!("call {call}: {ran:?}");
            if ran.code == Some(0) {
                ran.verified(lines_of(example));
                succeeded.push((call, example));
            } else {
                assert!(!ran.stdout.contains("all verified") && !ran.stderr.is_empty(), "call {call}: {ran:?}");
            }
        }
    }
    println!("succeeded: {succeeded:?}");
    for (call, example) in succeeded {
        let no_use = match call {
            // To an ordinary user, whom the bounding set gives nothing.
            libc::SYS_prctl | libc::SYS_setgid => true,
            libc::SYS_setresuid | libc::SYS_capset | libc::SYS_setgroups => example == "setgid_score",
            _ => false,
        };
        assert!(no_use, "call {call}: {example}");
    }
}
