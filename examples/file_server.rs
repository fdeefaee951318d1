//! A file server on loopback that serves each request as the client that it names: its user, group and supplementary groups.
//!
//! A pool of threads serves. At the end the owners of the files, and what each client could read, show that no request was served as
//! another client:
//!
//! ```text
//! sudo target/debug/examples/file_server
//! sudo target/debug/examples/file_server --control    # calls written by hand, the user first, instead of the guard
//! ```

mod common;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use clap::Parser;
use common::files::{self, may_read};
use common::{Outcome, verify};
use privilege_guard::{Identity, IdentityGuard};
use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

/// Serves files, each request as its own client, and shows it by the files' owners.
#[derive(Parser)]
struct Arguments {
    /// Change the identity with calls written by hand, the user before the groups, instead of with a guard: files get the wrong group.
    #[arg(long)]
    control: bool,
    /// Threads that serve.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: u32,
    /// Connections, all at once.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=256))]
    connections: u32,
    /// How many clients the requests name.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..=100))]
    clients: u32,
    /// Requests, over all connections.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests: u32,
    /// An empty folder for the files, which stay there; without it, a temporary one.
    #[arg(long)]
    folder: Option<PathBuf>,
}

/// The first client's user, group and supplementary group; the next client has the next ones.
const FIRST: [u32; 3] = [3001, 2001, 2201];
/// Owns what is served.
const OWNER: u32 = 1;

/// Takes care of what hangs.
const LONGEST: Duration = Duration::from_secs(120);

impl Arguments {
    /// The client that a request names: another one for each request of a connection, and for neighbouring connections.
    fn client(&self, request: u32) -> u32 {
        (request + request / self.connections) % self.clients
    }

    fn next_client(&self, client: u32) -> u32 {
        (client + 1) % self.clients
    }

    fn all_ids(&self) -> impl Iterator<Item = u32> {
        FIRST
            .into_iter()
            .flat_map(|first| first..first + self.clients)
    }
}

fn ids_of(client: u32) -> [u32; 3] {
    FIRST.map(|first| first + client)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ids: Vec<u32> = [0, OWNER].into_iter().chain(arguments.all_ids()).collect();
    common::run_as_root(&ids, || serve_and_judge(&arguments))
}

fn serve_and_judge(arguments: &Arguments) -> Outcome {
    thread::spawn(|| {
        thread::sleep(LONGEST);
        eprintln!("file_server: not done after {LONGEST:?}");
        std::process::exit(1)
    });

    let temporary = files::open_folder()?;
    let folder = arguments.folder.as_deref().unwrap_or(temporary.path());
    fs::set_permissions(folder, PermissionsExt::from_mode(0o777))?;
    let files = Files(folder.to_owned());
    (0..arguments.clients).try_for_each(|client| files.make_shared(client))?;

    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let answers = thread::scope(|scope| {
        scope.spawn(|| serve(arguments, &listener, &files));
        let connections: Vec<_> = (0..arguments.connections)
            .map(|first| scope.spawn(move || request_all(arguments, address, first)))
            .collect();
        connections
            .into_iter()
            .map(|connection| connection.join().expect("a connection"))
            .sum::<io::Result<Answers>>()
    })?;

    let mut wrong_owners = 0;
    for request in 0..arguments.requests {
        let [user, group, _] = ids_of(arguments.client(request));
        // What was refused before it was made has no owner.
        match fs::metadata(files.reply(request)) {
            Ok(made) => wrong_owners += u32::from((made.uid(), made.gid()) != (user, group)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && answers.failed > 0 => {}
            Err(error) => return Err(error.into()),
        }
    }
    let Arguments {
        control,
        workers,
        connections,
        clients,
        requests,
        ..
    } = arguments;
    let means = if *control {
        "calls written by hand, the user first"
    } else {
        "identity guards"
    };
    println!(
        "{requests} requests on {connections} connections as {clients} clients, {workers} workers with {means}:"
    );
    let Answers { failed, wrong, .. } = answers;
    if *control {
        return verify(
            format_args!(
                "{wrong_owners} files have a wrong owner or group, {wrong} accesses are wrong, {failed} requests failed"
            ),
            wrong_owners > 0 || failed > 0,
            true,
        );
    }
    verify("files that have a wrong owner or group", wrong_owners, 0)?;
    verify("requests that failed", failed, 0)?;
    verify("accesses permitted or refused by mistake", wrong, 0)?;
    verify(
        "accesses that the client must have, and had",
        answers.permitted,
        3 * requests,
    )?;
    verify(
        "accesses that the client must not have, and were refused",
        answers.refused,
        3 * requests,
    )
}

/// The files that are served, in one folder.
struct Files(PathBuf);

impl Files {
    /// What a request makes.
    fn reply(&self, request: u32) -> PathBuf {
        self.0.join(format!("reply.{request}"))
    }

    /// What the client may read, and nobody else: as its user, by its group, by its supplementary group.
    fn shared(&self, client: u32) -> [PathBuf; 3] {
        ["user", "group", "supplementary"].map(|by| self.0.join(format!("for-{by}.{client}")))
    }

    fn make_shared(&self, client: u32) -> Outcome {
        let [user, group, supplementary] = ids_of(client);
        let ([by_user, by_group, by_supplementary], text) =
            (self.shared(client), format!("for client {client}\n"));
        files::file(by_user, (user, 0), 0o600, &text)?;
        files::file(by_group, (OWNER, group), 0o640, &text)?;
        files::file(by_supplementary, (OWNER, supplementary), 0o640, &text).map(drop)
    }

    /// One request, as the identity that the calling thread has.
    fn serve(&self, job: &Job) -> io::Result<[usize; 2]> {
        let reply = File::create_new(self.reply(job.request))?;
        let readable = |client| -> io::Result<usize> {
            let files = self.shared(client);
            files
                .iter()
                .map(|file| may_read(file).map(usize::from))
                .sum()
        };
        let [own, other] = [readable(job.client)?, readable(job.other)?];
        (&reply).write_all(format!("{own} {other}\n").as_bytes())?;
        Ok([own, other])
    }
}

/// A request on its way from a connection to a worker.
struct Job {
    request: u32,
    client: u32,
    /// Whose files the client must not read.
    other: u32,
    connection: Arc<TcpStream>,
}

impl Job {
    fn answer(&self, outcome: &io::Result<[usize; 2]>) {
        let answer = outcome.as_ref().map_or_else(
            |error| format!("failed: {error}\n"),
            |[own, other]| format!("done {own} {other}\n"),
        );
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
                // All that a worker needs, which passes no permission check on files.
                let only = CapabilitySet::SETUID | CapabilitySet::SETGID;
                let sets = CapabilitySets {
                    effective: only,
                    permitted: only,
                    inheritable: CapabilitySet::empty(),
                };
                set_capabilities(None, sets).expect("fewer capabilities");
                while let Some(job) = wait_for(&jobs) {
                    let outcome = if arguments.control {
                        serve_by_hand(&job, files)
                    } else {
                        serve_as_client(&job, files)
                    };
                    job.answer(&outcome);
                }
            });
        }
        for connection in listener.incoming().take(arguments.connections as usize) {
            let sender = sender.clone();
            let connection = connection.expect("a connection");
            scope.spawn(move || read_requests(arguments, connection, &sender));
        }
        // With the last connection the workers end.
        drop(sender);
    });
}

fn read_requests(arguments: &Arguments, connection: TcpStream, jobs: &Sender<Job>) {
    let connection = Arc::new(connection);
    for line in BufReader::new(&*connection).lines().map_while(Result::ok) {
        let mut numbers = line.split(' ').map(str::parse);
        let (Some(Ok(request)), Some(Ok(client))) = (numbers.next(), numbers.next()) else {
            return;
        };
        let job = Job {
            request,
            client,
            other: arguments.next_client(client),
            connection: Arc::clone(&connection),
        };
        if jobs.send(job).is_err() {
            return;
        }
    }
}

fn serve_as_client(job: &Job, files: &Files) -> io::Result<[usize; 2]> {
    let [user, group, supplementary] = ids_of(job.client);
    let client = Identity::new(user, group).supplementary([supplementary]);
    IdentityGuard::assume_effective_on_thread(&client)?.run(|| files.serve(job))
}

/// The order that some projects have: as the user, the thread may not set its groups any more. Nobody looks at the results.
fn serve_by_hand(job: &Job, files: &Files) -> io::Result<[usize; 2]> {
    let [user, group, supplementary] = ids_of(job.client);
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    _ = set_thread_res_uid(None, Some(user), None);
    _ = set_thread_res_gid(None, Some(group), None);
    _ = set_thread_groups(&[Gid::from_raw(supplementary)]);
    let outcome = files.serve(job);
    _ = set_thread_res_gid(None, Some(Gid::ROOT), None);
    _ = set_thread_groups(&[]);
    _ = set_thread_res_uid(None, Some(Uid::ROOT), None);
    outcome
}

fn wait_for(jobs: &Mutex<Receiver<Job>>) -> Option<Job> {
    jobs.lock()
        .expect("no worker panics while it waits")
        .recv()
        .ok()
}

/// What came of the requests of a connection.
#[derive(Clone, Copy, Default)]
struct Answers {
    failed: u32,
    permitted: u32,
    refused: u32,
    /// Refused although the client must have it, or the reverse.
    wrong: u32,
}

impl std::iter::Sum for Answers {
    fn sum<I: Iterator<Item = Answers>>(answers: I) -> Answers {
        answers.fold(Answers::default(), |sum, more| Answers {
            failed: sum.failed + more.failed,
            permitted: sum.permitted + more.permitted,
            refused: sum.refused + more.refused,
            wrong: sum.wrong + more.wrong,
        })
    }
}

/// One connection: every so many-th request, one after the other.
fn request_all(arguments: &Arguments, address: SocketAddr, first: u32) -> io::Result<Answers> {
    let mut connection = TcpStream::connect(address)?;
    let mut lines = BufReader::new(connection.try_clone()?);
    let mut answers = Answers::default();
    for request in (first..arguments.requests).step_by(arguments.connections as usize) {
        connection.write_all(format!("{request} {}\n", arguments.client(request)).as_bytes())?;
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let counts: Vec<u32> = line
            .strip_prefix("done ")
            .unwrap_or_default()
            .split_whitespace()
            .filter_map(|count| count.parse().ok())
            .collect();
        let [own, other] = counts[..] else {
            answers.failed += 1;
            continue;
        };
        answers.permitted += own;
        answers.refused += 3 - other;
        answers.wrong += (3 - own) + other;
    }
    Ok(answers)
}
