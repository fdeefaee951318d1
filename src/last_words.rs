//! The end of a process that would go on as the wrong group.

use std::fmt::{self, Write};

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Writes one line to stderr, where that would not block, and aborts.
///
/// Neither a panic (it could be caught) nor an event (a subscriber could panic or block). No lock, no allocation: this may be a
/// forked child of a process with threads.
pub(crate) fn abort(reason: &dyn fmt::Display) -> ! {
    let mut line = Line { bytes: [0; 512], length: 0 };
    // A line that does not fit is cut.
    _ = write!(line, "privilege-guard: {reason}; aborting");
    line.bytes[line.length] = b'\n';
    let line = &line.bytes[..=line.length];

    // No handler of a signal on this thread, of SIGPIPE above all, runs as the wrong group, or ends the process otherwise.
    _ = SigSet::all().thread_block();
    let stderr = rustix::stdio::stderr();
    let mut ready = [PollFd::new(&stderr, PollFlags::OUT)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    if poll(&mut ready, Some(&at_once)).is_ok() && ready[0].revents().contains(PollFlags::OUT) {
        _ = rustix::io::write(stderr, line);
    }
    std::process::abort()
}

struct Line {
    bytes: [u8; 512],
    length: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        // The last byte is for the end of the line.
        let room = self.bytes.len() - 1 - self.length;
        let fits = text.len().min(room);
        self.bytes[self.length..][..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_does_not_fit_is_cut() {
        let mut line = Line { bytes: [0; 512], length: 0 };
        assert!(write!(line, "{}", "a".repeat(300)).is_ok());
        assert!(write!(line, "{}", "b".repeat(300)).is_err());
        assert!(write!(line, "c").is_err());
        assert_eq!(line.bytes[..line.length], *format!("{}{}", "a".repeat(300), "b".repeat(211)).as_bytes());
    }
}
