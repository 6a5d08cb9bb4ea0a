//! Everything that `docs/reliability.md` cites as proof exists.

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn every_test_that_a_promise_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("docs/reliability.md")).unwrap();
    // Code spans such as `durability/killed.rs::an_acknowledged_request_is_never_lost`.
    let spans = text.split('`').skip(1).step_by(2);
    let named: BTreeSet<(&str, &str)> = spans.filter_map(|span| span.split_once(".rs::")).collect();
    assert!(named.len() > 40, "only {} tests are named", named.len());
    for (file, test) in named {
        let path = if file.starts_with("src/") {
            root.join(format!("{file}.rs"))
        } else {
            root.join(format!("tests/it/{file}.rs"))
        };
        let source = fs::read_to_string(&path).unwrap_or_default();
        let is_there = source.contains(&format!("fn {test}("));
        assert!(is_there, "{} has no test {test}", path.display());
    }
}
