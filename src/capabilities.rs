//! Sets of capabilities, as values for people and for decisions.

use std::fmt;

use rustix::thread::CapabilitySet;

/// Capabilities that lead back to other ids, other capabilities, other files or another root.
pub(crate) const LEAD_BACK: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::SYS_MODULE)
    .union(CapabilitySet::SYS_PTRACE)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::MAC_ADMIN)
    .union(CapabilitySet::MAC_OVERRIDE)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::CHECKPOINT_RESTORE);

/// The names of capabilities, as `capabilities(7)` has them.
pub(crate) struct CapabilityNames(pub(crate) CapabilitySet);

impl fmt::Display for CapabilityNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let mut separator = "";
        let mut names = self.0.iter_names();
        for (name, _) in names.by_ref() {
            write!(f, "{separator}CAP_{name}")?;
            separator = ", ";
        }
        match names.remaining().bits() {
            0 => Ok(()),
            unnamed => write!(f, "{separator}{unnamed:#x}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_that_leads_back_has_nineteen_names() {
        assert_eq!(LEAD_BACK.iter().count(), 19);
        assert!(!LEAD_BACK.contains(CapabilitySet::NET_BIND_SERVICE));
    }

    #[test]
    fn displays_the_names_of_the_manual_page() {
        let names = |set| CapabilityNames(set).to_string();
        assert_eq!(names(CapabilitySet::empty()), "none");
        let two = CapabilitySet::NET_BIND_SERVICE | CapabilitySet::SYS_NICE;
        assert_eq!(names(two), "CAP_NET_BIND_SERVICE, CAP_SYS_NICE");
        let unknown = CapabilitySet::from_bits_retain(1 << 63);
        assert_eq!(
            names(CapabilitySet::KILL | unknown),
            "CAP_KILL, 0x8000000000000000"
        );
    }
}
