//! API keys: how they are generated, hashed and recognised. A key is `sk_`, 32 random characters
//! and a six-character checksum, so that a mistyped key is refused without a database query.

use secrecy::{ExposeSecret, SecretString};
use sha2::{Digest, Sha256};

use crate::ids;

const PREFIX: &str = "sk_";
const RANDOM_CHARS: usize = 32;
const CHECKSUM_CHARS: usize = 6;
const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// SHA-256 of a key, as the database stores it.
pub type KeyHash = [u8; 32];

/// A newly generated key. It is shown once; afterwards only its hash is kept.
#[derive(Debug)]
pub struct NewKey {
    /// The full key, for its owner only.
    pub secret: SecretString,
    /// What the database stores.
    pub hash: KeyHash,
    /// The first and last characters: `sk_AbCd…wxyz`.
    pub hint: String,
}

/// Generates a key with 190 random bits.
pub fn generate() -> NewKey {
    let random = ids::random_base62(RANDOM_CHARS);
    let key = format!("{PREFIX}{random}{}", checksum(&random));
    NewKey {
        hash: hash(&key),
        hint: format!("{}…{}", &key[..PREFIX.len() + 4], &key[key.len() - 4..]),
        secret: key.into(),
    }
}

/// Returns the hash of a key that a client sent, or `None` if it cannot be a key of ours.
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

/// CRC-32 in base 62. Protects against typing errors, not against attackers.
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
    fn a_generated_key_is_recognised_and_a_mistyped_one_is_not() {
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
