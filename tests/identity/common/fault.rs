//! Faults: of the calls of one kind that a process makes, the nth is answered by a supervisor instead of the kernel (`seccomp_unotify(2)`).

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::sandbox::Answer;

/// What a supervised process may take before it is taken for hung, and killed.
const LONGEST: Duration = Duration::from_secs(20);

/// One kind of call: a system call, with a first argument where that makes it one call or another.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub name: &'static str,
    pub number: libc::c_long,
    pub first: First,
}

#[derive(Clone, Copy, Debug)]
pub enum First {
    Any,
    Is(u32),
    IsNot(u32),
}

/// The nth call (from 1) gets this answer, or the nth and every later one.
///
/// A call of the main thread and those that other threads make for it (libc, to change all of them) count as one and get the same
/// answer: where one thread may do what another may not, glibc aborts, which would tell nothing of the library.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub answer: Answer,
    pub nth: usize,
    pub and_later: bool,
}

/// How a supervised process ended.
#[derive(Debug)]
pub struct Ended {
    /// How many calls it made inside the window, and how many of them got the fault's answer.
    pub calls: usize,
    pub faults: usize,
    pub status: ExitStatus,
    /// What it said of itself, where it came to that.
    pub verdict: Option<String>,
    pub stderr: String,
}

/// Inside the supervised process: where faults begin and end.
pub struct Window {
    call: Call,
    supervisor: UnixStream,
}

impl Window {
    /// Calls that `f` makes are counted and may be faulted; later ones are made by the kernel.
    ///
    /// Once in a process: there can be one listener. Needs CAP_SYS_ADMIN or no_new_privs.
    pub fn during<T>(&self, f: impl FnOnce() -> T) -> T {
        // Left open: the supervisor takes its copy when it comes to it.
        let listener = listen(self.call).into_raw_fd();
        (&self.supervisor)
            .write_all(&listener.to_ne_bytes())
            .expect("the supervisor");
        let value = f();
        (&self.supervisor).write_all(OVER).expect("the supervisor");
        value
    }
}

const OVER: &[u8] = b"!";

/// Runs `body` in a forked child, under this fault.
pub fn supervise(call: Call, fault: Option<Fault>, body: impl FnOnce(&Window) -> String) -> Ended {
    let pair = || UnixStream::pair().expect("a pair of sockets");
    let ((control, supervisor), (mut errors, stderr)) = (pair(), pair());
    // SAFETY: this process has one thread.
    let child = match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", std::io::Error::last_os_error()),
        0 => {
            drop((control, errors));
            rustix::stdio::dup2_stderr(&stderr).expect("dup2");
            drop(stderr);
            let window = Window { call, supervisor };
            let verdict = catch_unwind(AssertUnwindSafe(|| body(&window)));
            if let Ok(verdict) = &verdict {
                (&window.supervisor)
                    .write_all(verdict.as_bytes())
                    .expect("the supervisor");
            }
            // Not exit(3), which would undo guards that the body has leaked on purpose.
            // SAFETY: a number.
            unsafe { libc::_exit(if verdict.is_ok() { 0 } else { 101 }) }
        }
        child => child,
    };
    drop((supervisor, stderr));

    let mut supervisor = Supervisor {
        child,
        fault,
        control,
        calls: 0,
        faults: 0,
    };
    supervisor.serve();
    let status = supervisor.wait();
    let mut said = String::new();
    // An error: the child was killed halfway through what it had to say.
    _ = supervisor.control.read_to_string(&mut said);
    let mut stderr = String::new();
    _ = errors.read_to_string(&mut stderr);
    let Supervisor { calls, faults, .. } = supervisor;
    Ended {
        calls,
        faults,
        status,
        verdict: said
            .strip_prefix('!')
            .map(str::to_owned)
            .filter(|said| !said.is_empty()),
        stderr,
    }
}

struct Supervisor {
    child: libc::pid_t,
    fault: Option<Fault>,
    control: UnixStream,
    calls: usize,
    faults: usize,
}

impl Supervisor {
    /// Answers until the child is gone, or kills it.
    fn serve(&mut self) {
        let deadline = Instant::now() + LONGEST;
        let mut listener = [0; size_of::<RawFd>()];
        self.control
            .set_read_timeout(Some(LONGEST))
            .expect("a time limit");
        if self.control.read_exact(&mut listener).is_err() {
            return self.kill();
        }
        let Some(listener) = self.take(RawFd::from_ne_bytes(listener)) else {
            return self.kill();
        };
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            // Of the control socket only its end is of interest.
            let mut ready = [
                PollFd::new(&listener, PollFlags::IN),
                PollFd::new(&self.control, PollFlags::empty()),
            ];
            let left = Timespec {
                tv_sec: left.as_secs().try_into().expect("seconds"),
                tv_nsec: 1,
            };
            poll(&mut ready, Some(&left)).expect("poll");
            let [asked, ended] = ready.map(|fd| fd.revents());
            if asked.contains(PollFlags::IN) {
                self.answer(&listener);
            } else if (asked | ended).contains(PollFlags::HUP) {
                return;
            }
        }
        self.kill();
    }

    fn answer(&mut self, listener: &OwnedFd) {
        let Some(asked) = receive(listener) else {
            return;
        };
        let over = self.is_over();
        let fault = self.fault.filter(|fault| {
            !over && (self.calls + 1 == fault.nth || fault.and_later && self.calls + 1 > fault.nth)
        });
        let mut answer = libc::seccomp_notif_resp {
            id: asked.id,
            val: 0,
            error: 0,
            flags: 0,
        };
        match fault.map(|fault| fault.answer) {
            Some(Answer::Errno(errno)) => answer.error = -errno,
            Some(Answer::SuccessWithoutDoing) => {}
            None => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
        }
        let sent = send(listener, answer);
        // glibc lets the other threads make their calls first.
        if sent && !over && asked.pid == self.child.unsigned_abs() {
            self.calls += 1;
            self.faults += usize::from(fault.is_some());
        }
    }

    /// Whether the child has said so: before it made the call that is being answered.
    fn is_over(&self) -> bool {
        let mut ready = [PollFd::new(&self.control, PollFlags::IN)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        poll(&mut ready, Some(&at_once)).expect("poll") != 0
            && ready[0].revents().contains(PollFlags::IN)
    }

    /// The child's descriptor, as one of this process.
    fn take(&self, descriptor: RawFd) -> Option<OwnedFd> {
        use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
        let child = pidfd_open(Pid::from_raw(self.child)?, PidfdFlags::empty()).ok()?;
        // An error: the child has ended already.
        pidfd_getfd(child.as_fd(), descriptor, PidfdGetfdFlags::empty()).ok()
    }

    fn kill(&self) {
        // SAFETY: numbers only; the child is not waited for yet, so the number is still its own.
        unsafe { libc::kill(self.child, libc::SIGKILL) };
    }

    fn wait(&self) -> ExitStatus {
        let mut status = 0;
        assert_eq!(
            // SAFETY: a valid pointer.
            unsafe { libc::waitpid(self.child, &raw mut status, 0) },
            self.child
        );
        ExitStatus::from_raw(status)
    }
}

/// What is asked next; `None` where its thread has died.
fn receive(listener: &OwnedFd) -> Option<libc::seccomp_notif> {
    // SAFETY: numbers only; the kernel wants it zeroed.
    let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: a valid pointer to what this request reads into.
    let received = unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            &raw mut asked,
        )
    };
    (received == 0).then_some(asked)
}

fn send(listener: &OwnedFd, mut answer: libc::seccomp_notif_resp) -> bool {
    // SAFETY: a valid pointer to what this request takes.
    unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            &raw mut answer,
        ) == 0
    }
}

/// From now on, before the kernel makes a call of this kind for any thread, `f` runs, on a thread that may make none itself.
pub fn before_each(call: Call, mut f: impl FnMut() + Send + 'static) {
    let listener = listen(call);
    std::thread::spawn(move || {
        while let Some(libc::seccomp_notif { id, .. }) = receive(&listener) {
            f();
            send(
                &listener,
                libc::seccomp_notif_resp {
                    id,
                    val: 0,
                    error: 0,
                    flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
                },
            );
        }
    });
}

/// Asks a listener about every call of this kind, from all threads of this process.
fn listen(call: Call) -> OwnedFd {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const IS: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let number = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    // The low half of the first argument, where the machine is little-endian.
    let argument = std::mem::offset_of!(libc::seccomp_data, args) as u32;
    let (value, asks_if_equal, asks_if_not) = match call.first {
        First::Any => (0, 0, 0),
        First::Is(value) => (value, 0, 1),
        First::IsNot(value) => (value, 1, 0),
    };
    let step = |code, k, jt, jf| libc::sock_filter { code, jt, jf, k };
    let mut filter = [
        step(LOAD, number, 0, 0),
        step(IS, call.number as u32, 0, 3),
        step(LOAD, argument, 0, 0),
        step(IS, value, asks_if_equal, asks_if_not),
        step(RETURN, libc::SECCOMP_RET_USER_NOTIF, 0, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_mut_ptr(),
    };
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER
        | libc::SECCOMP_FILTER_FLAG_TSYNC
        | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
    // SAFETY: the program lives longer than the call, which copies it; what is returned is a new descriptor.
    unsafe {
        let listener = libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        );
        assert!(
            listener >= 0,
            "seccomp: {}",
            std::io::Error::last_os_error()
        );
        OwnedFd::from_raw_fd(listener as RawFd)
    }
}
