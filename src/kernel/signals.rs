//! The signal mask of the calling thread.

use nix::sys::signal::{SigSet, SigmaskHow};

/// Blocks all signals of the calling thread until it is dropped, so that no handler runs meanwhile.
#[derive(Debug)]
pub(crate) struct SignalsBlocked {
    previous: Option<SigSet>,
}

impl SignalsBlocked {
    pub(crate) fn new() -> Self {
        SignalsBlocked {
            previous: SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok(),
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        if let Some(previous) = &self.previous {
            _ = previous.thread_set_mask();
        }
    }
}
