//! Aborts a process that would otherwise continue under the wrong identity.

use std::fmt::{self, Write};
use std::io::IoSlice;

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ReadWriteFlags, pwritev2};

/// Writes one line to stderr, if that would not block, and aborts.
///
/// A panic could be caught, and a subscriber of an event could panic or block. This takes no lock
/// and allocates nothing, since the process might be a forked child of one with threads.
pub(crate) fn abort_with(reason: &dyn fmt::Display) -> ! {
    let mut line = LineBuffer {
        bytes: [0; 512],
        length: 0,
    };
    // A line that does not fit is truncated.
    _ = write!(line, "privilege-guard: {reason}; aborting");
    line.bytes[line.length] = b'\n';
    let line = &line.bytes[..=line.length];

    // No signal handler may run on this thread under the wrong identity, or end the process in
    // another way (SIGPIPE above all).
    _ = SigSet::all().thread_block();
    write_unless_blocking(line);
    std::process::abort()
}

/// Another thread may fill a pipe at any time, so only a write that is told not to wait is certain
/// not to. Where there is none (terminals, files), the line is written if it is possible now.
fn write_unless_blocking(line: &[u8]) {
    let stderr = rustix::stdio::stderr();
    let at_current_position = u64::MAX;
    let line_once = [IoSlice::new(line)];
    let written = pwritev2(
        stderr,
        &line_once,
        at_current_position,
        ReadWriteFlags::NOWAIT,
    );
    if !matches!(written, Err(Errno::OPNOTSUPP | Errno::NOSYS)) {
        return;
    }
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    let no_timeout = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    if poll(&mut ready, Some(&no_timeout)).is_ok() && ready[0].revents().contains(PollFlags::OUT) {
        _ = rustix::io::write(stderr, line);
    }
}

struct LineBuffer {
    bytes: [u8; 512],
    length: usize,
}

impl Write for LineBuffer {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte is reserved for the newline.
        let room = self.bytes.len() - 1 - self.length;
        let fits = text.len().min(room);
        self.bytes[self.length..][..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        if fits == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_is_truncated() {
        let mut line = LineBuffer {
            bytes: [0; 512],
            length: 0,
        };
        assert!(write!(line, "{}", "a".repeat(300)).is_ok());
        assert!(write!(line, "{}", "b".repeat(300)).is_err());
        assert!(write!(line, "c").is_err());
        assert_eq!(
            line.bytes[..line.length],
            *format!("{}{}", "a".repeat(300), "b".repeat(211)).as_bytes()
        );
    }
}
