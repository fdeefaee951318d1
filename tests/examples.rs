//! The examples, run as they are built: what they say, and that a success of theirs means something.

mod common;

use std::ffi::CString;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{kernel, sandbox};

fn main() -> std::process::ExitCode {
    common::main(cases![
        Setgid: with_the_privilege_each_does_what_it_says,
        Setgid: the_group_may_be_a_number_or_a_name,
        Nothing: the_own_group_needs_no_privilege,
        Nothing: what_is_no_group_is_told,
        Nothing: a_success_that_the_kernel_made_up_is_found_out,
        Setgid: a_file_of_another_group_is_found_out,
        NoSetgid: an_ordinary_user,
        Root: an_ordinary_user_without_subordinate_ids,
        Root: an_ordinary_user_with_subordinate_ids,
        Root: the_capability_on_the_program,
    ])
}

/// Its name, the group that it takes by default, and what it says where `{}` is the group.
type Example = (&'static str, u32, &'static [&'static str]);

const EXAMPLES: [Example; 5] = [
    ("basic_setregid", 1001, &["verified: real group: {}", "verified: effective group: {}", "verified: group of a new file: {}"]),
    ("effective_only", 1002, &["verified: effective group: {}", "verified: real group, as before: ", "verified: group of a new file: {}"]),
    (
        "real_only",
        1003,
        &["verified: real group: {}", "verified: effective group, as before: ", "verified: group of a new file, as before: "],
    ),
    (
        "temporary_change",
        1004,
        &[
            "verified: group of a child process: {}",
            "verified: group of the file that was written: {}",
            "verified: effective group: {}",
            "verified: panicked: true",
        ],
    ),
    (
        "error_handling",
        1001,
        &[
            "1. Valid group ID\n  verified: real group: {}\n  verified: effective group: {}",
            "3. Group ID of nobody\n  verified: real group: 65534\n  verified: effective group: 65534",
            "4. Real only\n  verified: real group: {}",
            "6. No change\n  verified: real group: ",
            "7. Out of range\n  Invalid: group 4294967295 is (gid_t)-1",
            "Invalid: \"4294967296\" is not a group ID",
            "Invalid: \"-1\" is not a group ID",
        ],
    ),
];

/// A group that no account of the machine that runs this is likely to have: taking it on needs privilege.
const STRANGE: u32 = 4321;

/// Cargo puts them beside the folder of the test binaries.
fn built(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this program");
    let path = test.ancestors().nth(2).expect("the folder of the profile").join("examples").join(name);
    assert!(path.exists(), "{} is not there: `cargo build --examples` makes it", path.display());
    path
}

/// The exit code, and all that was printed.
fn run(command: &mut Command) -> (i32, String) {
    let output = command.output().expect("a program that starts");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).expect("text")).concat();
    (output.status.code().unwrap_or_else(|| panic!("{}: {text}", output.status)), text)
}

#[track_caller]
fn says_of(group: u32, text: &str, lines: &[&str]) {
    for line in lines {
        says(text, &[&line.replace("{}", &group.to_string())]);
    }
}

#[track_caller]
fn says(text: &str, lines: &[&str]) {
    for line in lines {
        assert!(text.contains(line), "{line:?} is not in:\n{text}");
    }
}

fn with_the_privilege_each_does_what_it_says() {
    for (name, group, lines) in EXAMPLES {
        let (code, text) = run(&mut Command::new(built(name)));
        assert_eq!(code, 0, "{name}: {text}");
        says_of(group, &text, lines);
        says(&text, &["verified: identity"]);
    }
    let (_, text) = run(&mut Command::new(built("error_handling")));
    let large = if kernel::is_mapped(999_999) {
        "verified: real group: 999999"
    } else {
        "Invalid: cannot change to real and effective group 999999"
    };
    says(&text, &[large]);
}

fn the_group_may_be_a_number_or_a_name() {
    let (code, text) = run(Command::new(built("temporary_change")).arg("1234"));
    assert_eq!(code, 0, "{text}");
    says(&text, &["Working as group 1234"]);

    let groups = std::fs::read_to_string("/etc/group").expect("the group database");
    let number = groups.lines().find_map(|line| line.strip_prefix("daemon:")?.split(':').nth(1)).expect("a group of this name");
    let (code, text) = run(Command::new(built("temporary_change")).arg("daemon"));
    assert_eq!(code, 0, "{text}");
    says(&text, &[&format!("Working as group {number}\n")]);
}

fn the_own_group_needs_no_privilege() {
    for name in ["basic_setregid", "effective_only", "real_only", "temporary_change"] {
        let (code, text) = run(Command::new(built(name)).arg(kernel::ids()[0].to_string()));
        assert_eq!(code, 0, "{name}: {text}");
        assert!(!text.contains("Running again"), "{name}: {text}");
    }
}

fn what_is_no_group_is_told() {
    for (name, ..) in EXAMPLES {
        for (argument, words) in
            [("4294967295", "\"4294967295\" is not a group ID"), ("no-such-group", "no group is named \"no-such-group\"")]
        {
            let (code, text) = run(Command::new(built(name)).arg(argument));
            assert_eq!(code, 1, "{name}: {text}");
            says(&text, &[words]);
        }
    }
}

fn a_success_that_the_kernel_made_up_is_found_out() {
    sandbox::answer(libc::SYS_setresgid, &[], sandbox::Answer::SuccessWithoutDoing);
    for (name, ..) in EXAMPLES {
        let (code, text) = run(Command::new(built(name)).arg(STRANGE.to_string()));
        assert_eq!(code, 1, "{name}: {text}");
        says(&text, &["setresgid: it answered with success, and nothing was done"]);
    }
}

/// In a folder with the set-group-ID bit, files get its group, whoever makes them.
fn a_file_of_another_group_is_found_out() {
    let folder = tempfile::tempdir().expect("a folder");
    chown(folder.path(), None, Some(7)).expect("chown");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o2777)).expect("chmod");
    for name in ["basic_setregid", "effective_only", "real_only", "temporary_change"] {
        let (code, text) = run(Command::new(built(name)).env("TMPDIR", folder.path()));
        assert_eq!(code, 1, "{name}: {text}");
        says(&text, &["does not hold: group of ", ": 7, expected "]);
    }
}

fn an_ordinary_user() {
    without_privilege(built, |command| command);
}

/// A user without an account has no subordinate ids either.
fn an_ordinary_user_without_subordinate_ids() {
    let (_folder, copy) = copies_for_all();
    assert!(!without_privilege(copy, |command| command.uid(USER).gid(USER)));
}

/// With an account and subordinate ids, in a mount namespace of this process: the system's files stay as they are.
fn an_ordinary_user_with_subordinate_ids() {
    let (folder, copy) = copies_for_all();
    // SAFETY: a number only; this process has one thread.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNS) }, 0, "unshare: {}", std::io::Error::last_os_error());
    mount(Path::new("none"), Path::new("/"), libc::MS_REC | libc::MS_PRIVATE);
    let append = |file: &str, line: String| {
        let replacement = folder.path().join(Path::new(file).file_name().expect("a name"));
        let content = std::fs::read_to_string(file).unwrap_or_default();
        std::fs::write(&replacement, content + &line).expect("written");
        std::fs::set_permissions(&replacement, PermissionsExt::from_mode(0o644)).expect("chmod");
        mount(&replacement, Path::new(file), libc::MS_BIND);
    };
    append("/etc/passwd", format!("guarded:x:{USER}:{USER}::/:/bin/sh\n"));
    append("/etc/subuid", format!("guarded:{}:65536\n", 1 << 24));
    append("/etc/subgid", format!("guarded:{}:65536\n", 1 << 24));
    without_privilege(copy, |command| command.uid(USER).gid(USER));
}

const USER: u32 = 54321;

/// Runs each example without privilege, and returns whether they could run again in a user namespace.
fn without_privilege(program: impl Fn(&str) -> PathBuf, user: impl Fn(&mut Command) -> &mut Command) -> bool {
    let namespace = ["--user", "--map-root-user", "--map-auto"];
    let (probed, why_not) = run(user(Command::new("unshare").args(namespace).arg("true").current_dir("/")));
    for (name, _, lines) in EXAMPLES {
        let program = program(name);
        let (code, text) = run(user(Command::new(&program).arg(STRANGE.to_string()).current_dir("/")));
        says(&text, &["this needs CAP_SETGID", "verified: identity, unchanged by the refusal: "]);
        if probed == 0 {
            assert_eq!(code, 0, "{name}: {text}");
            says(&text, &[&format!("Running again where it has, in a user namespace:\n  unshare {} ", namespace.join(" "))]);
            says_of(STRANGE, &text, lines);
        } else {
            assert_eq!(code, 2, "{name}: {text}");
            let shown = program.display();
            says(&text, &[&format!("sudo {shown}\n"), &format!("sudo setcap cap_setgid+ep {shown} && {shown}\n"), why_not.trim_end()]);
        }
    }
    match probed {
        0 => println!("= {} examples ran again in a user namespace", EXAMPLES.len()),
        _ => println!("= {} examples were refused and said how to run them; no user namespace: {}", EXAMPLES.len(), why_not.trim_end()),
    }
    probed == 0
}

fn the_capability_on_the_program() {
    let (_folder, copy) = copies_for_all();
    for (name, _, lines) in EXAMPLES {
        let program = copy(name);
        // What `setcap cap_setgid+ep` writes: `struct vfs_cap_data` of include/uapi/linux/capability.h, revision 2.
        let data = [0x0200_0001, kernel::CAP_SETGID as u32, 0, 0, 0u32].map(u32::to_le_bytes).concat();
        let path = c_string(&program);
        // SAFETY: two valid texts, and the length is that of the data.
        let result = unsafe { libc::setxattr(path.as_ptr(), c"security.capability".as_ptr(), data.as_ptr().cast(), data.len(), 0) };
        assert_eq!(result, 0, "setxattr: {}", std::io::Error::last_os_error());
        let (code, text) = run(Command::new(program).arg(STRANGE.to_string()).uid(USER).gid(USER).current_dir("/"));
        assert_eq!(code, 0, "{name}: {text}");
        assert!(!text.contains("Running again"), "{name}: {text}");
        says_of(STRANGE, &text, lines);
    }
}

/// The examples where an ordinary user may run them; the build may be in a folder that only root may enter.
fn copies_for_all() -> (tempfile::TempDir, impl Fn(&str) -> PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("chmod");
    let path = folder.path().to_owned();
    let copy = move |name: &str| {
        let copy = path.join(name);
        std::fs::copy(built(name), &copy).expect("a copy");
        std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).expect("chmod");
        copy
    };
    (folder, copy)
}

fn mount(source: &Path, target: &Path, flags: libc::c_ulong) {
    let [source, target] = [source, target].map(c_string);
    // SAFETY: two valid texts, and no more is read with these flags.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), std::ptr::null(), flags, std::ptr::null()) };
    assert_eq!(result, 0, "mount: {}", std::io::Error::last_os_error());
}

fn c_string(path: &Path) -> CString {
    CString::new(path.as_os_str().as_encoded_bytes()).expect("a path")
}
