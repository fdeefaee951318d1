//! The tutorial's "Basic Group ID Change", `os.setregid(1001, 1001)`: the real and the effective group of the process.
//!
//! `cargo run --example basic_setregid [group]`

mod common;

use common::files::group_of_new_file;
use common::kernel::Identity;
use common::verify;
use privilege_guard::GroupGuard;

fn main() -> std::process::ExitCode {
    common::run(|| {
        let group = common::group_or(1001)?;
        let before = Identity::read()?;
        println!("Before: {before}");

        let guard = GroupGuard::assume(group)?;
        println!("Changed real and effective group to {group}");
        let inside = Identity::read()?;
        verify("real group", inside.real, group)?;
        verify("effective group", inside.effective, group)?;
        verify("group of a new file", group_of_new_file()?, group)?;

        guard.restore().map_err(|error| error.to_string())?;
        println!("Changed back");
        verify("identity", Identity::read()?, before)
    })
}
