//! The identities of all threads of this process.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::{fmt, io};

use rustix::thread::CapabilitySet;

use super::task_dir::{
    TaskDir, ThreadKey, ThreadRead, current_tid, has_exited, is_kernel_worker, too_fast,
};
use crate::error::Error;
use crate::ids::{Gid, GroupIds, UserIds};

/// The identity of one thread at the moment it was read (`/proc/self/task/<tid>/status`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ThreadIds {
    /// The thread's id (`gettid(2)`).
    pub thread_id: u32,
    /// Its name, at most 15 bytes long. Bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Its user IDs.
    pub user_ids: UserIds,
    /// Its group IDs.
    pub group_ids: GroupIds,
    /// Its supplementary groups.
    pub supplementary: Vec<Gid>,
    /// Its effective capabilities, which it can use.
    pub effective: CapabilitySet,
    /// Its permitted capabilities, which it can make effective.
    pub permitted: CapabilitySet,
    /// Its inheritable capabilities.
    pub inheritable: CapabilitySet,
    /// Its ambient capabilities, which an executed program without privileges of its own keeps.
    pub ambient: CapabilitySet,
    /// Its bounding set, which limits the capabilities of an executed program.
    pub bounding: CapabilitySet,
    /// Whether it is a kernel thread in this process: of an io_uring (`iou-sqp-*`, `iou-wrk-*`) or,
    /// since Linux 6.4, of vhost. No call changes its identity.
    pub is_kernel_worker: bool,
    /// Whether it has `no_new_privs`.
    pub no_new_privs: bool,
}

impl ThreadIds {
    /// Returns whether one of these capabilities is held: permitted, inheritable or ambient.
    pub fn holds(&self, capabilities: CapabilitySet) -> bool {
        (self.permitted | self.inheritable | self.ambient).intersects(capabilities)
    }
}

impl fmt::Display for ThreadIds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ThreadIds {
            thread_id,
            name,
            user_ids,
            group_ids,
            supplementary,
            ..
        } = self;
        write!(
            f,
            "thread {thread_id} ({name}): user ids {user_ids}; group ids {group_ids}; "
        )?;
        write!(f, "{} supplementary groups", supplementary.len())?;
        for (capability, text) in [
            (CapabilitySet::SETUID, "; holds CAP_SETUID"),
            (CapabilitySet::SETGID, "; holds CAP_SETGID"),
        ] {
            f.write_str(if self.holds(capability) { text } else { "" })?;
        }
        f.write_str(if self.is_kernel_worker {
            "; a kernel worker"
        } else {
            ""
        })
    }
}

/// Reads every thread of this process, the calling thread first.
///
/// Exiting threads are skipped: they run no more code of the process.
///
/// # Errors
/// - [`Error::ThreadsUnreadable`] if `/proc` cannot be read, or if threads start and end faster
///   than they can be read.
///
/// # Examples
/// ```
/// for thread in privilege_guard::threads()? {
///     println!("{thread}");
/// }
/// # Ok::<(), privilege_guard::Error>(())
/// ```
pub fn threads() -> Result<Vec<ThreadIds>, Error> {
    TaskDir::open()
        .and_then(|tasks| tasks.read_all())
        .map_err(Error::threads_unreadable)
}

/// The maximum number of listings before `read_all` fails.
const MAX_ATTEMPTS: u32 = 1000;

/// Returns the name of a thread of this process.
pub(crate) fn thread_name(thread_id: u32) -> Option<String> {
    TaskDir::open().and_then(|tasks| tasks.name(thread_id)).ok()
}

impl TaskDir {
    /// Reads every thread, the calling one first, without those that are ending.
    ///
    /// The result covers every thread that existed at the last listing. A thread inherits its
    /// credentials, so one that started and ended in between cannot have hidden different ones.
    pub(crate) fn read_all(&self) -> io::Result<Vec<ThreadIds>> {
        let mut read = HashMap::new();
        for _ in 0..MAX_ATTEMPTS {
            let listed = self.list()?;
            let count = self.count()?;
            let mut existing = 0;
            for &key in &listed {
                existing += u64::from(self.exists(key)?);
            }
            if existing < count {
                continue;
            }
            let is_known = listed.iter().all(|key| read.contains_key(key));
            read.retain(|key, _| listed.contains(key));
            if is_known {
                return caller_first(read.into_values().flatten().collect());
            }
            for key in listed {
                if let Entry::Vacant(unread) = read.entry(key) {
                    if let ThreadRead::Found(thread) = self.read_thread(key)? {
                        unread.insert(Some(thread));
                    } else if self.exists(key)? {
                        // It stays listed for a while, as an ended main thread does.
                        unread.insert(None);
                    }
                }
            }
        }
        Err(too_fast())
    }

    fn read_thread(&self, key: ThreadKey) -> io::Result<ThreadRead<ThreadIds>> {
        let Some(flags) = self.flags(key)? else {
            return Ok(ThreadRead::Gone);
        };
        let ThreadRead::Found(status) = self.status(key)? else {
            return Ok(ThreadRead::Gone);
        };
        let name = match self.name(key.thread_id) {
            Err(error) if has_exited(&error) => return Ok(ThreadRead::Gone),
            name => name?,
        };
        Ok(ThreadRead::Found(ThreadIds {
            thread_id: key.thread_id,
            name,
            user_ids: status.user_ids,
            group_ids: status.group_ids,
            supplementary: status.groups,
            effective: status.effective,
            permitted: status.permitted,
            inheritable: status.inheritable,
            ambient: status.ambient,
            bounding: status.bounding,
            is_kernel_worker: is_kernel_worker(flags),
            no_new_privs: status.no_new_privs,
        }))
    }
}

fn caller_first(mut threads: Vec<ThreadIds>) -> io::Result<Vec<ThreadIds>> {
    let caller = current_tid();
    threads.sort_unstable_by_key(|thread| (thread.thread_id != caller, thread.thread_id));
    match threads.first() {
        Some(first) if first.thread_id == caller => Ok(threads),
        _ => Err(io::Error::other(
            "/proc does not show the calling thread (is it that of another pid namespace?)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_calling_thread_comes_first() {
        let threads = TaskDir::open().unwrap().read_all().unwrap();
        assert_eq!(threads[0].thread_id, current_tid());
    }
}
