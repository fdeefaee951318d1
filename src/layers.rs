//! A test of the layers: no file imports from a layer above its own, and no files import each other
//! in a circle. No file is too long to be read in one go.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// From the ground up. Each name is a module of the crate's root, with its submodules.
const LAYERS: [&[&str]; 6] = [
    &[
        "capabilities",
        "change",
        "error",
        "identity",
        "ids",
        "parse",
        "scope",
    ],
    &["plan"],
    &["kernel"],
    &["engine"],
    &["guard", "permanent"],
    &["lib"],
];

/// Without comments and unit tests.
const MAX_LINES_OF_CODE: usize = 400;

/// The code of each module, named as in a path: `engine::stack`.
type Sources = BTreeMap<String, String>;

#[test]
fn no_import_goes_upwards_and_there_is_no_circle() {
    let sources = sources();
    let imports = imports(&sources);
    let count: usize = imports.values().map(BTreeSet::len).sum();
    println!("{} files, {count} imports", sources.len());
    assert!(imports["guard"].contains("engine::stack") && count > sources.len());
    assert_eq!(problems(&imports), Vec::<String>::new());
}

#[test]
fn a_planted_import_upwards_and_a_planted_circle_are_found() {
    let upwards = "which is above it";
    for (module, planted, expected) in [
        (
            "plan::groups",
            "use crate::kernel::read;",
            ["kernel::read", upwards],
        ),
        (
            "kernel::set",
            "use super::super::engine::{abort, event};",
            ["engine::abort", upwards],
        ),
        (
            "ids",
            "pub(crate) use crate::guard::Guard;",
            ["guard", upwards],
        ),
        (
            "plan",
            "fn f() { crate::engine::abort::abort() }",
            ["engine::abort", upwards],
        ),
        (
            "kernel::task_dir",
            "use super::threads::Kept;",
            ["circle", "kernel::threads"],
        ),
        (
            "ids",
            "use crate::change::{Change, GroupChange};",
            ["circle", "change"],
        ),
    ] {
        let mut sources = sources();
        sources.get_mut(module).unwrap().push_str(planted);
        let found = problems(&imports(&sources));
        let is_found = |problem: &String| {
            [expected[0], expected[1], module]
                .iter()
                .all(|part| problem.contains(part))
        };
        assert!(
            found.iter().any(is_found),
            "{planted} in {module}: {found:?}"
        );
    }
}

#[test]
fn no_file_has_more_lines_of_code_than_one_reads_in_one_go() {
    let long: Vec<_> = sources()
        .into_iter()
        .map(|(module, code)| {
            (
                code.lines().filter(|line| !line.trim().is_empty()).count(),
                module,
            )
        })
        .filter(|(lines, _)| *lines > MAX_LINES_OF_CODE)
        .collect();
    assert_eq!(long, []);
}

/// Reads the files of `src`, without comments, unit tests and modules that only tests use.
fn sources() -> Sources {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources = Sources::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let module = path.strip_prefix(&root).unwrap().with_extension("");
            let module = module.to_str().unwrap().replace('/', "::");
            let module = module.strip_suffix("::mod").unwrap_or(&module).to_owned();
            sources.insert(
                module,
                without_comments_and_tests(&fs::read_to_string(&path).unwrap()),
            );
        }
    }
    let for_tests: Vec<String> = ["layers", "plan::kernel_model", "plan::kernel_search"]
        .map(String::from)
        .into();
    sources.retain(|module, _| !for_tests.contains(module));
    sources
}

fn without_comments_and_tests(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let is_code = |line: &&str| !line.trim_start().starts_with("//");
    code.lines()
        .filter(is_code)
        .map(|line| format!("{line}\n"))
        .collect()
}

/// Returns for each module those that it imports from.
fn imports(sources: &Sources) -> BTreeMap<String, BTreeSet<String>> {
    let of_one = |(module, code): (&String, &String)| {
        let mut imported = BTreeSet::new();
        for statement in code.split(';') {
            let Some((_, tree)) = statement.rsplit_once("use ") else {
                continue;
            };
            for path in paths(&tree.split_whitespace().collect::<String>()) {
                imported.extend(resolve(module, &path, sources));
            }
        }
        // Paths that are written out in the code.
        for path in code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')) {
            if path.starts_with("crate::") || path.starts_with("super::") {
                imported.extend(resolve(module, path.trim_end_matches(':'), sources));
            }
        }
        imported.remove(module);
        (module.clone(), imported)
    };
    sources.iter().map(of_one).collect()
}

/// Returns the paths of a tree: `a::b` and `a::c` for `a::{b,c}`.
fn paths(tree: &str) -> Vec<String> {
    let Some((prefix, rest)) = tree.split_once('{') else {
        return vec![tree.to_owned()];
    };
    let inner = rest.strip_suffix('}').unwrap_or(rest);
    let (mut depth, mut parts) = (0, vec![String::new()]);
    for character in inner.chars() {
        depth += i32::from(character == '{') - i32::from(character == '}');
        match character {
            ',' if depth == 0 => parts.push(String::new()),
            _ => parts.last_mut().unwrap().push(character),
        }
    }
    let nested = parts.iter().flat_map(|part| paths(part));
    nested.map(|path| format!("{prefix}{path}")).collect()
}

/// Returns the module of the crate that has the item with this path, seen from `module`.
fn resolve(module: &str, path: &str, sources: &Sources) -> Option<String> {
    let mut base: Vec<&str> = module.split("::").filter(|name| *name != "lib").collect();
    let mut names = path.split("::").peekable();
    match *names.peek()? {
        "crate" => {
            base.clear();
            names.next();
        }
        "super" | "self" => {}
        child
            if sources.contains_key(
                &base
                    .iter()
                    .chain([&child])
                    .copied()
                    .collect::<Vec<_>>()
                    .join("::"),
            ) => {}
        _ => return None,
    }
    for name in names {
        match name {
            "super" => drop(base.pop()),
            "self" => {}
            name => base.push(name),
        }
    }
    // The longest beginning that is a file, but for items of the parent directory's `mod.rs`.
    (1..=base.len())
        .rev()
        .map(|length| base[..length].join("::"))
        .find(|name| sources.contains_key(name))
}

fn problems(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let layer = |module: &str| {
        let root = module.split("::").next().unwrap();
        LAYERS
            .iter()
            .position(|layer| layer.contains(&root))
            .unwrap_or_else(|| panic!("{module} is in no layer"))
    };
    let mut problems = Vec::new();
    for (module, imported) in imports {
        for other in imported.iter().filter(|other| layer(other) > layer(module)) {
            problems.push(format!("{module} imports {other}, which is above it"));
        }
    }
    // Files that nothing unread imports are taken away until there are none. A circle stays.
    let mut rest = imports.clone();
    loop {
        let leaves: Vec<String> = rest
            .iter()
            .filter(|(_, to)| !to.iter().any(|to| rest.contains_key(to)))
            .map(|(from, _)| from.clone())
            .collect();
        let roots = rest
            .keys()
            .filter(|module| !rest.values().any(|to| to.contains(*module)));
        let outside: Vec<String> = roots.cloned().chain(leaves).collect();
        if outside.is_empty() {
            break;
        }
        rest.retain(|module, _| !outside.contains(module));
    }
    if !rest.is_empty() {
        problems.push(format!(
            "a circle: {}",
            rest.into_keys().collect::<Vec<_>>().join(", ")
        ));
    }
    problems
}
