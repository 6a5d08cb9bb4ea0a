//! Masks the parts of a word that only the operator may see: keys, links, addresses, host names, paths.
//! Anything that looks like one of them is masked, even if it is something else; ordinary words stay.

use std::net::{Ipv6Addr, SocketAddr};

/// Characters around and between the parts that are checked.
const BETWEEN: &str = "\"'`<>(){}[],;=|";
/// Punctuation at the ends of a part that does not belong to it.
const AT_ENDS: [char; 7] = ['.', ':', '!', '?', '*', '#', '&'];
/// A run of this many characters of a key's alphabet is a key, unless it consists of words.
const KEY_CHARS_MIN: usize = 20;
/// The last labels of host names: those of private networks, and the common public ones.
const HOST_ENDS: [&str; 52] = [
    "internal",
    "corp",
    "local",
    "localhost",
    "localdomain",
    "lan",
    "intranet",
    "private",
    "home",
    "svc",
    "cluster",
    "consul",
    "docker",
    "arpa",
    "example",
    "test",
    "invalid",
    "com",
    "net",
    "org",
    "io",
    "ai",
    "dev",
    "app",
    "cloud",
    "cn",
    "co",
    "uk",
    "de",
    "fr",
    "jp",
    "kr",
    "tw",
    "hk",
    "sg",
    "in",
    "ru",
    "us",
    "eu",
    "info",
    "biz",
    "xyz",
    "tech",
    "site",
    "online",
    "top",
    "me",
    "tv",
    "cc",
    "sh",
    "gg",
    "run",
];
/// Words before a colon and a large number that are not hosts.
const NAMES_OF_NUMBERS: [&str; 24] = [
    "width", "height", "size", "seed", "line", "column", "row", "char", "position", "offset",
    "index", "code", "error", "status", "limit", "max", "min", "tokens", "pixels", "steps",
    "bytes", "id", "count", "length",
];

/// The word with its private parts replaced by `[key]` and the like.
pub(super) fn mask(word: &str) -> String {
    let bare = word.trim_matches(|c: char| c.is_ascii_punctuation() && !matches!(c, '[' | ':'));
    let bare = bare.trim_end_matches(':');
    if bare.parse::<SocketAddr>().is_ok() || is_zoned_socket(bare) {
        return word.replacen(bare, "[address]", 1);
    }
    let mut masked = String::with_capacity(word.len());
    let mut rest = word;
    while !rest.is_empty() {
        let belongs = |c: char| c.is_ascii() && !BETWEEN.contains(c);
        let end = rest.find(|c| !belongs(c)).unwrap_or(rest.len());
        let (part, after) = rest.split_at(end);
        let core = core(part);
        let is_port = masked.ends_with("[address]]") && part.starts_with(':');
        match (is_port, kind(core)) {
            (true, _) => {}
            (false, Some(kind)) => masked.push_str(&part.replacen(core, kind, 1)),
            (false, None) => masked.push_str(part),
        }
        let next = after.find(belongs).unwrap_or(after.len());
        masked.push_str(&after[..next]);
        rest = &after[next..];
    }
    masked
}

/// The part without punctuation at its ends; an IPv6 address may begin or end with its own colons.
fn core(part: &str) -> &str {
    let bare = part.trim_matches(|c| c != ':' && AT_ENDS.contains(&c));
    let cut = bare.strip_suffix(':').unwrap_or(bare);
    let addresses = [bare, cut].into_iter();
    let mut addresses = addresses.filter(|text| text.parse::<Ipv6Addr>().is_ok());
    addresses.next().unwrap_or(part.trim_matches(AT_ENDS))
}

/// Whether a character is invisible or changes how others are displayed: Unicode's class Cf, and other
/// invisible characters.
pub(super) fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}'..='\u{891}'
        | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
        | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}'
        | '\u{e0000}'..='\u{e0fff}')
}

fn kind(part: &str) -> Option<&'static str> {
    if is_link(part) {
        Some("[link]")
    } else if is_key(part) {
        Some("[key]")
    } else if is_address(part) {
        Some("[address]")
    } else if is_path(part) {
        Some("[path]")
    } else if part.contains('/') {
        // A host with a path.
        let (host, _) = part.split_once('/')?;
        is_host(host).then_some("[link]")
    } else {
        is_host(part).then_some("[host]")
    }
}

fn is_link(part: &str) -> bool {
    part.contains("://") || part.starts_with("//") && part.len() > 2 || part.starts_with("www.")
}

fn is_key(part: &str) -> bool {
    let start = part.get(..3).unwrap_or_default().to_ascii_lowercase();
    matches!(start.as_str(), "sk-" | "sk_") || part.split(':').any(is_long_key)
}

fn is_long_key(text: &str) -> bool {
    let is_of_key = |c: char| c.is_ascii_alphanumeric() || "+/_-.~%$".contains(c);
    let mut letters = text.chars().filter(char::is_ascii_alphabetic);
    let has_digit = text.contains(|c: char| c.is_ascii_digit());
    let is_shouted = has_digit && letters.all(|c| c.is_ascii_uppercase());
    text.len() >= KEY_CHARS_MIN
        && text.chars().all(is_of_key)
        && (is_shouted || !text.split(|c| "-_./%$~".contains(c)).all(is_word))
}

/// Whether a part of a name is something that a person might write.
fn is_word(part: &str) -> bool {
    let digits = part.bytes().filter(u8::is_ascii_digit).count();
    let capitals = part.bytes().filter(u8::is_ascii_uppercase).count();
    match digits {
        0 => part.len() < KEY_CHARS_MIN || capitals * 4 <= part.len(),
        _ if digits == part.len() => digits <= 8,
        // Such as 1024x1024 and v2.
        _ => part.len() <= 9,
    }
}

fn is_address(part: &str) -> bool {
    let has_user = part
        .split_once('@')
        .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty());
    has_user
        || part.split(['/', '@', '\\']).any(is_ipv6)
        || part
            .split(|c: char| !c.is_ascii_digit() && c != '.')
            .any(|run| {
                let run = run.trim_matches('.');
                run.split('.').count() >= 4 && run.split('.').all(|byte| byte.parse::<u8>().is_ok())
            })
}

fn is_ipv6(text: &str) -> bool {
    let (address, _zone) = text.split_once('%').unwrap_or((text, ""));
    address.parse::<Ipv6Addr>().is_ok()
}

/// Such as `[fe80::1%eth0]:80`, which no standard type parses.
fn is_zoned_socket(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    inner.is_some_and(|(address, port)| {
        is_ipv6(address) && (port.is_empty() || port.starts_with(':'))
    })
}

fn is_path(part: &str) -> bool {
    let begins = |text: &str| {
        let rest = text.strip_prefix('/').or_else(|| text.strip_prefix("~/"));
        let rest = rest
            .or_else(|| text.strip_prefix("./"))
            .or_else(|| text.strip_prefix("../"));
        rest.is_some_and(|rest| rest.contains(|c: char| c.is_ascii_alphabetic()))
    };
    let is_windows = part.contains('\\') && part.contains(|c: char| c.is_ascii_alphanumeric());
    is_windows
        || part
            .split(':')
            .any(|piece| begins(piece) || is_file_in_folder(piece))
}

/// Such as `src/app/main.py`, but not `image/png` or `labs/flux-1.1`.
fn is_file_in_folder(text: &str) -> bool {
    let Some((_, name)) = text.rsplit_once('/') else {
        return false;
    };
    let end = name.rsplit_once('.').map_or("", |(_, end)| end);
    (1..=5).contains(&end.len()) && end.chars().all(|c| c.is_ascii_lowercase())
}

fn is_host(text: &str) -> bool {
    let (name, port) = text.split_once(':').unwrap_or((text, ""));
    let is_label = |label: &str| {
        !label.is_empty()
            && label
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
    };
    if !name.split('.').all(is_label) || !name.contains(|c: char| c.is_ascii_alphabetic()) {
        return false;
    }
    let last = name
        .rsplit('.')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let is_named = name.contains('.') && HOST_ENDS.contains(&last.as_str()) || last == "localhost";
    let is_number = !port.is_empty() && port.chars().all(|c| c.is_ascii_digit());
    let is_odd = name.contains(|c: char| c.is_ascii_digit() || matches!(c, '-' | '.'));
    let names_number = NAMES_OF_NUMBERS.contains(&last.as_str());
    is_named || is_number && !names_number && (is_odd || port.len() >= 4)
}
