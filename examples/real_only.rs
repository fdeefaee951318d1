//! The tutorial's "Changing Only Real GID", `os.setregid(1003, -1)`: whose process it is changes, and what it may do does not.
//!
//! `cargo run --example real_only [group]`

mod common;

use common::files::group_of_new_file;
use common::kernel::Identity;
use common::verify;
use privilege_guard::GroupGuard;

fn main() -> std::process::ExitCode {
    common::run(|| {
        let group = common::group_or(1003)?;
        let before = Identity::read()?;
        println!("Before: {before}");

        let guard = GroupGuard::assume_real(group)?;
        println!("Changed real group to {group}");
        let inside = Identity::read()?;
        verify("real group", inside.real, group)?;
        verify(
            "effective group, as before",
            inside.effective,
            before.effective,
        )?;
        verify(
            "group of a new file, as before",
            group_of_new_file()?,
            before.effective,
        )?;

        guard.restore().map_err(|error| error.to_string())?;
        println!("Changed back");
        verify("identity", Identity::read()?, before)
    })
}
