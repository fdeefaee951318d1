//! The examples, run as they are built: as root, in user namespaces, by ordinary users, and under a kernel that lies to them. What they say,
//! and that a success of theirs means something.

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cases;
use crate::common::calls;
use crate::common::kernel::{self, Namespace, SUBORDINATE};
use crate::common::sandbox::{self, Answer};
use crate::common::{self, Case};

pub const CASES: &[Case] = cases![
    Setgid: with_the_privilege_each_does_what_it_says,
    Setgid: the_group_may_be_a_number_or_a_name,
    Setgid: the_account_may_be_any_that_is_not_root,
    Setgid: without_guards_the_file_server_mixes_groups_up,
    Nothing: the_own_group_needs_no_privilege,
    Nothing: what_is_no_group_is_told,
    Nothing: a_success_that_the_kernel_made_up_is_found_out,
    Setgid: a_file_of_another_group_is_found_out,
    NoSetgid: an_ordinary_user,
    Setgid: an_ordinary_user_without_subordinate_ids,
    Root + uidmap: an_ordinary_user_with_subordinate_ids,
    Root: the_capability_on_the_program,
    Root: in_a_user_namespace,
    Root: in_a_user_namespace_of_one_id,
    Root: a_set_group_id_program_that_gets_no_group_is_told,
    Root: under_filters_that_lie,
    Root: under_filters_that_refuse,
];

struct Example {
    name: &'static str,
    /// The group that it takes on by default.
    group: u32,
    /// What it says, where `{}` is the group that it has taken on.
    says: &'static [&'static str],
}

/// They take another group as an argument, and CAP_SETGID is enough for them.
const TUTORIAL: [Example; 5] = [
    Example {
        name: "basic_setregid",
        group: 1001,
        says: &[
            "verified: real group: {}\n",
            "verified: effective group: {}\n",
            "verified: group of a new file: {}\n",
            "verified: identity: ",
        ],
    },
    Example {
        name: "effective_only",
        group: 1002,
        says: &[
            "verified: effective group: {}\n",
            "verified: real group, as before: ",
            "verified: group of a new file: {}\n",
            "verified: identity: ",
        ],
    },
    Example {
        name: "real_only",
        group: 1003,
        says: &[
            "verified: real group: {}\n",
            "verified: effective group, as before: ",
            "verified: group of a new file, as before: ",
            "verified: identity: ",
        ],
    },
    Example {
        name: "temporary_change",
        group: 1004,
        says: &[
            "verified: group of a child process: {}\n",
            "verified: group of the file that was written: {}\n",
            "verified: effective group: {}\n",
            "verified: panicked: true\n",
            "verified: identity: ",
        ],
    },
    Example {
        name: "error_handling",
        group: 1001,
        says: &[
            "1. Valid group ID\n  verified: real group: {}\n  verified: effective group: {}\n",
            "3. The group ID of nobody\n  verified: real group: 65534\n  verified: effective group: 65534\n",
            "4. Real only\n  verified: real group: {}\n",
            "6. No change\n  verified: real group: ",
            "7. Out of range\n  Invalid: group 4294967295 is (gid_t)-1",
            "Invalid: \"4294967296\" is not a group ID",
            "Invalid: \"-1\" is not a group ID",
            "verified: identity afterwards: ",
        ],
    },
];

/// Those of the tutorial's that take `--user USER` too, for which CAP_SETUID is enough. By default this user is taken on.
const OF_USERS: [Example; 3] = [
    Example {
        name: "effective_only",
        group: 1000,
        says: &[
            "verified: effective user: {}\n",
            "verified: real user, as before: ",
            "verified: owner of a new file: {}\n",
            "verified: identity: user real ",
        ],
    },
    Example {
        name: "temporary_change",
        group: 1000,
        says: &[
            "verified: user of a child process: {}\n",
            "verified: owner of the file that was written: {}\n",
            "verified: effective user: {}\n",
            "verified: panicked: true\n",
            "verified: identity: user real ",
        ],
    },
    Example {
        name: "error_handling",
        group: 1000,
        says: &[
            "1. Valid user ID\n  verified: real user: {}\n  verified: effective user: {}\n",
            "3. The user ID of nobody\n  verified: real user: 65534\n  verified: effective user: 65534\n",
            "4. Real only\n  verified: real user: {}\n",
            "6. No change\n  verified: real user: ",
            "7. Out of range\n  Invalid: user 4294967295 is (uid_t)-1",
            "Invalid: \"4294967296\" is not a user ID",
            "Invalid: \"-1\" is not a user ID",
            "verified: identity afterwards: user real ",
        ],
    },
];

const TOKIO: Example = Example {
    name: "tokio_groups",
    group: 2001,
    says: &[
        "verified: group of a task, between two awaits: {}\n",
        "verified: group of a task, after the next await: ",
        "verified: group in spawn_blocking, under a guard of its own: {}\n",
        "verified: group in the next spawn_blocking: ",
        "verified: block_on, a guard held across an await: group of another task, on its own thread: ",
        "verified: block_on, a guard held across an await: group of another task, on the same thread: {}\n",
        "verified: LocalSet, a guard held across an await: group of another task: {}\n",
        "verified: LocalSet, work in `run`: group of another task: ",
        "verified: group of a blocking pool that was first used under a guard, ever after: {}\n",
        "verified: group of a blocking pool that was started before: ",
    ],
};

const FILE_SERVER: Example = Example {
    name: "file_server",
    group: 2001,
    says: &[
        "2000 requests on 16 connections as 8 clients, 4 workers with identity guards:\n",
        "verified: files that have a wrong owner or group: 0\n",
        "verified: requests that failed: 0\n",
        "verified: accesses permitted or refused by mistake: 0\n",
        "verified: accesses that the client must have, and had: 6000\n",
        "verified: accesses that the client must not have, and were refused: 6000\n",
    ],
};

const CHECK_PERMISSIONS: Example = Example {
    name: "check_permissions",
    group: 1005,
    says: &[
        "verified: of-1005 opens: true\n",
        "verified: of-1006 opens: true\n",
        "verified: group 1005 may open of-1005: true\n",
        "verified: group 1005 may open of-1006: false\n",
        "verified: group 1006 may open of-1005: false\n",
        "verified: group 1006 may open of-1006: true\n",
        "verified: this thread is what it was, with all its capabilities: true\n",
    ],
};

const PRIVILEGE_DROP: Example = Example {
    name: "privilege_drop",
    group: 1001,
    says: &[
        "verified: the protected file (root:",
        ", 0640) can be read: true\n",
        "verified: under another group only, as `os.setregid(1001, 1001)`, it can be read: true\n",
        "verified: after the drop, it can be read: false\n",
        "verified: tries to get back: ",
        "verified: groups: real 1001, effective 1001, saved 1001, filesystem 1001, supplementary []\n",
        "verified: all user ids are 1001: true\n",
        "verified: capabilities: 0\n",
    ],
};

const SETGID_SCORE: Example = Example {
    name: "setgid_score",
    group: 60,
    says: &[
        "verified: as its user, it can write the score file: false\n",
        "verified: after that, it can write the score file: false\n",
        "verified: after the drop, it can write the score file: false\n",
        "verified: after the drop, it can read the score file: false\n",
        "verified: tries to get back: ",
        "verified: groups: real 1234, effective 1234, saved 1234, filesystem 1234, supplementary []\n",
        "verified: all user ids are the player's: true\n",
        "verified: capabilities: 0\n",
        "verified: the score file is root:60, 0660: true\n",
        "verified: it holds: user 1234: 4200\n",
    ],
};

const SETUID_SCORE: Example = Example {
    name: "setuid_score",
    group: 1234,
    says: &[
        "-- the game, installed for user 5, 4755, run by user 1234\n",
        "wrote a score as user 5\n",
        "verified: the score is 5:1234, 0600: true\n",
        "-- the game, installed for user 0, 4755, run by user 1234\n",
        "wrote a score as user 0\n",
        "verified: the score is 0:1234, 0600: true\n",
        "verified: as the player, making a score is refused: true\n",
        "verified: after that, making a score is refused: true\n",
        "verified: taking the owner's id again is refused: true\n",
        "ends with user real {}, effective {}, saved {}, filesystem {}; ",
        "verified: it holds: user 1234: 4200\n",
    ],
};

const DAEMON: Example = Example {
    name: "daemon",
    group: 33,
    says: &[
        "verified: GET /nothing: 404\n",
        "verified: POST /identity: 405\n",
        "verified: nonsense: 400\n",
        "verified: GET /identity: 200\n",
        "verified: threads: 5\n",
        "verified: all user ids of all threads are 33: true\n",
        "verified: the groups of all threads are real 33, effective 33, saved 33, filesystem 33, supplementary [33]: true\n",
        "verified: CAP_NET_BIND_SERVICE is the only capability of all threads: true\n",
        "verified: its root is empty: true\n",
        "verified: every thread has no_new_privs: true\n",
        "verified: threads that tried to get back, and were refused: 5\n",
        "verified: answered at the same time: 8\n",
        "verified: it has ended after 12 connections: true\n",
        "verified: owner of its log: 0\n",
        "verified: lines in it: an open descriptor stays open: 13\n",
    ],
};

const THAT_DROP: [Example; 3] = [PRIVILEGE_DROP, DAEMON, SETGID_SCORE];

const THAT_NEED_ROOT: [Example; 6] = [
    FILE_SERVER,
    CHECK_PERMISSIONS,
    PRIVILEGE_DROP,
    DAEMON,
    SETGID_SCORE,
    SETUID_SCORE,
];

/// A user and group that no account of the machine that runs this is likely to have: taking it on needs privilege.
const STRANGE: u32 = 4321;

/// An example that one capability is enough for, with arguments.
struct Attempt {
    example: Example,
    arguments: Vec<String>,
    id: u32,
    capability: &'static str,
}

/// With a group or user that is not an ordinary user's. The tokio example takes no argument, and looks at none.
fn with_strange_ids() -> impl Iterator<Item = Attempt> {
    let of_groups = TUTORIAL
        .into_iter()
        .map(|example| (example, STRANGE))
        .chain([(TOKIO, TOKIO.group)]);
    let of_groups = of_groups.map(|(example, id)| Attempt {
        example,
        arguments: vec![id.to_string()],
        id,
        capability: "CAP_SETGID",
    });
    let of_users = OF_USERS.into_iter().map(|example| Attempt {
        example,
        arguments: vec!["--user".into(), STRANGE.to_string()],
        id: STRANGE,
        capability: "CAP_SETUID",
    });
    of_groups.chain(of_users)
}

/// Copies that every user can run: the build may be in a folder that only root may enter.
pub struct Examples(tempfile::TempDir);

impl Examples {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let examples = Examples(folder);
        std::fs::create_dir(examples.temporary()).unwrap();
        std::fs::set_permissions(examples.temporary(), PermissionsExt::from_mode(0o1777)).unwrap();
        examples
    }

    pub fn copy(&self, name: &str) -> PathBuf {
        let copy = self.0.path().join(name);
        if !copy.exists() {
            let test = std::env::current_exe().unwrap();
            // target/<profile>/deps/<this test>, target/<profile>/examples/<example>
            let built = test.ancestors().nth(2).unwrap().join("examples").join(name);
            std::fs::copy(&built, &copy).unwrap_or_else(|error| {
                panic!(
                    "{}: {error}; cargo build --examples makes it",
                    built.display()
                )
            });
            std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
        }
        copy
    }

    /// What an aborted example leaves behind is cleared away with the rest.
    pub fn temporary(&self) -> PathBuf {
        self.0.path().join("tmp")
    }

    pub fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.copy(name));
        command.env("TMPDIR", self.temporary()).current_dir("/");
        command
    }

    pub fn run(&self, name: &str) -> Ran {
        Ran::of(&mut self.command(name))
    }

    pub fn run_with(&self, name: &str, argument: &str) -> Ran {
        Ran::of(self.command(name).arg(argument))
    }

    fn run_with_user(&self, name: &str, user: &str) -> Ran {
        Ran::of(self.command(name).args(["--user", user]))
    }
}

#[derive(Debug)]
pub struct Ran {
    pub program: PathBuf,
    /// None where it aborted.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(command: &mut Command) -> Self {
        let output = command.output().unwrap();
        let [stdout, stderr] =
            [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        Ran {
            program: command.get_program().into(),
            code: output.status.code(),
            stdout,
            stderr,
        }
    }

    /// It says that all is verified, and each of these.
    #[track_caller]
    pub fn verified(&self, group: u32, says: &[&str]) {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(self.stdout.ends_with("all verified\n"), "{self:?}");
        for text in says {
            let text = text.replace("{}", &group.to_string());
            assert!(
                self.stdout.contains(&text),
                "{text:?} is not in what {} says:\n{}",
                self.program.display(),
                self.stdout
            );
        }
    }

    /// The same, and nothing was in its way.
    #[track_caller]
    pub fn verified_at_once(&self, group: u32, says: &[&str]) {
        self.verified(group, says);
        let panicked = self
            .stderr
            .contains("panicked at examples/temporary_change.rs");
        assert!(self.stderr.is_empty() || panicked, "{self:?}");
        assert!(!self.stdout.contains("running again"), "{self:?}");
    }

    /// It ends with this code, and tells these.
    #[track_caller]
    pub fn fails(&self, code: i32, reasons: &[&str]) {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(!self.stdout.contains("all verified"), "{self:?}");
        for reason in reasons {
            assert!(
                self.stderr.contains(reason),
                "{reason:?} is not in what {} says:\n{}",
                self.program.display(),
                self.stderr
            );
        }
    }

    /// It tells what is missing, and verifies nothing.
    #[track_caller]
    fn cannot_run(&self, reasons: &[&str]) {
        self.fails(2, reasons);
        assert!(!self.stdout.contains("verified"), "{self:?}");
    }
}

fn with_the_privilege_each_does_what_it_says() {
    let examples = Examples::new();
    for Example { name, group, says } in TUTORIAL.into_iter().chain(THAT_NEED_ROOT).chain([TOKIO]) {
        examples.run(name).verified_at_once(group, says);
    }
    let large = if kernel::is_mapped(999_999) {
        "verified: real group: 999999\n"
    } else {
        "Invalid: cannot change to real and effective group 999999"
    };
    examples.run("error_handling").verified_at_once(0, &[large]);
    for Example { name, group, says } in OF_USERS {
        examples
            .run_with_user(name, &group.to_string())
            .verified_at_once(group, says);
    }
    examples
        .run_with_user("temporary_change", "nobody")
        .verified_at_once(65534, &["Working as user {}\n"]);
}

fn the_group_may_be_a_number_or_a_name() {
    let examples = Examples::new();
    examples
        .run_with("temporary_change", "1234")
        .verified_at_once(1234, &["Working as group {}\n"]);

    let groups = std::fs::read_to_string("/etc/group").unwrap();
    let number = groups
        .lines()
        .find_map(|line| line.strip_prefix("daemon:")?.split(':').nth(1))
        .expect("a group of this name");
    let number = number.parse().unwrap();
    examples
        .run_with("temporary_change", "daemon")
        .verified_at_once(number, &["Working as group {}\n"]);
}

fn the_account_may_be_any_that_is_not_root() {
    let examples = Examples::new();
    examples
        .run_with("daemon", "no-such-account")
        .cannot_run(&["no account no-such-account"]);
    examples
        .run_with("daemon", "root")
        .cannot_run(&["root is root"]);
    let games = [
        "all user ids of all threads are 5: true\n",
        "the groups of all threads are real 60, effective 60, ",
    ];
    examples
        .run_with("daemon", "games")
        .verified_at_once(60, &games);
}

fn without_guards_the_file_server_mixes_groups_up() {
    let ran = Examples::new().run_with("file_server", "--control");
    ran.verified_at_once(
        0,
        &["4 workers with calls written by hand, the user first:\n"],
    );
    let verified = ran
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("  verified: "))
        .unwrap_or_default();
    // The group is set by none of the calls, and the supplementary one neither.
    assert_eq!(
        verified,
        "2000 files have a wrong owner or group, 4000 accesses are wrong, 0 requests failed: true",
        "{ran:?}"
    );
    println!("= {verified}");
}

fn the_own_group_needs_no_privilege() {
    let examples = Examples::new();
    let own = kernel::ids()[0];
    for name in [
        "basic_setregid",
        "effective_only",
        "real_only",
        "temporary_change",
    ] {
        examples
            .run_with(name, &own.to_string())
            .verified_at_once(own, &[]);
    }
    let own = kernel::all_threads()[0].privileges.users[1];
    for name in ["effective_only", "temporary_change"] {
        examples
            .run_with_user(name, &own.to_string())
            .verified_at_once(own, &[]);
    }
}

fn what_is_no_group_is_told() {
    let examples = Examples::new();
    for Example { name, .. } in TUTORIAL {
        examples
            .run_with(name, "4294967295")
            .fails(1, &["\"4294967295\" is not a group ID"]);
        examples
            .run_with(name, "no-such-group")
            .fails(1, &["no group is named \"no-such-group\""]);
    }
    for Example { name, .. } in OF_USERS {
        examples
            .run_with_user(name, "4294967295")
            .fails(1, &["\"4294967295\" is not a user ID"]);
        examples
            .run_with_user(name, "no-such-user")
            .fails(1, &["no user is named \"no-such-user\""]);
        examples
            .run_with(name, "--user")
            .fails(1, &["--user needs the number or the name of a user"]);
    }
}

fn a_success_that_the_kernel_made_up_is_found_out() {
    sandbox::answer(calls::SYS_setresgid, &[], Answer::SuccessWithoutDoing);
    sandbox::answer(calls::SYS_setresuid, &[], Answer::SuccessWithoutDoing);
    let examples = Examples::new();
    for Example { name, .. } in TUTORIAL {
        let ran = examples.run_with(name, &STRANGE.to_string());
        ran.fails(1, &["setresgid: it reported success without effect"]);
    }
    for Example { name, .. } in OF_USERS {
        let ran = examples.run_with_user(name, &STRANGE.to_string());
        if kernel::capabilities().effective & kernel::CAP_SETUID != 0 {
            ran.fails(1, &["setresuid: it reported success without effect"]);
        } else {
            // Refused beforehand: without the capability it could not be restored.
            ran.fails(2, &["this requires CAP_SETUID"]);
        }
    }
}

/// In a folder with the set-group-ID bit, files get its group, whoever makes them.
fn a_file_of_another_group_is_found_out() {
    let examples = Examples::new();
    chown(examples.temporary(), None, Some(7)).unwrap();
    std::fs::set_permissions(examples.temporary(), PermissionsExt::from_mode(0o2777)).unwrap();
    for name in [
        "basic_setregid",
        "effective_only",
        "real_only",
        "temporary_change",
    ] {
        examples
            .run(name)
            .fails(1, &["does not hold: group of ", ": 7, expected "]);
    }
}

fn an_ordinary_user() {
    _ = without_privilege(|command| command);
}

/// A user without an account has no subordinate ids either.
fn an_ordinary_user_without_subordinate_ids() {
    assert!(without_privilege(|command| command.uid(USER).gid(USER)).is_some());
}

/// With an account and subordinate ids, in a mount namespace of this process: the system's files stay as they are.
fn an_ordinary_user_with_subordinate_ids() {
    let folder = tempfile::tempdir().unwrap();
    kernel::own_mounts();
    let append = |file: &str, line: String| {
        let longer = folder.path().join(Path::new(file).file_name().unwrap());
        std::fs::write(
            &longer,
            std::fs::read_to_string(file).unwrap_or_default() + &line,
        )
        .unwrap();
        std::fs::set_permissions(&longer, PermissionsExt::from_mode(0o644)).unwrap();
        kernel::mount(longer.to_str().unwrap(), file, "none", libc::MS_BIND);
    };
    append(
        "/etc/passwd",
        format!("guarded:x:{USER}:{USER}::/:/bin/sh\n"),
    );
    append("/etc/subuid", format!("guarded:{}:65536\n", 1 << 24));
    append("/etc/subgid", format!("guarded:{}:65536\n", 1 << 24));
    if let Some(why_not) = without_privilege(|command| command.uid(USER).gid(USER)) {
        common::ignore(&format!(
            "needs unshare --map-auto for a user with subordinate ids: {why_not}"
        ));
    }
}

const USER: u32 = 1234;

/// Runs each example without privilege, and returns why they could not run again in a user namespace, if they could not.
fn without_privilege(user: impl Fn(&mut Command) -> &mut Command) -> Option<String> {
    const UNSHARE: &str = "unshare --user --map-root-user --map-auto";
    let probed = user(
        Command::new("unshare")
            .args(UNSHARE.split(' ').skip(1))
            .arg("true")
            .current_dir("/"),
    )
    .output();
    let why_not = match probed {
        Ok(possible) if possible.status.success() => None,
        Ok(refused) => Some(
            String::from_utf8(refused.stderr)
                .unwrap()
                .trim_end()
                .to_owned(),
        ),
        Err(error) => Some(format!("unshare: {error}")),
    };
    let possible = why_not.is_none();
    let examples = Examples::new();
    let run = |example: &Example, id: u32, arguments: &[String]| {
        let ran = Ran::of(user(examples.command(example.name).args(arguments)));
        let shown = ran.program.display();
        match &why_not {
            None => {
                ran.verified(id, example.says);
                assert!(
                    ran.stdout.contains(&format!(
                        "; running again in a user namespace:\n  {UNSHARE} {shown}\n"
                    )),
                    "{ran:?}"
                );
            }
            Some(why_not) => ran.fails(
                2,
                &[
                    &format!("\n  sudo {shown}\n"),
                    &format!("\n  {UNSHARE} {shown}\n"),
                    why_not,
                ],
            ),
        }
        ran
    };
    for Attempt {
        example,
        arguments,
        id,
        capability,
    } in with_strange_ids()
    {
        let ran = run(&example, id, &arguments);
        let shown = ran.program.display();
        assert!(
            ran.stderr.contains(&format!("this requires {capability}")),
            "{ran:?}"
        );
        assert!(
            ran.stdout
                .contains("verified: identity, unchanged by the refusal: "),
            "{ran:?}"
        );
        let setcap = capability.to_lowercase();
        assert!(
            possible
                || ran
                    .stderr
                    .contains(&format!("\n  sudo setcap {setcap}+ep {shown} && {shown}\n")),
            "{ran:?}"
        );
    }
    for example in THAT_NEED_ROOT {
        let ran = run(&example, example.group, &[]);
        let told = if possible { &ran.stdout } else { &ran.stderr };
        assert!(
            told.starts_with("this needs CAP_SETGID, CAP_SETUID and CAP_CHOWN"),
            "{ran:?}"
        );
        assert!(
            if possible {
                ran.stderr.is_empty()
            } else {
                ran.stdout.is_empty()
            },
            "{ran:?}"
        );
    }
    let number = with_strange_ids().count() + THAT_NEED_ROOT.len();
    match &why_not {
        None => println!("= {number} examples ran again in a user namespace"),
        Some(why_not) => println!(
            "= {number} examples were refused and said how to run them; no user namespace: {why_not}"
        ),
    }
    why_not
}

fn the_capability_on_the_program() {
    let examples = Examples::new();
    for Attempt {
        example: Example { name, says, .. },
        arguments,
        id,
        capability,
    } in with_strange_ids()
    {
        let mask = match capability {
            "CAP_SETUID" => kernel::CAP_SETUID,
            _ => kernel::CAP_SETGID,
        };
        kernel::give_file_capabilities(&examples.copy(name), mask);
        let ran = Ran::of(examples.command(name).args(&arguments).uid(USER).gid(USER));
        ran.verified_at_once(id, says);
    }
}

fn in_a_user_namespace() {
    let examples = Examples::new();
    for Example { name, group, says } in THAT_NEED_ROOT {
        // In there nobody may read the build.
        examples.copy(name);
        kernel::passes_in(SUBORDINATE, || {
            examples.run(name).verified_at_once(group, says)
        });
    }
}

fn in_a_user_namespace_of_one_id() {
    let examples = Examples::new();
    let one_id = Namespace {
        uid_map: "0 100000 1",
        gid_map: "0 100000 1",
        denies_setgroups: true,
        ..SUBORDINATE
    };
    for Example { name, .. } in THAT_NEED_ROOT {
        examples.copy(name);
        let reason = if name == "daemon" {
            "setgroups, which is denied"
        } else {
            "does not map"
        };
        kernel::passes_in(one_id, || examples.run(name).cannot_run(&[reason]));
    }
}

fn a_set_group_id_program_that_gets_no_group_is_told() {
    let examples = Examples::new();
    kernel::passes_in_child(|| {
        rustix::thread::set_no_new_privs(true).unwrap();
        examples.run("setgid_score").cannot_run(&["no_new_privs"]);
        examples.run("setuid_score").cannot_run(&["no_new_privs"]);
    });
    kernel::own_mounts();
    kernel::mount(
        "none",
        examples.temporary().to_str().unwrap(),
        "tmpfs",
        libc::MS_NOSUID,
    );
    examples.run("setgid_score").cannot_run(&["nosuid"]);
    examples.run("setuid_score").cannot_run(&["nosuid"]);
}

/// The calls that set an identity, and their arguments.
const SETTING_CALLS: [(libc::c_long, &[(u8, u32)]); 7] = [
    (calls::SYS_setresgid, &[]),
    (calls::SYS_setgroups, &[]),
    (calls::SYS_setresuid, &[]),
    (libc::SYS_capset, &[]),
    (libc::SYS_prctl, &[(0, libc::PR_CAPBSET_DROP as u32)]),
    (calls::SYS_setgid, &[]),
    (calls::SYS_setfsgid, &[]),
];

/// Runs each example that drops with each call in turn answered so, also in every program that is executed; in a process of its own.
fn under_filters(answer: Answer, judge: fn(libc::c_long, &Example, &Ran)) {
    let examples = Examples::new();
    for (call, arguments) in SETTING_CALLS {
        for example in &THAT_DROP {
            kernel::passes_in_child(|| {
                sandbox::answer_over_exec(call, arguments, answer);
                let ran = examples.run(example.name);
                println!("call {call}: {ran:?}");
                if ran.code != Some(0) {
                    assert!(!ran.stdout.contains("all verified") && !ran.stderr.is_empty());
                }
                judge(call, example, &ran);
            });
        }
    }
    println!(
        "= {} rows, 0 false successes",
        SETTING_CALLS.len() * THAT_DROP.len()
    );
}

fn under_filters_that_lie() {
    under_filters(Answer::SuccessWithoutDoing, |_, _, ran| {
        assert!(!matches!(ran.code, Some(0 | 2)))
    });
}

/// What has a use for the call fails, what has none is verified as ever.
fn under_filters_that_refuse() {
    under_filters(Answer::Errno(libc::EPERM), |call, example, ran| {
        if ran.code != Some(0) {
            return;
        }
        ran.verified_at_once(example.group, example.says);
        let no_use = match call {
            // To an ordinary user, whom the bounding set gives nothing.
            libc::SYS_prctl | calls::SYS_setgid => true,
            calls::SYS_setresuid | libc::SYS_capset | calls::SYS_setgroups => {
                example.name == "setgid_score"
            }
            _ => false,
        };
        assert!(no_use);
    });
}
