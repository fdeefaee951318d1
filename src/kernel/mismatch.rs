//! Whether each thread of this process is as expected.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::{Duration, Instant};

use super::status::Status;
use super::task_dir::{
    TaskDir, ThreadKey, ThreadRead, current_tid, is_kernel_worker, mounted_over,
};
use crate::ids::{Gid, GroupIds, Ids, UserIds};
use crate::plan::users::OtherThread;

/// How long a thread may show other ids than expected after a change, since libc skips threads that
/// are ending.
pub(crate) const EXITING_THREAD_TIMEOUT: Duration = Duration::from_secs(1);

/// How long to look for a moment at which all threads can be listed.
const LISTING_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a thread may be listed that is not there when it is looked at.
const MAX_LISTINGS_OF_ENDED: u32 = 20;

/// A check of one other thread. Its error is the finding.
pub(crate) type CheckThread<'a> = dyn Fn(&OtherThread) -> Result<(), &'static str> + 'a;

/// The identity that every other thread must have.
#[derive(Clone, Copy)]
pub(crate) struct Expected<'a> {
    pub(crate) user_ids: Option<UserIds>,
    pub(crate) group_ids: Option<GroupIds>,
    /// Sorted, as the kernel keeps them.
    pub(crate) groups: Option<&'a [Gid]>,
    /// The effective ids tell of all: one call set them, and it moved them.
    pub(crate) effective_suffices: bool,
    pub(crate) check: Option<&'a CheckThread<'a>>,
    /// How long a thread may show something else. It is zero before a change.
    pub(crate) timeout: Duration,
}

/// A thread that is not as expected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mismatch {
    pub(crate) thread_id: u32,
    pub(crate) name: String,
    pub(crate) finding: &'static str,
}

impl TaskDir {
    /// Returns the first other thread that is not as expected, and stays so.
    ///
    /// The cost with one thread is one system call.
    pub(crate) fn find_mismatch(&self, expected: &Expected<'_>) -> io::Result<Option<Mismatch>> {
        if !expected.compares_something() {
            return Ok(None);
        }
        let started = Instant::now();
        let (mut settled, mut gone) = (HashSet::new(), HashMap::new());
        loop {
            if self.count()? == 1 {
                return Ok(None);
            }
            let (caller, listed) = (current_tid(), self.list()?);
            let count = self.count()?;
            let (mut existing, mut mismatch, mut has_ended_some) = (0, None, false);
            for &key in &listed {
                let exists = if key.thread_id == caller {
                    true
                } else if settled.contains(&key) {
                    self.exists(key)?
                } else {
                    match self.compare(key, expected)? {
                        ThreadRead::Found(None) => settled.insert(key),
                        ThreadRead::Found(Some(found)) => {
                            mismatch.get_or_insert(found);
                            true
                        }
                        // It might have started a thread that is not in this list.
                        ThreadRead::Gone => {
                            has_ended_some = settled.insert(key);
                            self.exists(key)?
                        }
                    }
                };
                existing += u64::from(exists);
                if !exists {
                    let times = gone.entry(key).or_insert(0);
                    *times += 1;
                    // An ended thread is not listed for long.
                    if *times > MAX_LISTINGS_OF_ENDED {
                        return Err(mounted_over());
                    }
                }
            }
            // The kernel goes through its list by position, and skips a thread if one before it
            // ends. As many as were counted, and are still there, are all that there were.
            let is_complete = existing >= count && !has_ended_some;
            let timeout = match &mismatch {
                Some(_) => expected.timeout,
                None => LISTING_TIMEOUT,
            };
            match mismatch {
                None if is_complete => return Ok(None),
                _ if started.elapsed() < timeout => std::thread::sleep(Duration::from_micros(50)),
                Some(mismatch) => return Ok(Some(mismatch)),
                // No list was complete, since threads start and end all the time. All that were
                // listed are as expected.
                None => return Ok(None),
            }
        }
    }

    fn compare(
        &self,
        key: ThreadKey,
        expected: &Expected<'_>,
    ) -> io::Result<ThreadRead<Option<Mismatch>>> {
        let finding = if expected.effective_suffices {
            match self.owner(key)? {
                ThreadRead::Gone => return Ok(ThreadRead::Gone),
                ThreadRead::Found((uid, gid)) => {
                    let user = expected.user_ids.is_some_and(|ids| ids.effective != uid);
                    let group = expected.group_ids.is_some_and(|ids| ids.effective != gid);
                    first_finding(user, group, false)
                }
            }
        } else {
            match self.status(key)? {
                ThreadRead::Gone => return Ok(ThreadRead::Gone),
                ThreadRead::Found(status) => expected.finding(&status),
            }
        };
        let Some(finding) = finding else {
            return Ok(ThreadRead::Found(None));
        };
        match self.flags(key)? {
            None => Ok(ThreadRead::Gone),
            Some(flags) if is_kernel_worker(flags) => Ok(ThreadRead::Found(None)),
            Some(_) => {
                let name = self.name(key.thread_id).unwrap_or_default();
                Ok(ThreadRead::Found(Some(Mismatch {
                    thread_id: key.thread_id,
                    name,
                    finding,
                })))
            }
        }
    }
}

impl Expected<'_> {
    fn compares_something(&self) -> bool {
        let compares_ids = self.user_ids.is_some() || self.group_ids.is_some();
        compares_ids || self.groups.is_some() || self.check.is_some()
    }

    fn finding(&self, status: &Status) -> Option<&'static str> {
        let refused = self
            .check
            .and_then(|check| check(&other_thread(status)).err());
        refused.or_else(|| {
            let user = self
                .user_ids
                .is_some_and(|ids| differ(status.user_ids, ids));
            let group = self
                .group_ids
                .is_some_and(|ids| differ(status.group_ids, ids));
            let groups = self.groups.is_some_and(|groups| status.groups != groups);
            first_finding(user, group, groups)
        })
    }
}

fn other_thread(status: &Status) -> OtherThread {
    OtherThread {
        ids: status.user_ids,
        effective: status.effective,
        permitted: status.permitted,
        ambient: status.ambient,
    }
}

/// The filesystem id is not compared: the calls for all threads make it the effective one, and the
/// calling thread may have another one.
pub(crate) fn differ<I: Copy + Eq>(shown: Ids<I>, expected: Ids<I>) -> bool {
    let [real, effective, saved, _] = expected.to_array();
    [shown.real, shown.effective, shown.saved] != [real, effective, saved]
}

/// Returns the first of the parts in which a thread differs, in words.
pub(crate) fn first_finding(user: bool, group: bool, groups: bool) -> Option<&'static str> {
    let findings = [
        (user, "has other user ids than the calling thread"),
        (group, "has other group ids than the calling thread"),
        (
            groups,
            "has other supplementary groups than the calling thread",
        ),
    ];
    findings
        .into_iter()
        .find_map(|(is_so, finding)| is_so.then_some(finding))
}
