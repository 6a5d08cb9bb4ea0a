//! File names: made safe before they are shown or put into a URL.

use chrono::{DateTime, Utc};

use crate::{ids, image::Format};

const NAME_BYTES_MAX: usize = 100;

/// The last part of a path, without characters that could mislead a reader, a shell or a browser;
/// `image.png` if nothing is left. Keeps letters of every script.
pub fn safe_file_name(given: Option<&str>, format: Format) -> String {
    let last = given
        .unwrap_or_default()
        .rsplit(['/', '\\'])
        .next()
        .unwrap_or_default();
    let kept: String = last.chars().filter(|char| is_harmless(*char)).collect();
    let mut name = kept.trim_matches(['.', ' ']);
    while name.len() > NAME_BYTES_MAX {
        let mut chars = name.chars();
        chars.next();
        name = chars.as_str(); // cuts from the front to keep the extension
    }
    if name.is_empty() {
        format!("image.{}", format.extension())
    } else {
        name.to_owned()
    }
}

/// The name in an upload's URL: the time, 128 random bits, and the file name in ASCII.
pub fn url_name(created_at: DateTime<Utc>, file_name: &str) -> String {
    let ascii: String = file_name
        .chars()
        .map(|char| {
            if char.is_ascii_alphanumeric() || "._-".contains(char) {
                char
            } else {
                '_'
            }
        })
        .collect();
    format!(
        "{}-{}-{ascii}",
        created_at.timestamp_micros(),
        ids::random_hex()
    )
}

fn is_harmless(char: char) -> bool {
    let reorders_text = matches!(char, '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2060}'..='\u{206F}' | '\u{FEFF}');
    !char.is_control() && !reorders_text && !"\"'<>&|;`$*?:%".contains(char)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn safe(given: &str) -> String {
        safe_file_name(Some(given), Format::Png)
    }

    #[test]
    fn names_lose_paths_and_tricks() {
        assert_eq!(safe("photo.jpg"), "photo.jpg");
        assert_eq!(safe("../../etc/passwd"), "passwd");
        assert_eq!(safe("C:\\x\\y.png"), "y.png");
        assert_eq!(safe("a\u{202E}gnp.exe"), "agnp.exe");
        assert_eq!(safe("a\r\nb\0.png"), "ab.png");
        assert_eq!(safe("\"><script>.png"), "script.png");
        assert_eq!(safe("猫.png"), "猫.png");
        for nothing in ["", "..", ".", "  ", "/", "\u{200B}"] {
            assert_eq!(safe(nothing), "image.png", "{nothing:?}");
        }
        assert_eq!(safe_file_name(None, Format::Jpeg), "image.jpg");
        let long = safe(&format!("{}.png", "猫".repeat(200)));
        assert!(
            long.len() <= NAME_BYTES_MAX && long.ends_with("猫.png"),
            "{long}"
        );
    }

    #[test]
    fn url_names_are_ascii_and_unguessable() {
        let at = DateTime::from_timestamp(1_743_436_800, 0).unwrap();
        let name = url_name(at, "my 猫.png");
        let mut parts = name.splitn(3, '-');
        assert_eq!(parts.next(), Some("1743436800000000"));
        assert_eq!(parts.next().map(str::len), Some(32));
        assert_eq!(parts.next(), Some("my__.png"));
    }
}
