//! The numbers of the system calls that take or return ids.
//!
//! On 32-bit x86 and ARM the calls with the plain names have 16-bit ids; libc's wrappers make those with 32 in their names, and so
//! do the tests (setresgid(2), "C library/kernel differences").

#[cfg(not(any(target_arch = "x86", target_arch = "arm")))]
pub use libc::{
    SYS_getgroups, SYS_getresgid, SYS_getresuid, SYS_setfsgid, SYS_setfsuid, SYS_setgid,
    SYS_setgroups, SYS_setregid, SYS_setresgid, SYS_setresuid, SYS_setreuid, SYS_setuid,
};

#[cfg(any(target_arch = "x86", target_arch = "arm"))]
pub use libc::{
    SYS_getgroups32 as SYS_getgroups, SYS_getresgid32 as SYS_getresgid,
    SYS_getresuid32 as SYS_getresuid, SYS_setfsgid32 as SYS_setfsgid,
    SYS_setfsuid32 as SYS_setfsuid, SYS_setgid32 as SYS_setgid, SYS_setgroups32 as SYS_setgroups,
    SYS_setregid32 as SYS_setregid, SYS_setresgid32 as SYS_setresgid,
    SYS_setresuid32 as SYS_setresuid, SYS_setreuid32 as SYS_setreuid, SYS_setuid32 as SYS_setuid,
};
