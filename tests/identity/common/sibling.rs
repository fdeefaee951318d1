//! Another thread that does nothing, to be looked at.

use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;

use super::kernel::{self, Identity};

pub struct Sibling {
    thread: i32,
    end: Option<Sender<()>>,
    handle: Option<JoinHandle<()>>,
}

impl Sibling {
    pub fn start() -> Self {
        Sibling::start_after(|| ())
    }

    /// Runs `f` on it first.
    pub fn start_after(f: impl FnOnce() + Send + 'static) -> Self {
        let (tell, told) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let handle = std::thread::spawn(move || {
            f();
            tell.send(kernel::gettid()).expect("the main thread waits");
            // Also where the sender is dropped.
            _ = ended.recv();
        });
        Sibling {
            thread: told.recv().expect("a thread id"),
            end: Some(end),
            handle: Some(handle),
        }
    }

    pub fn thread(&self) -> i32 {
        self.thread
    }

    pub fn identity(&self) -> Identity {
        kernel::identity_of(self.thread)
    }
}

impl Drop for Sibling {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(handle) = self.handle.take() {
            let ended = handle.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}
