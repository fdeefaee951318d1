//! An io_uring that makes files, with the raw calls (include/uapi/linux/io_uring.h).

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

const ENTRIES: u32 = 4;
const REGISTER_PERSONALITY: libc::c_long = 9;
const ENTER_GETEVENTS: libc::c_long = 1;
/// Wakes the kernel thread of a ring that has one, and means nothing to any other.
const ENTER_SQ_WAKEUP: libc::c_long = 1 << 1;
const SETUP_SQPOLL: u32 = 1 << 1;
const OFF_SQES: libc::off_t = 0x1000_0000;
const OP_OPENAT: u64 = 18;
const OP_READ: u64 = 22;
/// Flags of a request, where they stand in its first word.
const DRAIN: u64 = 1 << 1 << 8;
const LINKED_TO_THE_NEXT: u64 = 1 << 2 << 8;
const ASYNC: u64 = 1 << 4 << 8;

/// `struct io_uring_params`, as words.
const WORDS_OF_PARAMS: usize = 30;

fn set_up(flags: u32, params: &mut [u32; WORDS_OF_PARAMS]) -> std::io::Result<OwnedFd> {
    params[2] = flags;
    // SAFETY: the pointer is to as much as the kernel reads and writes.
    let ring = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, params.as_mut_ptr()) };
    if ring < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(ring as i32) })
}

/// With a kernel thread that polls it, and nothing to poll.
pub fn idle() -> std::io::Result<OwnedFd> {
    set_up(SETUP_SQPOLL, &mut [0; WORDS_OF_PARAMS])
}

/// `struct io_sqe_ring` and the like are words at offsets that the kernel tells.
pub struct Ring {
    ring: OwnedFd,
    words: *const AtomicU32,
    requests: *mut [u64; 8],
    params: [u32; WORDS_OF_PARAMS],
    /// What the requests point to.
    kept: Vec<CString>,
    read: Box<[u8; 1]>,
}

/// Whose identity a request is made under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Personality(u16);

impl Personality {
    /// That of whoever makes it.
    pub const NONE: Self = Personality(0);
}

/// How a request waits for the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waits {
    /// Linked to it.
    Linked,
    /// Linked to it, and that was handed to a kernel thread.
    HandedOver,
    /// For all before it to have ended (`IOSQE_IO_DRAIN`).
    Drained,
}

/// One that is not queued yet.
pub struct Request([u64; 8]);

impl Ring {
    /// The case is ignored where the machine has none.
    pub fn new() -> Self {
        Self::with_flags(0)
    }

    /// With a kernel thread that polls it.
    pub fn polled() -> Self {
        Self::with_flags(SETUP_SQPOLL)
    }

    fn with_flags(flags: u32) -> Self {
        let mut params = [0; WORDS_OF_PARAMS];
        let ring = set_up(flags, &mut params)
            .unwrap_or_else(|error| super::ignore(&format!("needs an io_uring: {error}")));
        let map = |offset| {
            let (access, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE,
            );
            // SAFETY: a new mapping, never unmapped: of the rings (one mapping has both) and of the requests, neither longer than a page.
            let mapping = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    4096,
                    access,
                    flags,
                    ring.as_raw_fd(),
                    offset,
                )
            };
            assert_ne!(
                mapping,
                libc::MAP_FAILED,
                "{}",
                std::io::Error::last_os_error()
            );
            mapping
        };
        Ring {
            words: map(0).cast(),
            requests: map(OFF_SQES).cast(),
            ring,
            params,
            kept: Vec::new(),
            read: Box::new([0]),
        }
    }

    /// A word of the rings, whose offset stands in this word of the params, and the nth after it.
    fn word(&self, param: usize, nth: u32) -> &AtomicU32 {
        let offset = self.params[param] / 4 + nth;
        assert!(offset < 1024);
        // SAFETY: within the mapping, which lasts.
        unsafe { &*self.words.add(offset as usize) }
    }

    /// Registers the calling thread's identity.
    pub fn register_personality(&self) -> Personality {
        // SAFETY: numbers only.
        let id = unsafe {
            libc::syscall(
                libc::SYS_io_uring_register,
                self.ring.as_raw_fd(),
                REGISTER_PERSONALITY,
                0,
                0,
            )
        };
        assert!(id > 0, "{}", std::io::Error::last_os_error());
        Personality(id as u16)
    }

    /// Makes a file, now.
    pub fn make_file(&mut self, path: &Path, personality: Personality) {
        let request = self.open(path, personality);
        self.make(request);
    }

    /// Makes it, now.
    pub fn make(&self, Request(request): Request) {
        self.queue(request);
        self.submit(1, 1);
        self.is_done();
    }

    /// Makes a file once a byte can be read, and not before.
    pub fn make_file_after(&mut self, pipe: &OwnedFd, path: &Path, waits: Waits) {
        let buffer = self.read.as_mut_ptr() as u64;
        let (first, second) = match waits {
            Waits::Linked => (LINKED_TO_THE_NEXT, 0),
            Waits::HandedOver => (LINKED_TO_THE_NEXT | ASYNC, 0),
            Waits::Drained => (0, DRAIN),
        };
        self.queue([
            OP_READ | first | descriptor(pipe.as_raw_fd()),
            u64::MAX,
            buffer,
            1,
            0,
            0,
            0,
            0,
        ]);
        let Request(mut request) = self.open(path, Personality::NONE);
        request[0] |= second;
        self.queue(request);
        self.submit(2, 0);
    }

    /// Waits for what [`Self::make_file_after`] has queued.
    pub fn is_done_after(&self) {
        self.submit(0, 2);
        self.is_done();
    }

    /// To make a file.
    pub fn open(&mut self, path: &Path, personality: Personality) -> Request {
        let path = CString::new(path.to_str().expect("a path")).expect("a path");
        let how = ((libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY) as u64) << 32 | 0o600;
        let (operation, pointer) = (OP_OPENAT | descriptor(libc::AT_FDCWD), path.as_ptr() as u64);
        self.kept.push(path);
        Request([
            operation,
            0,
            pointer,
            how,
            0,
            u64::from(personality.0) << 16,
            0,
            0,
        ])
    }

    fn queue(&self, request: [u64; 8]) {
        // The offsets of the tail and of the array of indices are the words 11 and 16.
        let tail = self.word(11, 0);
        let index = tail.load(Ordering::Relaxed) % ENTRIES;
        // SAFETY: within the mapping; the kernel reads it when it is told to.
        unsafe { self.requests.add(index as usize).write(request) };
        self.word(16, index).store(index, Ordering::Relaxed);
        tail.fetch_add(1, Ordering::Release);
    }

    fn submit(&self, new: u32, wait_for: u32) {
        let none = std::ptr::null::<u8>();
        let (ring, flags) = (
            self.ring.as_raw_fd(),
            ENTER_SQ_WAKEUP | if wait_for > 0 { ENTER_GETEVENTS } else { 0 },
        );
        // SAFETY: the requests point to what this ring keeps.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                ring,
                new,
                wait_for,
                flags,
                none,
                0,
            )
        };
        assert_eq!(
            taken,
            new as libc::c_long,
            "{}",
            std::io::Error::last_os_error()
        );
    }

    /// All that has ended has ended well.
    fn is_done(&self) {
        // The offsets of the head, the tail and the answers are the words 20, 21 and 25; an answer is four words, of which the third is the result.
        let (head, tail) = (self.word(20, 0), self.word(21, 0).load(Ordering::Acquire));
        let first = head.swap(tail, Ordering::Release);
        assert!(first < tail);
        for answer in first..tail {
            let answer = answer % self.params[1];
            let result = self.word(25, 4 * answer + 2).load(Ordering::Relaxed) as i32;
            assert!(
                result >= 0,
                "{}",
                std::io::Error::from_raw_os_error(-result)
            );
        }
    }
}

fn descriptor(descriptor: i32) -> u64 {
    u64::from(descriptor as u32) << 32
}
