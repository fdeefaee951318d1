//! The signal mask of the calling thread.

use std::io;

use nix::sys::signal::{SigSet, SigmaskHow, Signal};

use crate::error::no_effect_error;

/// Finds out whether signals can be blocked.
pub(crate) fn probe() -> io::Result<()> {
    let previous = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let blocked = SigSet::thread_get_mask();
    previous.thread_set_mask()?;
    match blocked?.contains(Signal::SIGUSR1) {
        true => Ok(()),
        false => Err(no_effect_error()),
    }
}

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
