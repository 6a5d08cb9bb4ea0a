//! Short-lived links to stored objects, and signatures for the links that this gateway serves itself.

use std::{
    fmt, fs,
    io::{self, Write},
    path::Path,
    time::Duration,
};

use chrono::{DateTime, Utc};
use ring::hmac;

use super::key::Key;
use crate::{clock::Clock, ids, private_files};

/// A URL that serves one object for a few minutes, without further credentials.
#[derive(Clone, Debug)]
pub struct Link {
    /// The URL to send to the client.
    pub url: String,
    /// When the URL stops working.
    pub expires_at: DateTime<Utc>,
}

/// How a browser should handle an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Show it.
    Inline,
    /// Save it. Characters of the name outside `[A-Za-z0-9._-]` become `_`.
    Attachment {
        /// The name to save it under.
        file_name: String,
    },
}

/// The target of a verified link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Linked {
    /// The object to serve.
    pub key: Key,
    /// How a browser should handle it.
    pub disposition: Disposition,
    /// Seconds until the link expires.
    pub life_s: u32,
}

/// Signs and verifies local links with a key that all processes on the same directory share.
pub(super) struct LinkSigner {
    key: hmac::Key,
    public_url: String,
    ttl: Duration,
    clock: Clock,
}

const KEY_BYTES: usize = 32;

/// The value of a Content-Disposition header.
impl fmt::Display for Disposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inline => f.write_str("inline"),
            Self::Attachment { file_name } => {
                write!(f, "attachment; filename=\"{}\"", plain(file_name))
            }
        }
    }
}

impl LinkSigner {
    /// Reads the signing key, or creates it. Links begin with `public_url` and expire after `ttl`.
    pub(super) fn open(
        key_file: &Path,
        public_url: &str,
        ttl: Duration,
        clock: Clock,
    ) -> io::Result<Self> {
        let key = read_or_make_key(key_file)?;
        Ok(Self {
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
            public_url: public_url.trim_end_matches('/').to_owned(),
            ttl,
            clock,
        })
    }

    /// A link to an object. Whoever has it can read the object until it expires.
    pub(super) fn link(&self, key: &Key, disposition: &Disposition) -> Link {
        let expires_at = self.clock.now() + self.ttl;
        let expiry = expires_at.timestamp();
        let target = match disposition {
            Disposition::Inline => key.to_string(),
            Disposition::Attachment { file_name } => format!("{key}/{}", plain(file_name)),
        };
        let signature = hex::encode(hmac::sign(&self.key, signed(expiry, &target).as_bytes()));
        let url = format!("{}/f/object/{expiry}-{signature}/{target}", self.public_url);
        Link { url, expires_at }
    }

    /// Verifies the part of a link's path after `/f/object/`. `None`: not signed here, or expired.
    pub(super) fn verify(&self, path: &str) -> Option<Linked> {
        let (token, target) = path.split_once('/')?;
        let (expiry, signature) = token.split_once('-')?;
        let expiry: i64 = expiry.parse().ok()?;
        let signature = hex::decode(signature).ok()?;
        hmac::verify(&self.key, signed(expiry, target).as_bytes(), &signature).ok()?;
        let life_s = u32::try_from(expiry - self.clock.now().timestamp()).ok()?;
        if life_s == 0 {
            return None;
        }
        // A key has a fixed number of parts, so an additional part can only be a file name.
        let (key, disposition) = if let Ok(key) = target.parse() {
            (key, Disposition::Inline)
        } else {
            let (key, file_name) = target.rsplit_once('/')?;
            let file_name = file_name.to_owned();
            (key.parse().ok()?, Disposition::Attachment { file_name })
        };
        Some(Linked {
            key,
            disposition,
            life_s,
        })
    }
}

fn signed(expiry: i64, target: &str) -> String {
    format!("{expiry}/{target}")
}

/// Replaces characters whose meaning differs in headers, paths or file systems.
fn plain(file_name: &str) -> String {
    let plain = |c: char| match c {
        'A'..='Z' | 'a'..='z' | '0'..='9' | '.' | '_' | '-' => c,
        _ => '_',
    };
    file_name.chars().map(plain).collect()
}

/// If several processes start together, all use the key of the first one that links it.
fn read_or_make_key(file: &Path) -> io::Result<Vec<u8>> {
    if !file.try_exists()? {
        let staged = file.with_extension(ids::random_hex());
        let made = make_key(&staged).and_then(|()| fs::hard_link(&staged, file));
        fs::remove_file(&staged)?;
        if let Err(error) = made
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
    }
    let key = fs::read(file)?;
    if key.len() == KEY_BYTES {
        return Ok(key);
    }
    let text = format!("{} is damaged: delete it", file.display());
    Err(io::Error::new(io::ErrorKind::InvalidData, text))
}

fn make_key(staged: &Path) -> io::Result<()> {
    let mut options = private_files::options();
    let mut file = options.write(true).create_new(true).open(staged)?;
    file.write_all(&rand::random::<[u8; KEY_BYTES]>())?;
    // Synced, because an empty key after a power failure would stop every later start.
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use super::*;
    use crate::image::Format;

    fn signer(folder: &Path, clock: &Clock) -> LinkSigner {
        let ttl = Duration::from_mins(10);
        let file = folder.join(".signing-key");
        LinkSigner::open(&file, "https://pics.example/base/", ttl, clock.clone()).unwrap()
    }

    fn key() -> Key {
        Key::image(Uuid::from_u128(0xabc).into(), 1, 0, Format::Png)
    }

    fn path(link: &Link) -> &str {
        link.url
            .strip_prefix("https://pics.example/base/f/object/")
            .unwrap()
    }

    #[test]
    fn links_are_good_until_they_expire() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::default();
        let signer = signer(folder.path(), &clock);
        let save = Disposition::Attachment {
            file_name: "a-1.png".to_owned(),
        };
        let inline = signer.link(&key(), &Disposition::Inline);
        let saved = signer.link(&key(), &save);
        let verified = |link: &Link| {
            let linked = signer.verify(path(link)).unwrap();
            assert!((590..=600).contains(&linked.life_s), "{}", linked.life_s);
            (linked.key, linked.disposition)
        };
        assert_eq!(verified(&inline), (key(), Disposition::Inline));
        assert_eq!(verified(&saved), (key(), save));
        clock.advance(Duration::from_secs(590));
        assert!(signer.verify(path(&inline)).is_some());
        clock.advance(Duration::from_secs(11));
        assert!(signer.verify(path(&inline)).is_none());
        assert!(signer.verify(path(&saved)).is_none());
    }

    #[test]
    fn any_other_byte_spoils_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let signer = signer(folder.path(), &Clock::default());
        let link = signer.link(&key(), &Disposition::Inline);
        let good = path(&link);
        for at in 0..good.len() {
            let mut bytes = good.as_bytes().to_vec();
            bytes[at] = if bytes[at] == b'1' { b'2' } else { b'1' };
            let bad = String::from_utf8(bytes).unwrap();
            assert!(signer.verify(&bad).is_none(), "{bad}");
        }
        for bad in [
            "",
            "/",
            "-",
            "9999999999-/x",
            &format!("{good}/name.png"),
            &good[1..],
        ] {
            assert!(signer.verify(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_key_is_private_shared_and_checked() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Clock::default();
        let file = folder.path().join(".signing-key");
        let signers: Vec<LinkSigner> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| signer(folder.path(), &clock)))
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        let link = signers[0].link(&key(), &Disposition::Inline);
        assert!(signers.iter().all(|s| s.verify(path(&link)).is_some()));
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let elsewhere = tempfile::tempdir().unwrap();
        let stranger = signer(elsewhere.path(), &clock);
        assert!(stranger.verify(path(&link)).is_none());

        fs::write(&file, "").unwrap();
        assert!(read_or_make_key(&file).is_err());
    }

    #[test]
    fn file_names_cannot_break_out_of_the_header() {
        let file_name = "a\"\r\nX: é/..\\b.png".to_owned();
        assert_eq!(
            Disposition::Attachment { file_name }.to_string(),
            "attachment; filename=\"a___X____.._b.png\""
        );
    }
}
