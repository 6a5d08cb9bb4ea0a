//! Enforces the architecture: floors, sizes, the places of SQL, and forbidden words.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A module imports only from floors below its own. Siblings don't import each other, except on the ground floor and on
/// floor 2, where `images` and `app` are one.
const FLOORS: [&[&str]; 5] = [
    &[
        "config",
        "db",
        "failure",
        "progress",
        "private_files",
        "private_postgres",
        "ids",
        "money",
        "image",
        "clock",
        "telemetry",
        "shutdown",
        "stall",
        "batch",
        "buffers",
        "tls",
    ],
    &[
        "accounts",
        "tasks",
        "billing",
        "uploads",
        "references",
        "backend",
        "storage",
    ],
    &["images", "app"],
    &["http", "worker"],
    &["cli"],
];
const LINES_MAX: usize = 400;
const LINES_OF_NINE_IN_TEN: usize = 300;

#[test]
fn modules_import_only_from_floors_below() {
    let floors: BTreeMap<&str, usize> = FLOORS
        .iter()
        .enumerate()
        .flat_map(|(floor, modules)| modules.iter().map(move |module| (*module, floor)))
        .collect();
    for (path, text) in sources("src") {
        let module = module_of(&path);
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        let own = *floors
            .get(module.as_str())
            .unwrap_or_else(|| panic!("{module} has no floor"));
        for imported in imports(&text) {
            let Some(&floor) = floors.get(imported.as_str()) else {
                continue;
            };
            let shares_floor = floor == own && matches!(own, 0 | 2);
            assert!(
                imported == module || floor < own || shares_floor,
                "{} (floor {own}) imports {imported} (floor {floor})",
                path.display()
            );
        }
    }
}

#[test]
fn files_start_with_a_header_and_stay_small() {
    let mut lengths = Vec::new();
    for (path, text) in sources("tests") {
        assert!(
            text.starts_with("//!"),
            "{} does not say what it is for",
            path.display()
        );
    }
    for (path, text) in sources("src") {
        assert!(
            text.starts_with("//!"),
            "{} does not say what it is for",
            path.display()
        );
        let lines = text
            .split("#[cfg(test)]")
            .next()
            .unwrap_or_default()
            .lines()
            .count();
        assert!(
            lines <= LINES_MAX,
            "{} has {lines} lines without its tests",
            path.display()
        );
        lengths.push(lines);
    }
    lengths.sort_unstable();
    let nine_in_ten = lengths[lengths.len() * 9 / 10];
    assert!(
        nine_in_ten <= LINES_OF_NINE_IN_TEN,
        "one file in ten is over {nine_in_ten} lines"
    );
}

#[test]
fn sql_is_in_stores_and_the_ledger_only() {
    for (path, text) in sources("src") {
        let name = path.file_name().unwrap().to_str().unwrap();
        let may = matches!(name, "store.rs" | "ledger.rs" | "repeats.rs")
            || path.starts_with("src/db")
            || path.starts_with("src/tasks/store")
            || path.starts_with("src/private_postgres");
        for word in ["query!(", "query_as!(", "query_scalar!(", "sqlx::query"] {
            assert!(may || !text.contains(word), "{} has SQL", path.display());
        }
    }
    for (path, text) in sources("src") {
        let moves_money = [
            "UPDATE accounts SET balance",
            "UPDATE accounts SET held",
            "INTO entries",
        ]
        .iter()
        .any(|words| text.contains(words));
        let may = path.ends_with("billing/ledger.rs");
        assert!(may || !moves_money, "{} moves money", path.display());
    }
}

#[test]
fn no_todo_and_no_silent_allow_remains() {
    for (path, text) in sources("src") {
        for (number, line) in text.lines().enumerate() {
            let at = format!("{}:{}", path.display(), number + 1);
            assert!(
                !line.contains("#[allow(") && !line.contains("#![allow("),
                "{at}: say #[expect]"
            );
            for word in [
                concat!("TO", "DO"),
                concat!("FIX", "ME"),
                "unimplemented!",
                "todo!",
            ] {
                assert!(!line.contains(word), "{at}: {word}");
            }
        }
    }
}

/// One word for each thing: types are named as the glossary says.
#[test]
fn types_are_named_as_the_glossary_says() {
    let banned = [
        "Provider", "Channel", "Driver", "Tenant", "Manager", "Helper", "Util",
    ];
    for (path, text) in sources("src") {
        for line in text.lines() {
            let mut words = line
                .split_whitespace()
                .skip_while(|word| word.starts_with("pub"));
            if !matches!(words.next(), Some("struct" | "enum" | "trait" | "type")) {
                continue;
            }
            let name = words.next().unwrap_or_default();
            for word in banned {
                assert!(!name.contains(word), "{}: {name}", path.display());
            }
        }
    }
}

fn sources(dir: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut dirs = vec![root.join(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.strip_prefix(root).unwrap().to_owned(), text));
            }
        }
    }
    assert!(!found.is_empty(), "no sources in {dir}");
    found
}

/// The top-level module that a file belongs to.
fn module_of(path: &Path) -> String {
    let first = path
        .components()
        .nth(1)
        .unwrap()
        .as_os_str()
        .to_str()
        .unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The top-level modules that a file names after `crate::`, in `use` trees and in paths.
fn imports(text: &str) -> Vec<String> {
    let code: String = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = Vec::new();
    for (start, _) in code.match_indices("crate::") {
        let rest = &code[start + "crate::".len()..];
        if let Some(tree) = rest.strip_prefix('{') {
            found.extend(heads(tree));
        } else {
            found.push(identifier(rest));
        }
    }
    found
}

/// The first identifiers of the branches of a `use` tree.
fn heads(tree: &str) -> Vec<String> {
    let (mut depth, mut begins, mut found) = (1, true, Vec::new());
    for (index, char) in tree.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth == 1 => break,
            '}' => depth -= 1,
            ',' if depth == 1 => begins = true,
            char if begins && depth == 1 && (char.is_alphabetic() || char == '_') => {
                found.push(identifier(&tree[index..]));
                begins = false;
            }
            _ => {}
        }
    }
    found
}

fn identifier(text: &str) -> String {
    text.chars()
        .take_while(|char| char.is_alphanumeric() || *char == '_')
        .collect()
}
