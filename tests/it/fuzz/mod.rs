//! Hostile input from outside. Each target runs every input of its corpus (`__fuzz__/TARGET/corpus`), then, for a short
//! time, arbitrary inputs and mutants of the corpus. `scripts/fuzz` runs for as long as requested.

mod parsers;
mod requests;

use std::{fs, ops::Range, panic::AssertUnwindSafe, path::Path, time::Duration};

use crate::harness::say;

/// The time for each target in a run of all tests.
const MOMENT: Duration = Duration::from_millis(700);
const EDITS_MAX: usize = 12;
const REPEATED_MAX: usize = 64;

/// Runs a target on inputs of all kinds. A macro, because bolero looks for corpora beside the place of its use.
macro_rules! fuzz {
    ($name:literal, $words:expr, $target:expr) => {{
        let seeds = crate::fuzz::corpus($name);
        let target = std::panic::AssertUnwindSafe($target);
        bolero::check!(name = $name)
            .with_test_time(crate::fuzz::MOMENT)
            .for_each(|input: &[u8]| crate::fuzz::feed(&target, input, &seeds, $words));
    }};
}
use fuzz;

/// Runs the input itself and the mutant that it encodes; prints the mutant if it fails.
fn feed(
    target: &AssertUnwindSafe<impl Fn(&[u8])>,
    input: &[u8],
    seeds: &[Vec<u8>],
    words: &[&str],
) {
    target.0(input);
    let mutant = mutant(input, seeds, words);
    let shown = mutant.escape_ascii().to_string();
    bolero::on_failure(move || say(&format!("the input is b\"{shown}\"")));
    target.0(&mutant);
}

/// The corpus that a target starts with.
fn corpus(target: &str) -> Vec<Vec<u8>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/it/fuzz/__fuzz__")
        .join(target)
        .join("corpus");
    let files = fs::read_dir(&dir).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", dir.display());
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// A seed, edited as the bytes of a script say: random edits get further into a format than random inputs do.
fn mutant(script: &[u8], seeds: &[Vec<u8>], words: &[&str]) -> Vec<u8> {
    let mut script = Script(script);
    let mut bytes = seeds[script.below(seeds.len())].clone();
    for _ in 0..EDITS_MAX {
        if script.0.is_empty() {
            break;
        }
        edit(&mut bytes, &mut script, seeds, words);
    }
    bytes
}

fn edit(bytes: &mut Vec<u8>, script: &mut Script, seeds: &[Vec<u8>], words: &[&str]) {
    let kind = script.next() % 8;
    let range = script.range(bytes.len());
    let put = match kind {
        0 => vec![script.next()],
        1 => Vec::new(),
        2 => bytes[range.clone()].repeat(script.below(REPEATED_MAX)),
        3 if !words.is_empty() => words[script.below(words.len())].as_bytes().to_vec(),
        4 => vec![[0, 1, 0x7F, 0x80, 0xFF][script.below(5)]; range.len()],
        5 => {
            let other = &seeds[script.below(seeds.len())];
            other[script.range(other.len())].to_vec()
        }
        6 => bytes[range.clone()]
            .iter()
            .map(|byte| byte ^ (1 << (script.next() % 8)))
            .collect(),
        _ => {
            bytes.truncate(range.end);
            return;
        }
    };
    bytes.splice(range, put);
}

/// Decides the edits, byte by byte; yields zeros after its end.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    fn below(&mut self, limit: usize) -> usize {
        let number = usize::from(self.next()) << 8 | usize::from(self.next());
        number % limit.max(1)
    }

    /// Short ranges most of the time.
    fn range(&mut self, length: usize) -> Range<usize> {
        let start = self.below(length + 1);
        let most = if self.next() < 200 { 8 } else { length };
        start..(start + self.below(most + 1)).min(length)
    }
}
