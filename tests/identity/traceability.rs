//! The statements of the pages and the tests in docs/traceability.md go together.
//!
//! Nothing here depends on the wording, the order or the headings of a page.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::cases;
use crate::common::{self, Case};

pub const CASES: &[Case] = cases![
    Nothing: every_statement_has_an_id,
    Nothing: every_id_has_a_test,
    Nothing: every_test_that_is_named_is_registered,
    Nothing: every_case_that_shows_a_statement_is_named,
    Nothing: every_module_is_described,
];

const TABLE: &str = "docs/traceability.md";

/// Pages whose table rows and list items all have an id.
const COMPLETE: [&str; 4] = [
    "README.md",
    "docs/security.md",
    "docs/semantics.md",
    "docs/porting.md",
];

/// Pages in which only some lines have an id.
const PARTIAL: [&str; 1] = ["docs/guide.md"];

/// Modules in which each case shows one statement.
const SHOWING: [&str; 3] = ["limits", "porting", "semantics"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    std::fs::read_to_string(root().join(path))
        .unwrap_or_else(|error| common::ignore(&format!("needs the sources: {path}: {error}")))
}

/// A capital letter and a number, or two: `L17`, `P1.2`.
fn is_id(word: &str) -> bool {
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut letters = word.chars();
    let is_capital = letters
        .next()
        .is_some_and(|letter| letter.is_ascii_uppercase());
    let (number, part) = letters
        .as_str()
        .split_once('.')
        .unwrap_or((letters.as_str(), "0"));
    is_capital && is_number(number) && is_number(part)
}

fn between<'a>(text: &'a str, open: &'a str, close: &'a str) -> impl Iterator<Item = &'a str> {
    text.split(open)
        .skip(1)
        .filter_map(move |rest| Some(rest.split_once(close)?.0))
}

/// The ids that this statement has: comments, and what a row or an item begins with.
fn ids(statement: &str) -> Vec<&str> {
    let content = statement
        .strip_prefix("| ")
        .or_else(|| statement.strip_prefix("- "));
    let shown = content.and_then(|content| Some(content.strip_prefix("**")?.split_once("**")?.0));
    between(statement, "<!-- ", " -->")
        .chain(shown)
        .filter(|word| is_id(word))
        .collect()
}

struct Statement {
    text: String,
    /// A table row or a list item: it has to have an id.
    is_row_or_item: bool,
}

/// The lines of a page outside code blocks, without the heads of tables; the lines of a list item as one.
fn statements(page: &str) -> Vec<Statement> {
    let (mut statements, mut before, mut table_line) = (Vec::<Statement>::new(), "", 0);
    let (mut in_code, mut in_item, mut exempt) = (false, false, false);
    for line in page.lines() {
        in_code ^= line.starts_with("```");
        if in_code || line.starts_with("```") {
            (before, in_item, table_line) = ("", false, 0);
            continue;
        }
        let (row, item) = (line.starts_with('|'), line.starts_with("- "));
        let begins = row && table_line == 0 || item && !before.starts_with(['-', ' ']);
        exempt = (row || item || line.starts_with(' '))
            && (exempt && !begins || before.trim() == "<!-- no ids -->");
        table_line = if row { table_line + 1 } else { 0 };
        in_item = item || in_item && line.starts_with(' ');
        match statements.last_mut() {
            Some(last) if in_item && !item => last.text.extend([" ", line]),
            _ if row && table_line <= 2 => {}
            _ => statements.push(Statement {
                text: line.into(),
                is_row_or_item: (row || item) && !exempt,
            }),
        }
        before = line;
    }
    statements
}

fn every_statement_has_an_id() {
    let mut count = 0;
    for page in COMPLETE {
        for statement in statements(&text(page))
            .iter()
            .filter(|statement| statement.is_row_or_item)
        {
            assert_eq!(
                ids(&statement.text).len(),
                1,
                "{page}: this has to have one id: {}",
                statement.text
            );
            count += 1;
        }
    }
    println!("= {count} rows and items, each with an id");
}

/// The rows of the table: an id, and the tests after it.
fn rows(table: &str) -> Vec<(&str, Vec<&str>)> {
    let cells = table.lines().filter_map(|line| {
        line.strip_prefix("| ")?
            .strip_suffix(" |")?
            .split_once(" | ")
    });
    cells
        .filter(|(id, _)| is_id(id))
        .map(|(id, tests)| (id, between_ticks(tests).collect()))
        .collect()
}

fn between_ticks(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn every_id_has_a_test() {
    let table = text(TABLE);
    let mut without = BTreeSet::new();
    for (id, tests) in rows(&table) {
        assert!(!tests.is_empty(), "{TABLE}: {id} has no test");
        assert!(without.insert(id), "{TABLE} has {id} twice");
    }
    for page in COMPLETE.into_iter().chain(PARTIAL) {
        for id in statements(&text(page))
            .iter()
            .flat_map(|statement| ids(&statement.text))
        {
            assert!(
                without.remove(id),
                "{page}: {id} is not in {TABLE}, or in two places"
            );
        }
    }
    assert!(without.is_empty(), "no page has {without:?} of {TABLE}");
    println!("= {} ids, each with a test", rows(&table).len());
}

/// The files of all test modules: the name of the module, and the text.
fn modules() -> Vec<(String, String)> {
    fn collect(folder: PathBuf, found: &mut Vec<(String, String)>) {
        for entry in std::fs::read_dir(folder)
            .expect("a folder")
            .map(|entry| entry.expect("an entry").path())
        {
            let name = entry
                .file_stem()
                .expect("a name")
                .to_str()
                .expect("a text")
                .to_owned();
            if entry.is_dir() && !["common", "compile", "breaks"].contains(&name.as_str()) {
                collect(entry, found);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                found.push((name, std::fs::read_to_string(&entry).expect("a text")));
            }
        }
    }
    let mut found = Vec::new();
    collect(root().join("tests"), &mut found);
    found
}

/// The cases that a module registers: in `cases![...]`, or as trials of its own.
fn registered(module: &str) -> BTreeSet<&str> {
    let is_name = |name: &str| {
        !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let cases = between(module, "cases![\n", "]")
        .flat_map(str::lines)
        .filter_map(|line| line.trim().strip_suffix(',')?.split_once(": "));
    // `syscalls` has a table of its own.
    let works = between(module, "name: \"", "\"").filter(|_| !module.contains("cases![\n"));
    let trials = between(module, "\"compile::", "\"");
    cases
        .map(|(_, case)| case)
        .chain(works)
        .chain(trials)
        .filter(|name| is_name(name))
        .collect()
}

fn every_test_that_is_named_is_registered() {
    let (table, modules) = (text(TABLE), modules());
    for (id, tests) in rows(&table) {
        for test in tests {
            let (module, case) = test
                .split_once("::")
                .unwrap_or_else(|| panic!("{id}: {test} is not module::case"));
            let registers = modules
                .iter()
                .any(|(name, text)| name == module && registered(text).contains(case));
            assert!(registers, "{id}: {test} is not registered");
        }
    }
}

fn every_case_that_shows_a_statement_is_named() {
    let table = text(TABLE);
    let named: BTreeSet<&str> = rows(&table)
        .into_iter()
        .flat_map(|(_, tests)| tests)
        .collect();
    for (module, text) in modules()
        .iter()
        .filter(|(module, _)| SHOWING.contains(&module.as_str()))
    {
        for case in registered(text) {
            assert!(
                named.contains(format!("{module}::{case}").as_str()),
                "{module}::{case} is not in {TABLE}"
            );
        }
    }
}

fn every_module_is_described() {
    let page = text("docs/testing.md");
    let described: BTreeSet<&str> = between_ticks(&page).collect();
    for (module, _) in modules()
        .iter()
        .filter(|(_, text)| !registered(text).is_empty())
    {
        assert!(
            described.contains(module.as_str()),
            "`{module}` is not in docs/testing.md"
        );
    }
}
