//! Promise 1: what a guard puts back is exactly what was.

mod common;

use common::kernel;
use privilege_guard::GroupGuard;

fn main() -> std::process::ExitCode {
    common::main(cases![Setgid: files_have_the_group_inside_and_not_after])
}

fn files_have_the_group_inside_and_not_after() {
    let before = kernel::identity();
    let guard = GroupGuard::assume(1004).unwrap();
    assert_eq!(kernel::ids(), [1004, 1004, before.ids[2], 1004]);
    assert_eq!(kernel::group_of_new_file(), 1004);
    drop(guard);
    assert_eq!(kernel::identity(), before);
    assert_eq!(kernel::group_of_new_file(), before.ids[1]);
}
