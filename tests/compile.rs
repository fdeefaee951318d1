//! What must not compile does not, for the reason that is meant: each program beside a twin that differs in one line and compiles.
//!
//! The texts in `tests/compile/*.stderr` are those of one compiler ([`MADE_WITH`]). With it they are compared word by word; with another
//! one, which may word them otherwise, only the reason is looked for. `TRYBUILD=overwrite cargo test --test compile` makes them anew.

use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Arguments, Completion, Trial};

const MADE_WITH: &str = "rustc 1.95.";

/// Each program, and what every compiler says of it.
const REASONS: [(&str, &str); 10] = [
    (
        "moved_into_a_thread",
        "cannot be sent between threads safely",
    ),
    (
        "process_guard_moved_into_a_thread",
        "cannot be sent between threads safely",
    ),
    (
        "shared_with_a_thread",
        "cannot be shared between threads safely",
    ),
    (
        "held_across_an_await",
        "future cannot be sent between threads safely",
    ),
    ("group_of_another_integer", "the trait bound"),
    ("group_out_of_range", "literal out of range for `u32`"),
    (
        "negative_group",
        "the trait `Neg` is not implemented for `u32`",
    ),
    ("ended_twice", "use of moved value"),
    ("unnamed_guard_is_warned_of", "that must be used"),
    (
        "ended_at_once",
        "non-binding let on a type that has a destructor",
    ),
];

fn main() -> std::process::ExitCode {
    let trials = vec![
        Trial::ignorable_test(
            "compile::every_program_has_a_twin_that_differs_in_one_line",
            || {
                twins();
                Ok(Completion::Completed)
            },
        ),
        Trial::ignorable_test("compile::what_must_not_compile_does_not", || {
            if let Some(reason) = missing() {
                return Ok(Completion::ignored_with(reason));
            }
            compile();
            Ok(Completion::Completed)
        }),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile")
}

fn program(name: &str) -> PathBuf {
    folder().join(format!("{name}.rs"))
}

/// Programs are built in the target folder, by cargo.
fn missing() -> Option<String> {
    if std::env::var_os("CARGO_MANIFEST_DIR").is_none() {
        return Some("needs cargo: cargo test --test compile".into());
    }
    tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR"))
        .err()
        .map(|error| format!("needs a target folder to write to: {error}"))
}

fn twins() {
    let mut named: Vec<_> = REASONS
        .iter()
        .flat_map(|(name, _)| [format!("{name}.rs"), format!("{name}_twin.rs")])
        .collect();
    named.sort_unstable();
    let Ok(entries) = std::fs::read_dir(folder()) else {
        return;
    };
    let mut there: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    there.retain(|name| name.ends_with(".rs"));
    there.sort_unstable();
    assert_eq!(there, named);
    for (name, _) in REASONS {
        let [one, twin] = [program(name), program(&format!("{name}_twin"))]
            .map(|path| std::fs::read_to_string(path).unwrap());
        assert_eq!(one.lines().count(), twin.lines().count(), "{name}");
        assert_eq!(
            one.lines()
                .zip(twin.lines())
                .filter(|(one, twin)| one != twin)
                .count(),
            1,
            "{name}"
        );
    }
}

fn compile() {
    let compiler = Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()))
        .arg("--version")
        .output()
        .expect("rustc");
    let same = compiler.stdout.starts_with(MADE_WITH.as_bytes());
    // Without a text to compare with, trybuild only sees whether a program compiles, and keeps what the compiler said.
    let copies = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder");
    if !same {
        // SAFETY: trybuild has not been started, and no other thread reads it.
        unsafe { std::env::set_var("TRYBUILD", "overwrite") };
    }
    let tests = trybuild::TestCases::new();
    for (name, _) in REASONS {
        tests.pass(program(&format!("{name}_twin")));
        if same {
            tests.compile_fail(program(name));
        } else {
            let copy = copies.path().join(format!("{name}.rs"));
            std::fs::copy(program(name), &copy).expect("a copy");
            tests.compile_fail(copy);
        }
    }
    // The programs are built when it goes; it panics where one did otherwise.
    drop(tests);
    for (name, reason) in REASONS {
        let said =
            if same { folder() } else { copies.path().into() }.join(format!("{name}.stderr"));
        let said = std::fs::read_to_string(said).expect("what the compiler said");
        assert!(said.contains(reason), "{name}: {said}");
    }
}
