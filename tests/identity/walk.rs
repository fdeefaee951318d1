//! Promise 2: over every start state a guard either serves the change and undoes it exactly, or refuses with nothing changed;
//! and what can be undone is served.
//!
//! What can be undone is measured, not computed: a child tries the raw calls from every state and notes which state each leads to.
//!
//! What guards do without CAP_SETGID is drawn on the semantics page: the walk compares that picture with what it saw.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use crate::cases;
use crate::common::Case;
use crate::common::guard::{self, SCOPES, Scope};
use crate::common::kernel::{self, Ids};
use privilege_guard::GroupChange;

pub const CASES: &[Case] = cases![
    Setgid: every_start_state_is_served_exactly_or_refused_unchanged,
    NoSetgid: every_change_of_an_ordinary_user_is_served_exactly_or_refused_unchanged,
];

/// For real, effective and saved id.
const VALUES: [u32; 3] = [3001, 3002, 3003];
/// Among no others, for the filesystem id.
const ODD: u32 = 3008;
const OUTSIDE: u32 = 3009;
const TARGETS: [u32; 5] = [VALUES[0], VALUES[1], VALUES[2], OUTSIDE, u32::MAX];
const GROUPS: [u32; 2] = [3101, 3102];

/// What the filesystem id is at the start.
#[derive(Clone, Copy, Debug)]
enum Filesystem {
    Effective,
    Real,
    Saved,
    Odd,
}

const FILESYSTEMS: [Filesystem; 4] = [
    Filesystem::Effective,
    Filesystem::Real,
    Filesystem::Saved,
    Filesystem::Odd,
];

#[derive(Clone, Copy, Debug)]
enum Shape {
    Both,
    Effective,
    Real,
    /// Real and effective are named differently.
    Split,
}

const SHAPES: [Shape; 4] = [Shape::Both, Shape::Effective, Shape::Real, Shape::Split];

#[derive(Clone, Debug)]
struct Asked {
    real: Option<u32>,
    effective: Option<u32>,
    supplementary: Option<Vec<u32>>,
}

impl Asked {
    fn change(&self) -> GroupChange {
        guard::change(self.real, self.effective, self.supplementary.as_deref())
    }

    /// Whether these ids are what is asked for, from `start`. The saved id is nobody's to ask for.
    fn is(&self, [real, effective, _, filesystem]: Ids, start: Ids) -> bool {
        real == self.real.unwrap_or(start[0])
            && effective == self.effective.unwrap_or(start[1])
            && filesystem == effective
    }
}

/// Each shape with each target, without a list and with each of them.
fn all_asked(targets: &[u32], lists: &[Vec<u32>]) -> Vec<Asked> {
    let mut all = Vec::new();
    for shape in SHAPES {
        for (index, &this) in targets.iter().enumerate() {
            let other = targets[(index + 1) % targets.len()];
            let (real, effective) = match shape {
                Shape::Both => (Some(this), Some(this)),
                Shape::Effective => (None, Some(this)),
                Shape::Real => (Some(this), None),
                Shape::Split => (Some(this), Some(other)),
            };
            for supplementary in lists.iter().cloned().map(Some).chain([None]) {
                all.push(Asked {
                    real,
                    effective,
                    supplementary,
                });
            }
        }
    }
    all
}

/// What the raw calls lead to, as the kernel answered them.
struct Measured {
    /// From each state, with one call.
    calls: HashMap<Ids, HashSet<Ids>>,
    /// From each state, with any number of calls.
    reached: HashMap<Ids, HashSet<Ids>>,
    /// The lists that `setgroups` accepts; where it does, it would accept the original too.
    groups: HashSet<Vec<u32>>,
}

impl Measured {
    fn new(calls: HashMap<Ids, HashSet<Ids>>, groups: HashSet<Vec<u32>>) -> Self {
        Measured {
            calls,
            reached: HashMap::new(),
            groups,
        }
    }

    fn reached_from(&mut self, start: Ids) -> &HashSet<Ids> {
        let calls = &self.calls;
        self.reached.entry(start).or_insert_with(|| {
            let mut seen = HashSet::from([start]);
            let mut todo = vec![start];
            while let Some(ids) = todo.pop().filter(|_| seen.len() < calls.len()) {
                todo.extend(
                    calls[&ids]
                        .iter()
                        .copied()
                        .filter(|&next| seen.insert(next)),
                );
            }
            seen
        })
    }

    fn is_reversible(&mut self, start: Ids, own_groups: &[u32], asked: &Asked) -> bool {
        let needless = |groups: &Vec<u32>| groups == own_groups;
        if asked
            .supplementary
            .as_ref()
            .is_some_and(|groups| !needless(groups) && !self.groups.contains(groups))
        {
            return false;
        }
        let inside: Vec<Ids> = self
            .reached_from(start)
            .iter()
            .copied()
            .filter(|&ids| asked.is(ids, start))
            .collect();
        inside
            .into_iter()
            .any(|inside| self.reached_from(inside).contains(&start))
    }
}

/// The calls that set ids.
#[derive(Clone, Copy, Debug)]
enum Call {
    ResGid(Option<u32>, Option<u32>, Option<u32>),
    FsGid(u32),
}

impl Call {
    fn make(self) {
        match self {
            Call::ResGid(real, effective, saved) => {
                _ = kernel::raw_setresgid(real, effective, saved)
            }
            Call::FsGid(filesystem) => _ = kernel::raw_setfsgid(filesystem),
        }
    }

    /// Every one with these ids.
    fn all(ids: &[u32]) -> Vec<Call> {
        let choices: Vec<Option<u32>> = ids.iter().copied().map(Some).chain([None]).collect();
        let mut all: Vec<Call> = ids.iter().copied().map(Call::FsGid).collect();
        for &real in &choices {
            for &effective in &choices {
                all.extend(
                    choices
                        .iter()
                        .map(|&saved| Call::ResGid(real, effective, saved)),
                );
            }
        }
        all
    }
}

/// Tries every call from every state of the domain: by what is in the effective set, CAP_SETGID or not.
fn measure(privileged: bool) -> Measured {
    let ids = [VALUES[0], VALUES[1], VALUES[2], ODD, OUTSIDE];
    let all = Call::all(&ids);
    let mut calls = HashMap::new();
    for real in ids {
        for effective in ids {
            for saved in ids {
                for filesystem in ids {
                    let start = [real, effective, saved, filesystem];
                    calls.insert(start, successors(start, &all, privileged));
                }
            }
        }
    }
    if !privileged {
        kernel::lower_capabilities(kernel::CAP_SETGID);
    }
    let accepted = kernel::raw_setgroups(&GROUPS).is_ok();
    Measured::new(
        calls,
        accepted.then(|| GROUPS.to_vec()).into_iter().collect(),
    )
}

fn successors(start: Ids, calls: &[Call], privileged: bool) -> HashSet<Ids> {
    let put = || {
        kernel::raise_capabilities(kernel::CAP_SETGID);
        kernel::raw_setresgid(Some(start[0]), Some(start[1]), Some(start[2])).expect("setresgid");
        assert!(kernel::raw_setfsgid(start[3]));
        if !privileged {
            kernel::lower_capabilities(kernel::CAP_SETGID);
        }
    };
    put();
    let lead_to = calls.iter().map(|call| {
        call.make();
        let now = kernel::ids_by_calls();
        if now != start {
            put();
        }
        now
    });
    lead_to.collect()
}

/// Tries every call from the state that this process is in, and from those that this leads to, each in a child of its own.
fn measure_from_here(ids: &[u32], lists: &[Vec<u32>]) -> Measured {
    let mut calls = HashMap::new();
    let mut todo = vec![(kernel::ids_by_calls(), vec![])];
    while let Some((start, path)) = todo.pop() {
        if calls.contains_key(&start) {
            continue;
        }
        let mut found = HashSet::new();
        for call in Call::all(ids) {
            let answer = kernel::answer_of_child(|| {
                path.iter().for_each(|call: &Call| call.make());
                assert_eq!(kernel::ids_by_calls(), start);
                call.make();
                kernel::ids_by_calls().map(|id| id.to_string()).join(" ")
            });
            let answer: Vec<u32> = answer
                .unwrap()
                .split(' ')
                .map(|id| id.parse().unwrap())
                .collect();
            let now: Ids = answer.try_into().unwrap();
            if found.insert(now) {
                todo.push((now, path.iter().copied().chain([call]).collect()));
            }
        }
        calls.insert(start, found);
    }
    let accepted = |list: &&Vec<u32>| {
        kernel::in_child(|| kernel::raw_setgroups(list).is_err().into()).success()
    };
    Measured::new(calls, lists.iter().filter(accepted).cloned().collect())
}

#[derive(Debug, Default)]
struct Counts {
    served: usize,
    refused: usize,
    violations: Vec<String>,
    seen: Seen,
}

impl Counts {
    fn total(&self) -> usize {
        self.served + self.refused + self.violations.len()
    }

    fn report(&self, expected: usize) {
        let Counts {
            served,
            refused,
            violations,
            ..
        } = self;
        for violation in violations.iter().take(50) {
            println!("{violation}");
        }
        println!(
            "= {} states: {served} served exactly, {refused} refused unchanged, {} violations",
            self.total(),
            violations.len()
        );
        assert_eq!(violations.len(), 0);
        assert_eq!(self.total(), expected, "the product of the dimensions");
        assert!(*served > 0 && *refused > 0);
    }

    /// Walks in a forked child, where the state is fresh.
    fn walk(&mut self, walk: impl FnOnce(&mut Counts)) {
        let answer = kernel::answer_of_child(|| {
            let mut counts = Counts::default();
            walk(&mut counts);
            let seen = counts
                .seen
                .0
                .iter()
                .map(|([start, call], state)| format!("{SEEN}{start}:{call}:{state}"));
            let lines: Vec<String> = counts.violations.into_iter().chain(seen).collect();
            format!(
                "{}\n{}\n{}",
                counts.served,
                counts.refused,
                lines.join("\n")
            )
        });
        let answer = match answer {
            Ok(answer) => answer,
            Err(status) => {
                return self
                    .violations
                    .push(format!("the child that walks: {status}"));
            }
        };
        let mut lines = answer.lines();
        let mut number = || lines.next().unwrap().parse::<usize>().unwrap();
        self.served += number();
        self.refused += number();
        for line in lines.filter(|line| !line.is_empty()) {
            let noted = match line
                .strip_prefix(SEEN)
                .map(|seen| seen.split(':').collect::<Vec<_>>())
            {
                Some(seen) => self.seen.note(seen[0], seen[1], seen[2]),
                None => Err(line.into()),
            };
            self.violations.extend(noted.err());
        }
    }

    /// One guard, judged. Returns the ids inside, where there was an inside.
    fn judge(&mut self, scope: Scope, asked: &Asked, reversible: bool) -> Option<Ids> {
        let start = kernel::identity();
        let mut ids_inside = None;
        let wrong = match scope.assume(asked.change()) {
            Ok(guard) => {
                let inside = kernel::identity();
                ids_inside = Some(inside.ids);
                let restored = guard.restore();
                let as_asked = asked.is(inside.ids, start.ids)
                    && inside.groups == *asked.supplementary.as_ref().unwrap_or(&start.groups);
                match (reversible, as_asked, restored) {
                    (true, true, Ok(())) => Ok("served"),
                    (false, _, _) => Err(format!(
                        "served, though it cannot be undone; inside {inside:?}"
                    )),
                    (_, false, _) => Err(format!("not what was asked for: inside {inside:?}")),
                    (_, _, Err(error)) => Err(error.to_string()),
                }
            }
            Err(error) if reversible => Err(format!("refused, though it can be undone: {error}")),
            Err(_) => Ok("refused"),
        };
        let after = kernel::identity();
        match wrong {
            Ok(_) if after != start => self.violations.push(format!(
                "{scope:?} {asked:?} from {start:?}: left as {after:?}"
            )),
            Ok("served") => self.served += 1,
            Ok(_) => self.refused += 1,
            Err(wrong) => self.violations.push(format!(
                "{scope:?} {asked:?} from {start:?}: {wrong}; left as {after:?}"
            )),
        }
        ids_inside
    }
}

/// Before what a child has seen, in its answer.
const SEEN: &str = "seen:";

/// By start and call, the state inside or "refused". States are real, effective and saved id, in letters: the start's first id is `a`.
#[derive(Debug, Default)]
struct Seen(BTreeMap<[String; 2], String>);

impl Seen {
    /// An error where another guard from such a start did otherwise.
    fn note(&mut self, start: &str, call: &str, state: &str) -> Result<(), String> {
        match self
            .0
            .insert([start.into(), call.into()], state.into())
            .filter(|before| before != state)
        {
            Some(before) => Err(format!("{call} from {start}: {before} and {state}")),
            None => Ok(()),
        }
    }

    /// What the picture shows: a change of ids that the thread has, where the filesystem id is the effective one.
    fn note_ids(&mut self, start: Ids, asked: &Asked, inside: Option<Ids>) -> Result<(), String> {
        let Asked {
            real,
            effective,
            supplementary: None,
        } = *asked
        else {
            return Ok(());
        };
        let (call, id) = match (real, effective) {
            (Some(real), Some(effective)) if real == effective => ("assume", real),
            (None, Some(effective)) => ("assume_effective", effective),
            (Some(real), None) => ("assume_real", real),
            _ => return Ok(()),
        };
        if start[3] != start[1] || !start.contains(&id) {
            return Ok(());
        }
        let mut different: Vec<u32> = Vec::new();
        for id in start {
            if !different.contains(&id) {
                different.push(id);
            }
        }
        let letter = |id: u32| {
            ["a", "b", "c"][different
                .iter()
                .position(|&other| other == id)
                .expect("an id that it has")]
        };
        let state =
            |[real, effective, saved, _]: Ids| [real, effective, saved].map(letter).join(" ");
        self.note(
            &state(start),
            &format!("{call}({})", letter(id)),
            &inside.map_or("refused".into(), state),
        )
    }

    /// From start to state, the calls that lead there; without those that change nothing.
    fn edges(&self) -> BTreeMap<[&str; 2], Vec<&str>> {
        let mut edges = BTreeMap::<_, Vec<_>>::new();
        for ([start, call], state) in self.0.iter().filter(|([start, _], state)| start != *state) {
            edges
                .entry([start.as_str(), state])
                .or_default()
                .push(call.as_str());
        }
        edges
    }

    /// For Graphviz.
    fn dot(&self) -> String {
        let starts: BTreeSet<&String> = self.0.keys().map(|[start, _]| start).collect();
        let starts: String = starts
            .iter()
            .map(|start| format!("    \"{start}\" [style=\"filled,bold\"]\n"))
            .collect();
        let edges = self.edges();
        let edges = edges.iter().map(|([start, state], calls)| {
            let label: String = calls.iter().map(|call| format!("{call}\\l")).collect();
            format!("    \"{start}\" -> \"{state}\" [label=\"{label}\"]\n")
        });
        format!("{DOT}{starts}{}}}\n", edges.collect::<String>())
    }

    /// Writes the text of the picture where it is asked for, and otherwise compares.
    fn compare(&self) {
        if let Some(path) = std::env::var_os("PRIVILEGE_GUARD_DOT") {
            return std::fs::write(path, self.dot()).expect("PRIVILEGE_GUARD_DOT");
        }
        assert_eq!(
            include_str!("../../docs/states.dot"),
            self.dot(),
            "the semantics page says how to make it anew"
        );
        let mut drawn = BTreeMap::new();
        for edge in include_str!("../../docs/states.svg")
            .split("class=\"edge\"")
            .skip(1)
        {
            // Each text of the picture stands between `>` and `<`.
            let mut texts = edge
                .split(['<', '>'])
                .map(str::trim)
                .filter(|text| !text.is_empty());
            let title = texts.nth(1).expect("a title").replace("&#45;&gt;", "->");
            drawn.insert(
                title,
                texts
                    .filter(|text| text.starts_with("assume"))
                    .map(String::from)
                    .collect::<Vec<_>>(),
            );
        }
        let edges = self
            .edges()
            .into_iter()
            .map(|([start, state], calls)| (format!("{start}->{state}"), calls));
        assert_eq!(
            drawn,
            edges
                .map(|(title, calls)| (title, calls.into_iter().map(String::from).collect()))
                .collect()
        );
    }
}

const DOT: &str = r##"// Made by tests/walk.rs: docs/semantics.md says how.
digraph states {
    rankdir=LR
    bgcolor=white
    nodesep=0.35
    node [shape=box, fontname="monospace", fontsize=14, fillcolor="#dde8f5"]
    edge [fontname="sans-serif", fontsize=11]
    refused [shape=plaintext, fontcolor="#b00000"]
"##;

fn every_start_state_is_served_exactly_or_refused_unchanged() {
    const OWN_GROUPS: [u32; 2] = [3201, 3202];
    let mut counts = Counts::default();
    for privileged in [true, false] {
        // The measuring thread leaves its state behind, and ends.
        let mut measured = std::thread::spawn(move || measure(privileged))
            .join()
            .unwrap();
        let pairs = VALUES
            .iter()
            .flat_map(|&real| VALUES.map(|effective| (real, effective)));
        for (real, effective, saved) in
            pairs.flat_map(|(real, effective)| VALUES.map(|saved| (real, effective, saved)))
        {
            for filesystem in FILESYSTEMS {
                let filesystem = match filesystem {
                    Filesystem::Effective => effective,
                    Filesystem::Real => real,
                    Filesystem::Saved => saved,
                    Filesystem::Odd => ODD,
                };
                let start = [real, effective, saved, filesystem];
                let asked = all_asked(&TARGETS, &[GROUPS.to_vec()]);
                let reversible: Vec<bool> = asked
                    .iter()
                    .map(|asked| measured.is_reversible(start, &OWN_GROUPS, asked))
                    .collect();
                counts.walk(|counts| {
                    kernel::start_from(start, &OWN_GROUPS);
                    if !privileged {
                        kernel::give_up_capabilities(kernel::CAP_SETGID);
                    }
                    for (asked, &reversible) in asked.iter().zip(&reversible) {
                        for scope in SCOPES {
                            let inside = counts.judge(scope, asked, reversible);
                            if !privileged {
                                let noted = counts.seen.note_ids(start, asked, inside);
                                counts.violations.extend(noted.err());
                            }
                        }
                    }
                });
            }
        }
    }
    let starts = VALUES.len().pow(3) * FILESYSTEMS.len() * 2;
    counts.report(starts * SHAPES.len() * TARGETS.len() * 2 * SCOPES.len());
    counts.seen.compare();
}

/// An ordinary user has one start state, its own, and in a user namespace of its own another one.
fn every_change_of_an_ordinary_user_is_served_exactly_or_refused_unchanged() {
    walk_from_here("an ordinary user");
    if !kernel::passes_in_own_namespace(|| walk_from_here("in a user namespace of its own")) {
        println!("= no user namespace can be made here");
    }
}

fn walk_from_here(who: &str) {
    let start = kernel::identity();
    let targets = [start.ids[0], 1, OUTSIDE, u32::MAX];
    // In the namespace `setgroups` is denied, and groups of outside show as 65534.
    let lists = [GROUPS.to_vec()]
        .into_iter()
        .chain(Some(start.groups.clone()).filter(|_| !kernel::setgroups_denied()));
    let lists: Vec<Vec<u32>> = lists.collect();
    let mut measured = measure_from_here(&[start.ids[0], 1, OUTSIDE], &lists);
    let mut counts = Counts::default();
    for asked in all_asked(&targets, &lists) {
        let reversible = measured.is_reversible(start.ids, &start.groups, &asked);
        for scope in SCOPES {
            counts.walk(|counts| _ = counts.judge(scope, &asked, reversible));
        }
    }
    println!("= {who}:");
    counts.report(SHAPES.len() * targets.len() * (1 + lists.len()) * SCOPES.len());
}
