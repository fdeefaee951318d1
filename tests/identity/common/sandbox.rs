//! Seccomp filters that make the kernel answer one call, with some of its arguments, with an errno, or with success without doing it.

use std::collections::BTreeMap;

use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// What the filtered call answers. Zero as errno is success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Errno(i32),
    SuccessWithoutDoing,
}

/// From now on, on the calling thread (and what it starts), the call with these arguments (index and value) gets this answer.
pub fn answer(call: libc::c_long, arguments: &[(u8, u32)], answer: Answer) {
    let program = program(call, arguments, answer);
    seccompiler::apply_filter(&program).expect("a seccomp filter");
}

/// The same on all threads of the process.
pub fn answer_on_all_threads(call: libc::c_long, arguments: &[(u8, u32)], answer: Answer) {
    let program = program(call, arguments, answer);
    seccompiler::apply_filter_all_threads(&program).expect("a seccomp filter");
}

/// EPERM on the calling thread.
pub fn refuse(call: libc::c_long, arguments: &[(u8, u32)]) {
    answer(call, arguments, Answer::Errno(libc::EPERM));
}

/// On the calling thread: the call with these arguments kills the process, with SIGSYS.
pub fn kill_for(call: libc::c_long, arguments: &[(u8, u32)]) {
    seccompiler::apply_filter(&program_of(call, arguments, SeccompAction::KillProcess))
        .expect("a seccomp filter");
}

fn program(call: libc::c_long, arguments: &[(u8, u32)], answer: Answer) -> seccompiler::BpfProgram {
    let errno = match answer {
        Answer::Errno(errno) => errno as u32,
        Answer::SuccessWithoutDoing => 0,
    };
    program_of(call, arguments, SeccompAction::Errno(errno))
}

fn program_of(
    call: libc::c_long,
    arguments: &[(u8, u32)],
    action: SeccompAction,
) -> seccompiler::BpfProgram {
    let conditions = arguments.iter().map(|&(index, value)| {
        SeccompCondition::new(
            index,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            u64::from(value),
        )
        .expect("a condition")
    });
    let conditions: Vec<_> = conditions.collect();
    let rules = if conditions.is_empty() {
        vec![]
    } else {
        vec![SeccompRule::new(conditions).expect("a rule")]
    };
    let arch = std::env::consts::ARCH;
    let arch: TargetArch = arch
        .try_into()
        .unwrap_or_else(|_| super::ignore(&format!("seccompiler knows no {arch}")));
    #[allow(
        clippy::unnecessary_cast,
        reason = "c_long has 32 bits on some targets"
    )]
    let call = call as i64;
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, rules)]),
        SeccompAction::Allow,
        action,
        arch,
    );
    filter.expect("a filter").try_into().expect("a program")
}

/// The same on the calling thread, without no_new_privs, so that set-group-ID programs still get their group. Needs CAP_SYS_ADMIN.
pub fn answer_over_exec(call: libc::c_long, arguments: &[(u8, u32)], answer: Answer) {
    let mut program = program(call, arguments, answer);
    let length = program.len().try_into().expect("a short program");
    // seccompiler's instruction has the layout of the kernel's.
    let program = libc::sock_fprog {
        len: length,
        filter: program.as_mut_ptr().cast(),
    };
    // SAFETY: the program lives longer than the call, which copies it.
    let made = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
}
