//! Every direct dependency is used: what nobody names is only built.

use std::{
    fs,
    path::{Path, PathBuf},
};

use toml::Table;

use super::{sources, without_comments, without_tests};

#[test]
fn every_dependency_is_used() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let manifest: Table = fs::read_to_string(manifest).unwrap().parse().unwrap();
    let program = code(program());
    let all = ["src", "tests", "bench"].into_iter().flat_map(sources);
    let all = code(all.map(|(_, text)| text));
    for (table, code) in [("dependencies", program), ("dev-dependencies", all)] {
        for name in manifest[table].as_table().unwrap().keys() {
            assert!(is_named(&code, name), "{table}: nothing uses {name}");
        }
    }
}

/// The sources of the program, without its unit tests and their modules.
fn program() -> impl Iterator<Item = String> {
    let sources = sources("src");
    let tests: Vec<PathBuf> = sources.iter().flat_map(test_modules).collect();
    let is_test = move |path: &Path| {
        let path = path.with_extension("");
        tests.iter().any(|module| path.starts_with(module))
    };
    let program = sources.into_iter().filter(move |(path, _)| !is_test(path));
    program.map(|(_, text)| without_tests(&text))
}

/// The files or folders of the modules that a file declares for tests only.
fn test_modules((path, text): &(PathBuf, String)) -> Vec<PathBuf> {
    let folder = match path.file_stem().and_then(|name| name.to_str()) {
        Some("lib" | "mod") => path.with_file_name(""),
        _ => path.with_extension(""),
    };
    let after = text.split("#[cfg(test)]\n").skip(1);
    let declared = after.filter_map(|rest| rest.lines().next()?.strip_suffix(';'));
    let names = declared.filter_map(|item| item.rsplit_once("mod "));
    names.map(|(_, name)| folder.join(name)).collect()
}

/// The code of some sources, without what names our own modules.
fn code(sources: impl Iterator<Item = String>) -> String {
    let code: String = sources.collect();
    let code = without_comments(&code);
    let is_ours = |statement: &&str| {
        let statement = statement.trim_start();
        statement.starts_with("use crate::") || statement.starts_with("use super::")
    };
    let statements = code.split_inclusive(';');
    statements.filter(|statement| !is_ours(statement)).collect()
}

/// Whether a path begins with the crate: `name::…` or `::name::…`.
fn is_named(code: &str, name: &str) -> bool {
    let path = format!("{}::", name.replace('-', "_"));
    code.match_indices(&path).any(|(start, _)| {
        let before = &code[..start];
        let before = before.strip_suffix("::").unwrap_or(before);
        !before.ends_with(|char: char| char.is_alphanumeric() || char == '_')
    })
}
