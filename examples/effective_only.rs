//! The tutorial's "Changing Only Effective GID", `os.setregid(-1, 1002)`: permission checks go by the group, and the real one stays.
//!
//! `cargo run --example effective_only [group]`

mod common;

use common::files::group_of_new_file;
use common::kernel::Identity;
use common::verify;
use privilege_guard::GroupGuard;

fn main() -> std::process::ExitCode {
    common::run(|| {
        let group = common::group_or(1002)?;
        let before = Identity::read()?;
        println!("Before: {before}");

        let guard = GroupGuard::assume_effective(group)?;
        println!("Changed effective group to {group}");
        let inside = Identity::read()?;
        verify("effective group", inside.effective, group)?;
        verify("group of a new file", group_of_new_file()?, group)?;
        verify("real group, as before", inside.real, before.real)?;

        guard.restore().map_err(|error| error.to_string())?;
        println!("Changed back");
        verify("identity", Identity::read()?, before)
    })
}
