//! API keys: how one is made, hashed and recognised. `sk_`, 32 random characters, and a checksum
//! of six, so that a mistyped key is refused without asking the database.

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::ids;

const PREFIX: &str = "sk_";
const RANDOM_CHARS: usize = 32;
const CHECKSUM_CHARS: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// SHA-256 of a key: what the database holds.
pub type KeyHash = [u8; 32];

/// A key that was just made: shown once, then only its hash is left.
#[derive(Debug)]
pub struct NewKey {
    pub secret: SecretString,
    pub hash: KeyHash,
    /// Its first and last characters: `sk_AbCd…wxyz`.
    pub hint: String,
}

/// Makes a key with 190 random bits.
pub fn generate() -> NewKey {
    let random = ids::random_base62(RANDOM_CHARS);
    let key = format!("{PREFIX}{random}{}", checksum(&random));
    NewKey {
        hash: hash(&key),
        hint: format!("{}…{}", &key[..PREFIX.len() + 4], &key[key.len() - 4..]),
        secret: key.into(),
    }
}

/// The hash of a key that a client sent, or `None` if no such key was ever made.
pub fn authenticate(presented: &SecretString) -> Option<KeyHash> {
    let key = presented.expose_secret();
    let body = key.strip_prefix(PREFIX)?;
    let well_formed = body.len() == RANDOM_CHARS + CHECKSUM_CHARS
        && body.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if !well_formed {
        return None;
    }
    let (random, given) = body.split_at(RANDOM_CHARS);
    (checksum(random) == given).then(|| hash(key))
}

fn hash(key: &str) -> KeyHash {
    Sha256::digest(key).into()
}

/// CRC-32 in base 62: against typing errors, not against attackers.
fn checksum(random: &str) -> String {
    let mut rest = crc32fast::hash(random.as_bytes()) as usize;
    let mut digits = [b'0'; CHECKSUM_CHARS];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[rest % BASE62.len()];
        rest /= BASE62.len();
    }
    digits.iter().copied().map(char::from).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_key_is_recognised_and_a_mistyped_one_is_not() {
        let key = generate();
        assert_eq!(authenticate(&key.secret), Some(key.hash));

        let text = key.secret.expose_secret();
        assert_eq!(text.len(), 41);
        for position in PREFIX.len()..text.len() {
            let mut typo = text.as_bytes().to_vec();
            typo[position] = if typo[position] == b'x' { b'y' } else { b'x' };
            let typo = SecretString::from(String::from_utf8(typo).unwrap());
            assert_eq!(authenticate(&typo), None, "typo at {position}");
        }
    }

    #[test]
    fn other_texts_are_not_recognised() {
        for text in ["", "sk_", "sk-proj-abc", "sk_é", &"x".repeat(10_000)] {
            assert_eq!(authenticate(&SecretString::from(text)), None, "{text}");
        }
    }

    #[test]
    fn keys_do_not_repeat() {
        let hashes: std::collections::HashSet<_> = (0..1000).map(|_| generate().hash).collect();
        assert_eq!(hashes.len(), 1000);
    }
}
