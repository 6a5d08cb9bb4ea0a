//! Makes an upstream's text fit to be shown: one short line, without addresses and keys.

use std::net::{IpAddr, SocketAddr};

/// Of a message that is shown.
const CHARS_MAX: usize = 500;

/// One line of at most 500 characters, with words that hold a URL, an address or a key taken out.
pub(in crate::backend) fn clean(text: &str, api_key: &str) -> String {
    // Far more than is shown, so that a huge text costs no huge work.
    let text: String = text.chars().take(CHARS_MAX * 8).collect();
    let text = match api_key {
        "" => text,
        key => text.replace(key, "[key]"),
    };
    let words: Vec<&str> = text
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .map(hide)
        .collect();
    let line = words.join(" ");
    if line.chars().count() <= CHARS_MAX {
        return line;
    }
    let mut cut: String = line.chars().take(CHARS_MAX - 1).collect();
    cut.push('…');
    cut
}

fn hide(word: &str) -> &str {
    let bare = word.trim_matches(|c: char| c.is_ascii_punctuation() && c != '[');
    if word.contains("://") || word.contains("www.") {
        "[link]"
    } else if bare.starts_with("sk-") || word.contains("=sk-") {
        "[key]"
    } else if bare.parse::<SocketAddr>().is_ok() || bare.parse::<IpAddr>().is_ok() {
        "[address]"
    } else {
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_without_links_addresses_and_keys() {
        let said = "Incorrect API key: sk-abc***xyz.\r\n\tSee https://platform.example/keys, \
                    or [docs](http://x/y)\0; dial 10.0.0.7:8080: refused, [::1]:80";
        assert_eq!(
            clean(said, ""),
            "Incorrect API key: [key] See [link] or [link] ; dial [address] refused, [address]"
        );
        assert_eq!(clean("not:my-secret!", "my-secret"), "not:[key]!");
        assert_eq!(
            clean(" It is version 2.5, really. ", ""),
            "It is version 2.5, really."
        );
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let cut = clean(&"é".repeat(10_000), "");
        assert_eq!(cut.chars().count(), CHARS_MAX);
        assert!(cut.ends_with('…'));
    }
}
