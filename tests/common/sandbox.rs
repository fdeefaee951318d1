//! Seccomp filters that make the kernel answer one call, with some of its arguments, with an errno, or with success without doing it.

use std::collections::BTreeMap;

use seccompiler::{SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};

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

fn program(call: libc::c_long, arguments: &[(u8, u32)], answer: Answer) -> seccompiler::BpfProgram {
    let errno = match answer {
        Answer::Errno(errno) => errno as u32,
        Answer::SuccessWithoutDoing => 0,
    };
    let conditions = arguments.iter().map(|&(index, value)| {
        SeccompCondition::new(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, u64::from(value)).expect("a condition")
    });
    let conditions: Vec<_> = conditions.collect();
    let rules = if conditions.is_empty() { vec![] } else { vec![SeccompRule::new(conditions).expect("a rule")] };
    let arch: TargetArch = std::env::consts::ARCH.try_into().expect("an architecture that seccompiler knows");
    let filter = SeccompFilter::new(BTreeMap::from([(call, rules)]), SeccompAction::Allow, SeccompAction::Errno(errno), arch);
    filter.expect("a filter").try_into().expect("a program")
}
