//! The kernel's error numbers, in words.

use std::{fmt, io};

use nix::errno::Errno;

/// The answer of the system, in words.
pub(crate) struct DisplayErrno<'a>(pub(crate) &'a io::Error);

impl fmt::Display for DisplayErrno<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(code) => write!(f, "{}", Errno::from_raw(code)),
            None => self.0.fmt(f),
        }
    }
}

/// The error for a call that returned success although nothing changed.
pub(crate) fn no_effect_error() -> io::Error {
    io::Error::other("it reported success without effect (a seccomp filter?)")
}
