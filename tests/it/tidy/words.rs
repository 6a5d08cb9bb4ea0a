//! One word for each thing: a name that was replaced does not come back, in code or in prose.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

/// Names that were replaced, as they stood in the code.
const RETIRED_NAMES: &str = "Abilities Allowance Asked Books Circumstances Course Desk Doorman Drawing Fate Needs
    Nobody OwnLink Polled Reach Remedy Silent StandIn Standing Taken Taking Ticket Told Walk Walker circumstances
    close_doors crowded drafts failure_step_ms give_back hopeless json_pictures lay_over put_back recognise rest_ms
    see_to_lost served_at stand_in take_in unclaim";

/// Words of prose that meant something else here than elsewhere.
const RETIRED_WORDS: [&str; 18] = [
    "desk",
    "doorman",
    "draw",
    "drawing",
    "drawings",
    "drawn",
    "draws",
    "drew",
    "gone on with",
    "left out for a while",
    "lies over",
    "picture",
    "pictures",
    "stand-in",
    "stand-ins",
    "stopped hearing",
    "told of",
    "whimsical",
];

#[test]
fn retired_words_stay_away() {
    let mut found = BTreeSet::new();
    for (path, text) in written() {
        for (number, line) in text.lines().enumerate() {
            let lower = line.to_lowercase();
            let is_code = Path::new(&path)
                .extension()
                .is_some_and(|kind| kind == "rs")
                && !line.trim_start().starts_with("//");
            let names = RETIRED_NAMES.split_whitespace();
            let names = names.filter(|name| is_code && has_word(line, name));
            let words = RETIRED_WORDS.into_iter();
            let words = words.filter(|word| has_word(&lower, word));
            for word in names.chain(words) {
                found.insert(format!("{path}:{}: {word}", number + 1));
            }
        }
    }
    assert!(found.is_empty(), "{found:#?}");
}

/// All text that people read and write here, but for what cannot change any more and what lists the old names.
fn written() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut git = Command::new("git");
    let listed = git.arg("ls-files").current_dir(root).output().unwrap();
    assert!(listed.status.success(), "git lists no files");
    let listed = String::from_utf8(listed.stdout).unwrap();
    let kept = [
        "migrations/",
        ".sqlx/",
        "Cargo.lock",
        "CHANGELOG.md",
        "tests/it/tidy/words.rs",
    ];
    let files = listed.lines();
    let files = files.filter(|file| !kept.iter().any(|kept| file.starts_with(kept)));
    let read = |file: &str| Some((file.to_owned(), fs::read_to_string(root.join(file)).ok()?));
    files.filter_map(read).collect()
}

fn has_word(line: &str, word: &str) -> bool {
    let is_part = |char: char| char.is_alphanumeric() || char == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}
