//! The tutorial's "Error Handling Scenarios": its six cases, and Python's `OverflowError` as the seventh.
//!
//! `cargo run --example error_handling [group]`

mod common;

use common::kernel::Identity;
use common::{Outcome, verify};
use privilege_guard::{Error, Gid, GroupChange, LookupError};

fn main() -> std::process::ExitCode {
    common::run(|| {
        let group = common::group_or(1001)?;
        let mut denied = Vec::new();
        let mut attempt = |title, real, effective| -> Outcome {
            println!("{title}");
            denied.extend(try_setregid(real, effective)?);
            Ok(())
        };

        attempt("1. Valid group ID", Some(group), Some(group))?;
        attempt("2. Large group ID", Some(999_999), Some(999_999))?;
        attempt("3. Group ID of nobody", Some(65534), Some(65534))?;
        attempt("4. Real only", Some(group), None)?;
        attempt("5. Effective only", None, Some(group))?;
        attempt("6. No change", None, None)?;
        attempt("7. Out of range", Some(u32::MAX), Some(u32::MAX))?;
        for text in ["4294967296", "-1"] {
            match text.parse::<Gid>() {
                Err(error @ LookupError::ParseGid { .. }) => println!("  Invalid: {error}"),
                other => return Err(format!("{text:?} was read as {other:?}").into()),
            }
        }
        denied.pop().map_or(Ok(()), |error| Err(error.into()))
    })
}

/// `os.setregid(real, effective)`, with `None` for -1. Returns the refusal where the privilege was missing.
fn try_setregid(real: Option<u32>, effective: Option<u32>) -> Outcome<Option<Error>> {
    let before = Identity::read()?;
    let mut change = GroupChange::new();
    change = real.into_iter().fold(change, GroupChange::real);
    change = effective.into_iter().fold(change, GroupChange::effective);

    let denied = match change.assume() {
        Ok(guard) => {
            let inside = Identity::read()?;
            verify("real group", inside.real, real.unwrap_or(before.real))?;
            verify(
                "effective group",
                inside.effective,
                effective.unwrap_or(before.effective),
            )?;
            guard.restore().map_err(|error| error.to_string())?;
            None
        }
        Err(error @ Error::NotPermitted { .. }) => {
            println!("  Permission denied: {error}");
            Some(error)
        }
        Err(error @ (Error::InvalidGid | Error::UnmappedGid { .. })) => {
            println!("  Invalid: {error}");
            None
        }
        Err(error) => return Err(error.into()),
    };
    verify("identity afterwards", Identity::read()?, before)?;
    Ok(denied)
}
