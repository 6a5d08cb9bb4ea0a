//! Every text and code of the errors that clients get is in an inline snapshot, which shows the whole body.

use std::path::Path;

use super::{sources, without_comments, without_tests};

/// The table of statuses: all its texts and codes.
const STATUSES: &str = "src/http/error/statuses.rs";

/// The errors that it shows to clients, with the texts of their variants.
const ERRORS: [&str; 11] = [
    "src/batch.rs",
    "src/billing/payer.rs",
    "src/buffers.rs",
    "src/image/mod.rs",
    "src/images/admission.rs",
    "src/images/generate.rs",
    "src/images/intake.rs",
    "src/images/request/error.rs",
    "src/images/submit/submission.rs",
    "src/references/guard.rs",
    "src/uploads/quota.rs",
];

/// Texts that no client gets.
const UNSEEN: [&str; 12] = [
    // For the log.
    "a request failed: {message}",
    "the accepted task could not be looked up",
    "the image could not be read",
    "the image could not be recorded",
    "the image could not be stored",
    "the request could not be serialized",
    "the uploads of an account could not be counted",
    "{0} is not an address of the public internet",
    // Why a lint is not heeded.
    "at most a minute",
    // Told as an invalid key.
    "the API key is no longer valid",
    // A request that was read from JSON can be written as JSON.
    "the request could not be accepted",
    // It is gone.
    "the client disconnected before the request was accepted",
];

#[test]
fn every_error_of_a_client_is_in_a_snapshot() {
    let snapshots = snapshots();
    let mut texts = Vec::new();
    for path in ERRORS {
        let code = code(path);
        let errors = code.split("#[error(").skip(1);
        let errors = errors.filter_map(|rest| rest.split(")]").next()?.split('"').nth(1));
        texts.extend(errors.map(str::to_owned));
    }
    let statuses = code(STATUSES);
    texts.extend(statuses.split('"').skip(1).step_by(2).map(str::to_owned));
    for text in UNSEEN {
        assert!(texts.iter().any(|known| known == text), "no error: {text}");
    }
    texts.retain(|text| !UNSEEN.contains(&text.as_str()));
    assert!(texts.len() > 40, "{texts:#?}");
    texts.retain(|text| !snapshots.contains(longest_piece(text)));
    assert!(texts.is_empty(), "in no snapshot: {texts:#?}");
}

/// The longest part of a text between its values.
fn longest_piece(text: &str) -> &str {
    let pieces = text.split('{');
    let pieces = pieces.map(|piece| piece.split_once('}').map_or(piece, |(_, piece)| piece));
    pieces.max_by_key(|piece| piece.len()).unwrap_or_default()
}

/// The inline snapshots of all tests.
fn snapshots() -> String {
    let mut snapshots = String::new();
    for (_, text) in sources("tests") {
        for begun in text.split("@r#\"").skip(1) {
            snapshots.push_str(begun.split("\"#").next().unwrap_or_default());
        }
    }
    snapshots
}

fn code(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let text = std::fs::read_to_string(path).unwrap();
    without_comments(&without_tests(&text))
}
