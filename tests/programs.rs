//! The example programs do what they say: run as programs, judged by what they print and how they end.

mod common;

use std::path::PathBuf;
use std::process::{Command, ExitCode, Output};

fn main() -> ExitCode {
    common::main(cases![
        Setgid: the_file_server_serves_each_request_as_its_own_group,
        Setgid: the_file_server_with_setegid_does_not,
        Setgid: tokio_tasks_have_the_groups_that_the_example_tells,
        NoSetgid: without_cap_setgid_they_say_what_is_missing,
    ])
}

fn the_file_server_serves_each_request_as_its_own_group() {
    let text = succeeds("file_server", &[]);
    assert!(text.starts_with("2000 requests on 16 connections as 8 groups, 4 workers with thread guards"), "{text}");
    assert!(text.contains("\n0 files have another request's group, 0 requests were refused"), "{text}");
    println!("= {}", text.lines().last().expect("a line"));
}

fn the_file_server_with_setegid_does_not() {
    let text = succeeds("file_server", &["--control"]);
    let wrong = text.lines().last().and_then(|line| line.split(' ').next()?.parse::<u32>().ok());
    assert!(wrong.is_some_and(|wrong| wrong > 0), "{text}");
    println!("= {}", text.lines().last().expect("a line"));
}

fn tokio_tasks_have_the_groups_that_the_example_tells() {
    assert_eq!(succeeds("tokio_groups", &[]).lines().count(), 5);
}

fn without_cap_setgid_they_say_what_is_missing() {
    for program in ["file_server", "tokio_groups"] {
        let output = run(program, &[]);
        assert_eq!(output.status.code(), Some(2), "{program}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("this needs CAP_SETGID") && text.contains("run it as root"), "{text}");
    }
}

fn succeeds(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{text}{}", output.status, String::from_utf8_lossy(&output.stderr));
    text
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(built(program)).args(arguments).output().expect(program)
}

/// `cargo test` builds the examples beside the test binaries.
fn built(program: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this binary");
    let path = test.ancestors().nth(2).expect("target/<profile>").join("examples").join(program);
    assert!(path.exists(), "{} is not built: cargo build --examples", path.display());
    path
}
