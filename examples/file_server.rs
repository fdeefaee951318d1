//! A file server on loopback, each of whose requests is served as the group that it names, by a pool of threads.
//!
//! Its own client then proves by the owners of the files that no request ran as another request's group:
//!
//! ```text
//! sudo target/debug/examples/file_server
//! sudo target/debug/examples/file_server --control    # libc's setegid, which changes all threads, in the guard's place
//! ```

mod common;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use clap::Parser;
use common::{Outcome, files, verify};
use nix::unistd;
use privilege_guard::GroupGuard;
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

/// Serves files, each request as its own group, and proves it by the files' owners.
#[derive(Parser)]
struct Arguments {
    /// Change the group with libc's setegid, of all threads, instead of with a guard: files get the wrong group.
    #[arg(long)]
    control: bool,
    /// Threads that serve.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Connections of the client, all at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: u32,
    /// How many groups the requests name.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1000))]
    groups: u32,
    /// Requests, over all connections.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
}

const FIRST_GROUP: u32 = 2001;
/// Owns what is served.
const OWNER: u32 = 1;

/// Takes care of what hangs.
const LONGEST: Duration = Duration::from_secs(120);

impl Arguments {
    fn all_groups(&self) -> std::ops::Range<u32> {
        FIRST_GROUP..FIRST_GROUP + self.groups
    }

    /// The group that a request names: another one for each request of a connection, and for neighbouring connections.
    fn group(&self, request: u32) -> u32 {
        FIRST_GROUP + (request + request / self.connections) % self.groups
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ids: Vec<u32> = [0, OWNER]
        .into_iter()
        .chain(arguments.all_groups())
        .collect();
    common::run_as_root(&ids, || serve_and_prove(&arguments))
}

fn serve_and_prove(arguments: &Arguments) -> Outcome {
    thread::spawn(|| {
        thread::sleep(LONGEST);
        eprintln!("file_server: not done after {LONGEST:?}");
        std::process::exit(1)
    });

    let folder = files::folder(0)?;
    let files = Files(folder.path().to_owned());
    arguments
        .all_groups()
        .try_for_each(|group| files.make_shared(group))?;

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let refused = thread::scope(|scope| {
        scope.spawn(|| serve(arguments, &listener, &files));
        let clients: Vec<_> = (0..arguments.connections)
            .map(|first| scope.spawn(move || request_all(arguments, address, first)))
            .collect();
        clients
            .into_iter()
            .map(|client| client.join().expect("a client"))
            .sum::<io::Result<u32>>()
    })?;

    let mut wrong = 0;
    for request in 0..arguments.requests {
        // What was refused before it was made has no owner.
        match fs::metadata(files.reply(request)) {
            Ok(made) => wrong += u32::from(made.gid() != arguments.group(request)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && refused > 0 => {}
            Err(error) => return Err(error.into()),
        }
    }
    let Arguments {
        control,
        workers,
        connections,
        groups,
        requests,
    } = arguments;
    let means = if *control {
        "libc's setegid"
    } else {
        "thread guards"
    };
    println!(
        "{requests} requests on {connections} connections as {groups} groups, {workers} workers with {means}:"
    );
    if *control {
        return verify(
            format_args!("{wrong} files have another request's group"),
            wrong > 0,
            true,
        );
    }
    verify("files that have another request's group", wrong, 0)?;
    verify("requests that were refused", refused, 0)
}

/// The files that are served, in one folder.
struct Files(PathBuf);

impl Files {
    /// What a request makes.
    fn reply(&self, request: u32) -> PathBuf {
        self.0.join(format!("reply.{request}"))
    }

    /// What a request opens.
    fn shared(&self, group: u32) -> PathBuf {
        self.0.join(format!("shared.{group}"))
    }

    /// Makes a file that nobody but this group may open: neither its owner, nor others.
    fn make_shared(&self, group: u32) -> Outcome {
        files::file(
            self.shared(group),
            (OWNER, group),
            0o040,
            &format!("for group {group}\n"),
        )
        .map(drop)
    }

    /// One request, as the group that the calling thread is in.
    fn copy(&self, request: u32, group: u32) -> io::Result<()> {
        let shared = fs::read(self.shared(group));
        File::create_new(self.reply(request))?.write_all(&shared?)
    }
}

/// A request on its way from a connection to a worker.
struct Job {
    request: u32,
    group: u32,
    connection: Arc<TcpStream>,
}

impl Job {
    fn answer(&self, outcome: &io::Result<()>) {
        let answer = outcome
            .as_ref()
            .map_or_else(|error| format!("refused: {error}\n"), |()| "done\n".into());
        // A client that has gone needs no answer.
        _ = (&*self.connection).write_all(answer.as_bytes());
    }
}

fn serve(arguments: &Arguments, listener: &TcpListener, files: &Files) {
    let (sender, jobs) = mpsc::channel();
    let jobs = Mutex::new(jobs);
    thread::scope(|scope| {
        for _ in 0..arguments.workers {
            scope.spawn(|| {
                // Root may open every file; what is left here is what a worker needs.
                let only = CapabilitySet::SETGID;
                set_capabilities(
                    None,
                    CapabilitySets {
                        effective: only,
                        permitted: only,
                        inheritable: CapabilitySet::empty(),
                    },
                )
                .expect("fewer capabilities");
                if arguments.control {
                    work_with_setegid(&jobs, files)
                } else {
                    work_with_guards(&jobs, files)
                }
            });
        }
        for connection in listener.incoming().take(arguments.connections as usize) {
            let sender = sender.clone();
            scope.spawn(move || read_requests(connection.expect("a connection"), &sender));
        }
        // With the last connection the workers end.
        drop(sender);
    });
}

fn read_requests(connection: TcpStream, jobs: &Sender<Job>) {
    let connection = Arc::new(connection);
    for line in BufReader::new(&*connection).lines().map_while(Result::ok) {
        let mut numbers = line.split(' ').map(str::parse);
        let (Some(Ok(request)), Some(Ok(group))) = (numbers.next(), numbers.next()) else {
            return;
        };
        if jobs
            .send(Job {
                request,
                group,
                connection: Arc::clone(&connection),
            })
            .is_err()
        {
            return;
        }
    }
}

/// A guard for as long as there is something to do, and from one request to the next `switch_to`.
fn work_with_guards(jobs: &Mutex<Receiver<Job>>, files: &Files) {
    while let Some(job) = wait_for(jobs) {
        let mut guard = match GroupGuard::assume_on_thread(job.group) {
            Ok(guard) => guard,
            Err(error) => {
                job.answer(&Err(error.into()));
                continue;
            }
        };
        job.answer(&files.copy(job.request, job.group));
        while let Some(job) = at_hand(jobs) {
            let switched = guard.switch_to(job.group).map_err(io::Error::from);
            job.answer(&switched.and_then(|()| files.copy(job.request, job.group)));
        }
        // Here it ends: no thread waits as another group.
    }
}

/// What servers without threads do: the workers share one effective group.
fn work_with_setegid(jobs: &Mutex<Receiver<Job>>, files: &Files) {
    let own = unistd::getegid();
    while let Some(job) = wait_for(jobs) {
        let assumed = unistd::setegid(job.group.into()).map_err(io::Error::from);
        let outcome = assumed.and_then(|()| files.copy(job.request, job.group));
        unistd::setegid(own).expect("back");
        job.answer(&outcome);
    }
}

fn wait_for(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock()
        .expect("no worker panics while it waits")
        .recv()
        .ok()
}

/// Where another worker waits already, there is none.
fn at_hand(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.try_lock().ok()?.try_recv().ok()
}

/// One connection of the client: every so many-th request, one after the other. How many were refused.
fn request_all(arguments: &Arguments, address: SocketAddr, first: u32) -> io::Result<u32> {
    let mut connection = TcpStream::connect(address)?;
    let mut answers = BufReader::new(connection.try_clone()?);
    let mut refused = 0;
    for request in (first..arguments.requests).step_by(arguments.connections as usize) {
        connection.write_all(format!("{request} {}\n", arguments.group(request)).as_bytes())?;
        let mut answer = String::new();
        answers.read_line(&mut answer)?;
        refused += u32::from(answer != "done\n");
    }
    Ok(refused)
}
