//! A daemon: opens its log as root, becomes an ordinary account in an empty root for good, keeps one capability, binds a port below
//! 1024 with it, and serves HTTP from several threads.
//!
//! Run as root: `cargo build --examples && sudo target/debug/examples/daemon [ACCOUNT]`. It starts the daemon on a free port of
//! loopback, and is then its client.

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::files;
use common::kernel::{self, Status, Tries};
use common::{CannotRun, Outcome, http, verify};
use nix::unistd::{User, getgrouplist};
use privilege_guard::{CapabilitySet, DropReport, GroupIds, Identity, PermanentDrop, UserIds};

/// An example ends: after so many connections, or so long.
const CONNECTIONS: u32 = 12;
const LONGEST: Duration = Duration::from_secs(30);
const WORKERS: usize = 4;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match &arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, "serve", account, log, root] => {
            common::exit_code(daemon(account, log.as_ref(), root.as_ref()))
        }
        [_] => common::run_as_root(&[0], || client("www-data")),
        [_, account] => common::run_as_root(&[0], || client(account)),
        _ => common::exit_code(Err(CannotRun("daemon [ACCOUNT]".into()).into())),
    }
}

fn daemon(account: &str, log: &Path, root: &Path) -> Outcome {
    // What needs the old root or user 0 comes first, and stays: descriptors are not asked again who holds them.
    let account = Identity::of_account(account)?;
    let log_file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        .open(log)?;

    // Before there are threads: what they could hold, no call takes from them.
    let report = PermanentDrop::to(&account)
        .chroot(root)
        .keep_capabilities(CapabilitySet::NET_BIND_SERVICE)
        .no_new_privs()
        .apply()?;
    writeln!(&log_file, "{report}")?;
    if log.exists() {
        return Err("the old root can still be seen".into());
    }

    let listener = bind()?;
    println!("{}", listener.local_addr()?);
    Server::new(listener, log_file, report)?.serve()
}

/// Binds a free port below 1024; in a user namespace, which has no power over the network of its parent, any.
fn bind() -> Outcome<TcpListener> {
    for port in (600..1024).rev() {
        match TcpListener::bind(("127.0.0.1", port)) {
            Ok(listener) => return Ok(listener),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => break,
            Err(_) => {}
        }
    }
    Ok(TcpListener::bind(("127.0.0.1", 0))?)
}

struct Server {
    listener: TcpListener,
    log: File,
    report: DropReport,
    /// What each thread has tried, to get back.
    tries: Mutex<Vec<Tries>>,
    answered: AtomicU32,
    until: Instant,
}

impl Server {
    fn new(listener: TcpListener, log: File, report: DropReport) -> Outcome<Self> {
        listener.set_nonblocking(true)?;
        let tries = Mutex::new(vec![kernel::try_to_get_back([0])?]);
        Ok(Server {
            listener,
            log,
            report,
            tries,
            answered: AtomicU32::new(0),
            until: Instant::now() + LONGEST,
        })
    }

    fn serve(&self) -> Outcome {
        let all_have_tried = Barrier::new(WORKERS);
        thread::scope(|scope| {
            let workers: Vec<_> = (0..WORKERS)
                .map(|_| scope.spawn(|| self.work(&all_have_tried)))
                .collect();
            workers.into_iter().try_for_each(|worker| {
                worker
                    .join()
                    .unwrap_or_else(|_| Err("a worker has panicked".into()))
            })
        })
    }

    fn work(&self, all_have_tried: &Barrier) -> Outcome {
        let tries = kernel::try_to_get_back([0]);
        if let (Ok(tries), Ok(mut all)) = (&tries, self.tries.lock()) {
            all.push(tries.clone());
        }
        all_have_tried.wait();
        tries?;
        while self.answered.load(Ordering::Relaxed) < CONNECTIONS && Instant::now() < self.until {
            match self.listener.accept() {
                // A client that fails is no reason for the daemon to.
                Ok((stream, client)) => match self.answer(&stream, client) {
                    Ok(()) => _ = self.answered.fetch_add(1, Ordering::Relaxed),
                    Err(error) => eprintln!("{client}: {error}"),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(5))
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn answer(&self, stream: &TcpStream, client: SocketAddr) -> Outcome {
        let request = http::read_request(stream)?;
        let (status, body) = match request.as_deref() {
            Ok("/identity") => self
                .identity()
                .map_or_else(|error| (500, error.to_string()), |body| (200, body)),
            Ok(_) => (404, "there is /identity".into()),
            Err((status, text)) => (*status, (*text).into()),
        };
        (&self.log).write_all(
            format!(
                "{client} {:?} {status}\n",
                request.as_deref().unwrap_or_default()
            )
            .as_bytes(),
        )?;
        Ok(http::answer(stream, status, &body)?)
    }

    fn identity(&self) -> Outcome<String> {
        let tries = self.tries.lock().map_err(|_| "a worker has panicked")?;
        if let Some(way_back) = tries.iter().find(|tries| !tries.all_refused()) {
            return Err(way_back.to_string().into());
        }
        let mut lines = vec![
            self.report.to_string(),
            format!(
                "this thread: user ids {}; group ids {}",
                UserIds::current()?,
                GroupIds::current()?
            ),
            format!(
                "entries in the root directory: {}",
                fs::read_dir("/")?.count()
            ),
        ];
        lines.extend(tries.iter().map(ToString::to_string));
        Ok(lines.join("\n") + "\n")
    }
}

/// Starts the daemon, asks it what it is, and the kernel whether that is so.
fn client(account: &str) -> Outcome {
    let known = User::from_name(account)?;
    let known = known.ok_or_else(|| {
        CannotRun(format!(
            "there is no account {account}; name another: daemon ACCOUNT"
        ))
    })?;
    let (user, group) = (known.uid.as_raw(), known.gid.as_raw());
    if user == 0 || group == 0 {
        return Err(CannotRun(format!(
            "{account} is root, or in its group; name another: daemon ACCOUNT"
        ))
        .into());
    }
    if let Some(missing) = kernel::missing(&[user, group])? {
        return Err(CannotRun(format!("{account} needs {missing}")).into());
    }
    let supplementary = getgrouplist(&std::ffi::CString::new(account)?, known.gid)?;

    let needed = CapabilitySet::SYS_CHROOT | CapabilitySet::NET_BIND_SERVICE;
    let effective = rustix::thread::capabilities(None)?.effective;
    if !effective.contains(needed) {
        return Err(CannotRun("this needs CAP_SYS_CHROOT and CAP_NET_BIND_SERVICE".into()).into());
    }

    let folder = files::folder(0)?;
    let log = folder.path().join("daemon.log");
    let root = folder.path().join("root");
    fs::create_dir(&root)?;
    let mut daemon = Daemon::start(account, &log, &root)?;
    println!("the daemon listens on {}", daemon.address);
    if !kernel::is_in_user_namespace()? {
        verify("its port is below 1024", daemon.address.port() < 1024, true)?;
    }

    let ask = |line: &str| http::ask(daemon.address, line);
    verify("GET /nothing", ask("GET /nothing HTTP/1.1")?.0, 404)?;
    verify("POST /identity", ask("POST /identity HTTP/1.1")?.0, 405)?;
    verify("nonsense", ask("nonsense")?.0, 400)?;
    let (status, identity) = ask("GET /identity HTTP/1.1")?;
    print!(
        "{}",
        identity
            .lines()
            .map(|line| format!("    {line}\n"))
            .collect::<String>()
    );
    verify("GET /identity", status, 200)?;

    let threads = Status::read_all(daemon.process.id())?;
    let mut supplementary: Vec<u32> = supplementary.iter().map(|gid| gid.as_raw()).collect();
    supplementary.sort_unstable();
    let groups = kernel::Identity {
        supplementary,
        ..kernel::Identity::only(group)
    };
    verify("threads", threads.len(), WORKERS + 1)?;
    verify(
        format_args!("all user ids of all threads are {user}"),
        threads.iter().all(|thread| thread.users == [user; 4]),
        true,
    )?;
    verify(
        format_args!("the groups of all threads are {groups}"),
        threads.iter().all(|thread| thread.groups == groups),
        true,
    )?;
    let kept = CapabilitySet::NET_BIND_SERVICE.bits();
    verify(
        "CAP_NET_BIND_SERVICE is the only capability of all threads",
        threads.iter().all(|thread| {
            thread.held_capabilities() == kept && thread.effective_capabilities == kept
        }),
        true,
    )?;
    verify(
        "its root is empty",
        identity.contains("entries in the root directory: 0\n"),
        true,
    )?;
    verify(
        "every thread has no_new_privs",
        threads.iter().all(|thread| thread.no_new_privs),
        true,
    )?;
    let tried = identity
        .lines()
        .filter(|line| line.ends_with("raw calls refused"))
        .count();
    verify(
        "threads that tried to get back, and were refused",
        tried,
        threads.len(),
    )?;

    let asked = thread::scope(|scope| {
        let clients: Vec<_> = (4..CONNECTIONS)
            .map(|_| scope.spawn(|| ask("GET /identity HTTP/1.1")))
            .collect();
        clients
            .into_iter()
            .map(|client| {
                client
                    .join()
                    .is_ok_and(|answer| answer.is_ok_and(|(status, _)| status == 200))
            })
            .collect::<Vec<_>>()
    });
    verify(
        "answered at the same time",
        asked.iter().filter(|&&ok| ok).count(),
        asked.len(),
    )?;
    verify(
        format_args!("it has ended after {CONNECTIONS} connections"),
        daemon.process.wait()?.success(),
        true,
    )?;

    // It could not open this file any more, and wrote to it all the time.
    let owner = fs::metadata(&log)?;
    let lines = fs::read_to_string(&log)?.lines().count();
    verify("owner of its log", owner.uid(), 0)?;
    verify(
        "lines in it: an open descriptor stays open",
        lines,
        CONNECTIONS as usize + 1,
    )
}

struct Daemon {
    process: Child,
    address: SocketAddr,
}

impl Daemon {
    fn start(account: &str, log: &Path, root: &Path) -> Outcome<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        let mut process = command
            .args(["serve", account])
            .args([log, root])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        if let Some(stdout) = process.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        match line.trim().parse() {
            Ok(address) => Ok(Daemon { process, address }),
            Err(_) => Err(format!("the daemon did not start: {}", process.wait()?).into()),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Where it has ended by itself, nothing comes of it.
        _ = self.process.kill();
        _ = self.process.wait();
    }
}
