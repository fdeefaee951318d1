//! A second copy of the library, for `limits.rs` to load: with statics of its own, as a second version in one program has.

use privilege_guard::{Error, GroupChange};

/// What a process guard of this copy is answered: 0 where it is served (and undone), 1 where it is busy.
#[unsafe(no_mangle)]
pub extern "C" fn privilege_guard_second_copy() -> i32 {
    match GroupChange::new().assume().map(drop) {
        Ok(()) => 0,
        Err(Error::Busy { .. }) => 1,
        Err(_) => 2,
    }
}
