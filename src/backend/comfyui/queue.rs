//! Finds a prompt in the answer to `/queue` while it arrives. The answer contains the whole workflow of every
//! waiting prompt, tens of megabytes in all. Only the id of each entry is read, and nothing is kept.
//!
//! `{"queue_running": [[number, "id", {…}, …], …], "queue_pending": […]}`

use memchr::memchr2;

/// The longest text that is kept; an id or a key is never longer.
const TEXT_BYTES_MAX: usize = 64;
/// The depths of the list and of an entry, and the index of the id in an entry.
const LIST_DEPTH: usize = 2;
const ENTRY_DEPTH: usize = 3;
const ID_INDEX: usize = 1;

/// The state after the pieces scanned so far, for one prompt.
#[derive(Debug)]
pub(super) struct QueueScanner {
    id: String,
    depth: usize,
    within: Within,
    text: Vec<u8>,
    /// The latest text of the outermost object: the list's name while a list is open.
    list: Vec<u8>,
    /// The index of the current part of an entry.
    index: usize,
    has_begun: bool,
    found: Found,
}

#[derive(Debug, PartialEq, Eq)]
enum Within {
    Structure,
    Text,
    /// After a backslash.
    Escape,
}

/// The prompt's location.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It is being executed.
    Running,
    /// It waits to be executed.
    Pending,
    /// The queue does not have it.
    Nowhere,
}

impl QueueScanner {
    /// Looks for the prompt with this id.
    pub(super) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            depth: 0,
            within: Within::Structure,
            text: Vec::new(),
            list: Vec::new(),
            index: 0,
            has_begun: false,
            found: Found::Nowhere,
        }
    }

    /// Scans the next piece of the answer. Returns false if the answer is not a ComfyUI queue.
    pub(super) fn take(&mut self, mut piece: &[u8]) -> bool {
        while let Some((&byte, rest)) = piece.split_first() {
            if self.within != Within::Structure {
                piece = self.take_text(piece);
                continue;
            }
            piece = rest;
            let is_sound = match byte {
                b' ' | b'\n' | b'\r' | b'\t' => true,
                b'{' if !self.has_begun => self.open(),
                _ if self.depth == 0 => false,
                b'{' | b'[' => self.open(),
                b'}' | b']' => {
                    self.depth -= 1;
                    true
                }
                b'"' => {
                    self.within = Within::Text;
                    self.text.clear();
                    true
                }
                b',' if self.depth == ENTRY_DEPTH => {
                    self.index += 1;
                    true
                }
                _ => true,
            };
            if !is_sound {
                return false;
            }
        }
        true
    }

    /// The prompt's location once the answer has ended; `None` if the answer was cut off.
    pub(super) fn finish(&self) -> Option<Found> {
        (self.has_begun && self.depth == 0).then_some(self.found)
    }

    fn open(&mut self) -> bool {
        self.has_begun = true;
        self.depth += 1;
        if self.depth == ENTRY_DEPTH {
            self.index = 0;
        }
        true
    }

    /// Scans the current text and returns the rest of the piece.
    fn take_text<'a>(&mut self, piece: &'a [u8]) -> &'a [u8] {
        if self.within == Within::Escape {
            self.within = Within::Text;
            self.keep(&piece[..1]);
            return &piece[1..];
        }
        let Some(end) = memchr2(b'"', b'\\', piece) else {
            self.keep(piece);
            return &[];
        };
        self.keep(&piece[..end]);
        if piece[end] == b'\\' {
            self.within = Within::Escape;
        } else {
            self.within = Within::Structure;
            self.judge();
        }
        &piece[end + 1..]
    }

    fn keep(&mut self, bytes: &[u8]) {
        // One extra byte distinguishes a text that is too long from one of exactly the maximum.
        let left = TEXT_BYTES_MAX + 1 - self.text.len();
        self.text.extend_from_slice(&bytes[..bytes.len().min(left)]);
    }

    /// Evaluates a complete text.
    fn judge(&mut self) {
        if self.depth < LIST_DEPTH {
            self.list.clone_from(&self.text);
        }
        let is_id =
            self.depth == ENTRY_DEPTH && self.index == ID_INDEX && self.text == self.id.as_bytes();
        match self.list.as_slice() {
            b"queue_running" if is_id => self.found = Found::Running,
            b"queue_pending" if is_id && self.found == Found::Nowhere => {
                self.found = Found::Pending;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn find(answer: &str, piece_bytes: usize) -> Option<Found> {
        let mut scanner = QueueScanner::new("id-1");
        let mut pieces = answer.as_bytes().chunks(piece_bytes);
        pieces
            .all(|piece| scanner.take(piece))
            .then(|| scanner.finish())?
    }

    #[test]
    fn only_the_id_of_an_entry_counts() {
        let answer = |running: serde_json::Value, pending: serde_json::Value| {
            json!({"queue_running": running, "queue_pending": pending}).to_string()
        };
        let entry = json!([3, "id-1", {"6": {"inputs": {"text": "a \"cat\\"}}}, {}, ["9"]]);
        // The workflow contains text from clients too.
        let other = json!([4, "id-2", {"id-1": ["x", "id-1", ["x", "id-1"]], "queue_running": 1},
            {"x": "id-1"}, ["id-1"], "id-1", 5]);
        for (answer, found) in [
            (answer(json!([entry]), json!([])), Found::Running),
            (answer(json!([]), json!([other, entry])), Found::Pending),
            (
                answer(json!([other]), json!([entry, other])),
                Found::Pending,
            ),
            (answer(json!([other]), json!([other])), Found::Nowhere),
            ("{}".to_owned(), Found::Nowhere),
            (
                r#" {"a": {"queue_running": [[1, "id-1"]]}, "b": [[1, "id-1"]]} "#.to_owned(),
                Found::Nowhere,
            ),
        ] {
            for piece_bytes in [1, 2, 7, 1000] {
                assert_eq!(find(&answer, piece_bytes), Some(found), "{answer}");
            }
        }
        for invalid in [
            "",
            "[]",
            "<html>",
            "{",
            "{}{",
            "7",
            "{\"queue_running\": [[1, \"id-1\"",
        ] {
            assert_eq!(find(invalid, 3), None, "{invalid}");
        }
    }

    #[test]
    fn long_texts_are_not_kept() {
        let mut scanner = QueueScanner::new("id-1");
        assert!(scanner.take(b"{\"queue_pending\": [[1, \"id-1"));
        for _ in 0..1000 {
            assert!(scanner.take(&[b'x'; 1000]));
        }
        assert!(scanner.text.capacity() <= 2 * TEXT_BYTES_MAX);
        assert!(scanner.take(b"\"]]}"));
        assert_eq!(scanner.finish(), Some(Found::Nowhere));
    }

    proptest! {
        #[test]
        fn no_answer_causes_a_panic(answer in proptest::collection::vec(any::<u8>(), 0..200), bytes in 1_usize..9) {
            let answer = String::from_utf8_lossy(&answer);
            let _ = find(&format!("{{{answer}"), bytes);
        }
    }
}
