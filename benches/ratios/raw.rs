//! The calls, without the library.

use std::ptr::null_mut;

/// The calls that take 32-bit ids: on 32-bit x86 and ARM, those with the plain names take 16-bit ones.
mod calls {
    #[cfg(not(any(target_arch = "x86", target_arch = "arm")))]
    pub use libc::{
        SYS_getegid, SYS_geteuid, SYS_getresgid, SYS_getresuid, SYS_setfsgid, SYS_setfsuid,
        SYS_setgroups, SYS_setresgid, SYS_setresuid,
    };
    #[cfg(any(target_arch = "x86", target_arch = "arm"))]
    pub use libc::{
        SYS_getegid32 as SYS_getegid, SYS_geteuid32 as SYS_geteuid,
        SYS_getresgid32 as SYS_getresgid, SYS_getresuid32 as SYS_getresuid,
        SYS_setfsgid32 as SYS_setfsgid, SYS_setfsuid32 as SYS_setfsuid,
        SYS_setgroups32 as SYS_setgroups, SYS_setresgid32 as SYS_setresgid,
        SYS_setresuid32 as SYS_setresuid,
    };
}

const LEAVE: u32 = u32::MAX;

/// What a thread guard cannot do without: the ids, the filesystem id and the parent-death signal as they are, there and back.
pub fn five_calls(group: u32) {
    let [real, effective, saved] = read();
    setresgid(group, group, LEAVE);
    setresgid(real, effective, saved);
}

fn read() -> [u32; 3] {
    let (mut real, mut effective, mut saved, mut signal) = (0u32, 0u32, 0u32, 0i32);
    // SAFETY: valid pointers, and numbers.
    unsafe {
        let read = libc::syscall(
            calls::SYS_getresgid,
            &raw mut real,
            &raw mut effective,
            &raw mut saved,
        );
        let filesystem = libc::syscall(calls::SYS_setfsgid, LEAVE);
        let signal = libc::syscall(
            libc::SYS_prctl,
            libc::PR_GET_PDEATHSIG,
            &raw mut signal,
            null_mut::<u8>(),
        );
        assert!(read == 0 && filesystem >= 0 && signal == 0);
    }
    [real, effective, saved]
}

/// The same, each setting call read back: a seccomp filter can answer "done" without doing.
pub fn seven_calls(group: u32) {
    let read_back = |expected: u32| {
        // SAFETY: numbers only.
        assert_eq!(
            // SAFETY: numbers only.
            unsafe { libc::syscall(calls::SYS_getegid) },
            expected as libc::c_long
        );
    };
    let [real, effective, saved] = read();
    setresgid(group, group, LEAVE);
    read_back(group);
    setresgid(real, effective, saved);
    read_back(effective);
}

/// `setresgid(2)`, of the calling thread only.
pub fn setresgid(real: u32, effective: u32, saved: u32) {
    // SAFETY: numbers only.
    assert_eq!(
        // SAFETY: numbers only.
        unsafe { libc::syscall(calls::SYS_setresgid, real, effective, saved) },
        0
    );
}

/// `setresuid(2)`, of the calling thread only.
pub fn setresuid(real: u32, effective: u32, saved: u32) {
    // SAFETY: numbers only.
    assert_eq!(
        // SAFETY: numbers only.
        unsafe { libc::syscall(calls::SYS_setresuid, real, effective, saved) },
        0
    );
}

/// All calls of a user guard on a thread: the ids, the capability sets, the securebits and the parent-death signal as they are; there
/// and back, each read back; and the capability sets at the end.
pub fn ten_calls(user: u32) {
    let (mut real, mut effective, mut saved, mut signal) = (0u32, 0u32, 0u32, 0i32);
    // SAFETY: valid pointers, and numbers.
    unsafe {
        let read = libc::syscall(
            calls::SYS_getresuid,
            &raw mut real,
            &raw mut effective,
            &raw mut saved,
        );
        let filesystem = libc::syscall(calls::SYS_setfsuid, LEAVE);
        capget();
        let bits = libc::syscall(libc::SYS_prctl, libc::PR_GET_SECUREBITS, 0, 0, 0, 0);
        let signal = libc::syscall(libc::SYS_prctl, libc::PR_GET_PDEATHSIG, &raw mut signal);
        assert!(read == 0 && filesystem >= 0 && bits >= 0 && signal == 0);
        setresuid(LEAVE, user, LEAVE);
        assert_eq!(libc::syscall(calls::SYS_geteuid), user as libc::c_long);
        setresuid(real, effective, saved);
        assert_eq!(libc::syscall(calls::SYS_geteuid), effective as libc::c_long);
    }
    capget();
}

fn capget() {
    /// `_LINUX_CAPABILITY_VERSION_3` (linux/capability.h).
    const VERSION: u32 = 0x2008_0522;
    let (mut header, mut sets) = ([VERSION, 0], [0u32; 6]);
    // SAFETY: pointers to a header, and to two times three sets, as this version has them.
    let read = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), sets.as_mut_ptr()) };
    assert!(read == 0 && sets[0] != 0);
}

/// `setgroups(2)`, of the calling thread only.
pub fn setgroups(groups: &[u32]) {
    assert_eq!(
        // SAFETY: the pointer and the length are those of a slice.
        unsafe { libc::syscall(calls::SYS_setgroups, groups.len(), groups.as_ptr()) },
        0
    );
}

/// What file servers write by hand, on the calling thread: begin as a client.
pub fn become_client(user: u32, group: u32, groups: Option<&[u32]>) {
    if let Some(groups) = groups {
        setgroups(groups);
    }
    setresgid(LEAVE, group, LEAVE);
    setresuid(LEAVE, user, LEAVE);
}

/// And end: the reverse, to root's own groups.
pub fn become_root(groups: Option<&[u32]>) {
    setresuid(LEAVE, 0, LEAVE);
    setresgid(LEAVE, 0, LEAVE);
    if let Some(groups) = groups {
        setgroups(groups);
    }
}

/// `setresuid(3)`, of all threads.
pub fn libc_setresuid(real: u32, effective: u32, saved: u32) {
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::setresuid(real, effective, saved) }, 0);
}

/// `setresgid(3)`, of all threads.
pub fn libc_setresgid(real: u32, effective: u32, saved: u32) {
    // SAFETY: numbers only.
    assert_eq!(unsafe { libc::setresgid(real, effective, saved) }, 0);
}
