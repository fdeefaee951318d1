//! The tutorial's "Error Handling Scenarios": its six cases, and Python's `OverflowError` as the seventh.
//! With `--user` the same for a user, as `os.setreuid`.
//!
//! `cargo run --example error_handling [GROUP | -- --user USER]`

mod common;

use common::kernel::Status;
use common::{Outcome, Target, verify};
use privilege_guard::{Error, Gid, GroupChange, LookupError, Uid, UserChange};

fn main() -> std::process::ExitCode {
    common::run(|| {
        let target = common::user_or_group_or(1001)?;
        let (id, noun) = match target {
            Target::Group(group) => (group, "group"),
            Target::User(user) => (user, "user"),
        };
        let mut denied = Vec::new();
        let mut attempt = |title: &str, real, effective| -> Outcome {
            println!("{}", title.replace("{}", noun));
            denied.extend(try_change(&target, noun, real, effective)?);
            Ok(())
        };

        attempt("1. Valid {} ID", Some(id), Some(id))?;
        attempt("2. Large {} ID", Some(999_999), Some(999_999))?;
        attempt("3. The {} ID of nobody", Some(65534), Some(65534))?;
        attempt("4. Real only", Some(id), None)?;
        attempt("5. Effective only", None, Some(id))?;
        attempt("6. No change", None, None)?;
        attempt("7. Out of range", Some(u32::MAX), Some(u32::MAX))?;
        for text in ["4294967296", "-1"] {
            let parsed = match target {
                Target::Group(_) => text.parse().map(Gid::as_raw),
                Target::User(_) => text.parse().map(Uid::as_raw),
            };
            match parsed {
                Err(error @ (LookupError::ParseGid { .. } | LookupError::ParseUid { .. })) => {
                    println!("  Invalid: {error}")
                }
                other => return Err(format!("{text:?} was read as {other:?}").into()),
            }
        }
        denied.pop().map_or(Ok(()), |error| Err(error.into()))
    })
}

/// `os.setregid(real, effective)` or `os.setreuid(real, effective)`, with `None` for -1. Returns the refusal if the privilege was
/// missing.
fn try_change(
    target: &Target,
    noun: &str,
    real: Option<u32>,
    effective: Option<u32>,
) -> Outcome<Option<Error>> {
    let real_and_effective = |status: &Status| match target {
        Target::Group(_) => (status.groups.real, status.groups.effective),
        Target::User(_) => (status.users[0], status.users[1]),
    };
    let before = Status::read()?;
    let (real_before, effective_before) = real_and_effective(&before);
    let work = || -> Outcome {
        let inside = real_and_effective(&Status::read()?);
        verify(
            format_args!("real {noun}"),
            inside.0,
            real.unwrap_or(real_before),
        )?;
        verify(
            format_args!("effective {noun}"),
            inside.1,
            effective.unwrap_or(effective_before),
        )
    };
    let made = match target {
        Target::Group(_) => {
            let change = real.into_iter().fold(GroupChange::new(), GroupChange::real);
            let change = effective.into_iter().fold(change, GroupChange::effective);
            change.assume().map(|guard| guard.run(work))
        }
        Target::User(_) => {
            let change = real.into_iter().fold(UserChange::new(), UserChange::real);
            let change = effective.into_iter().fold(change, UserChange::effective);
            change.assume().map(|guard| guard.run(work))
        }
    };

    let denied = match made {
        Ok(verified) => {
            verified?;
            None
        }
        Err(error @ Error::NotPermitted { .. }) => {
            println!("  Permission denied: {error}");
            Some(error)
        }
        Err(
            error @ (Error::InvalidGid
            | Error::InvalidUid
            | Error::UnmappedGid { .. }
            | Error::UnmappedUid { .. }),
        ) => {
            println!("  Invalid: {error}");
            None
        }
        Err(error) => return Err(error.into()),
    };
    verify("identity afterwards", Status::read()?, before)?;
    Ok(denied)
}
