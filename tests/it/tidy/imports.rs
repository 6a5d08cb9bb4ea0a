//! What imports what: floors without exceptions, and no circles.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::{sources, without_comments, without_tests};

/// What each module of a folder imports from its siblings.
type Graph = BTreeMap<String, BTreeSet<String>>;

#[test]
fn modules_import_only_from_floors_below() {
    let floors = floors_of_the_map();
    let graphs = graphs();
    let floor_of = |module: &str| {
        let floor = floors.get(module);
        *floor.unwrap_or_else(|| panic!("docs/architecture.md gives {module} no floor"))
    };
    for (module, imported) in &graphs["src"] {
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        for other in imported {
            let (own, floor) = (floor_of(module), floor_of(other));
            assert!(
                floor < own,
                "{module} (floor {own}) imports {other} (floor {floor})"
            );
        }
    }
    for module in floors.keys() {
        assert!(
            graphs["src"].contains_key(module),
            "docs/architecture.md names {module}, which is not there"
        );
    }
}

#[test]
fn modules_of_a_folder_import_each_other_one_way_only() {
    for (folder, graph) in graphs() {
        for module in graph.keys() {
            assert!(
                !reachable(&graph, module).contains(module),
                "{folder}: {module} imports itself through others: {graph:?}"
            );
        }
    }
}

/// The floors in docs/architecture.md: a number, the modules, and what they are for.
fn floors_of_the_map() -> BTreeMap<String, usize> {
    let map = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/architecture.md");
    let map = fs::read_to_string(map).unwrap();
    let mut floors = BTreeMap::new();
    for line in map.lines() {
        let Some((floor, modules)) = line.split_once("  ") else {
            continue;
        };
        let Ok(floor) = floor.parse::<usize>() else {
            continue;
        };
        let modules = modules.trim_start().split("  ").next().unwrap_or_default();
        for module in modules.split('·') {
            floors.insert(module.trim().to_owned(), floor);
        }
    }
    floors
}

/// For each folder below `src`, what its modules import from each other. A module includes its subfolder.
fn graphs() -> BTreeMap<String, Graph> {
    let mut graphs: BTreeMap<String, Graph> = BTreeMap::new();
    for (path, text) in sources("src") {
        let text = without_comments(&without_tests(&text));
        let path = path.with_extension("");
        let mut names: Vec<&str> = path.iter().filter_map(|name| name.to_str()).collect();
        if names.last() == Some(&"mod") {
            names.pop();
        }
        for depth in 1..names.len() {
            let (folder, module) = (&names[..depth], names[depth]);
            let graph = graphs.entry(folder.join("/")).or_default();
            let imported = graph.entry(module.to_owned()).or_default();
            let above = vec!["super"; names.len() - depth].join("::");
            let from_root = [&["crate"], &folder[1..]].concat().join("::");
            imported.extend(named_after(&text, &above));
            imported.extend(named_after(&text, &from_root));
        }
    }
    for graph in graphs.values_mut() {
        let modules: BTreeSet<String> = graph.keys().cloned().collect();
        for (module, imported) in graph {
            imported.retain(|other| other != module && modules.contains(other));
        }
    }
    graphs
}

fn reachable(graph: &Graph, from: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut next: Vec<&String> = graph[from].iter().collect();
    while let Some(module) = next.pop() {
        if found.insert(module.clone()) {
            next.extend(&graph[module]);
        }
    }
    found
}

/// The names that follow a path, in trees of `use` and elsewhere.
fn named_after(code: &str, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    let path = format!("{path}::");
    for (start, _) in code.match_indices(&path) {
        let before = code[..start].chars().next_back();
        if before.is_some_and(|char| char.is_alphanumeric() || matches!(char, '_' | ':')) {
            continue;
        }
        let rest = &code[start + path.len()..];
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
