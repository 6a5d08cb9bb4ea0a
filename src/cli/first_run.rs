//! The first start on an empty database: creates an account with a balance and a key, so that one pasted command
//! generates the first image.

use std::{
    fs,
    io::{IsTerminal, Write, stdout},
    path::{Path, PathBuf},
    thread,
};

use anyhow::Context as _;
use secrecy::ExposeSecret;

use super::database::{Database, absolute};
use crate::{
    accounts::{
        keys,
        store::{self, KeyLimits},
    },
    billing::ledger,
    config::Config,
    db::{self, Patience},
    money::Cny,
    private_files,
};

const ACCOUNT: &str = "default";

/// What the startup message tells the operator.
pub(super) enum Welcome {
    /// There are accounts already.
    Back,
    /// This is the first start.
    First {
        /// Where a database was created; `None`: it existed.
        made_in: Option<PathBuf>,
        /// The opening balance of the new account.
        balance: Cny,
        /// The new key.
        key: Shown,
    },
}

/// How the new key is delivered. A terminal shows it. Other outputs may be a log, so the key goes into a file that only
/// its owner can read.
pub(super) enum Shown {
    /// The key itself.
    Here(String),
    /// The path of the file with the key.
    InFile(PathBuf),
}

/// Creates the account and its key if there is no account at all.
pub(super) async fn prepare(config: &Config, database: &Database) -> anyhow::Result<Welcome> {
    let mut tx = db::begin(&database.pool, Patience::Much).await?;
    if store::any(&mut tx).await? {
        return Ok(Welcome::Back);
    }
    // Two replicas may start at once. One of them creates it.
    let Some(account) = store::insert(&mut tx, ACCOUNT, None).await? else {
        return Ok(Welcome::Back);
    };
    let balance = config.billing.opening_balance;
    ledger::top_up(&mut tx, account, balance).await?;
    let key = keys::generate();
    store::insert_key(&mut tx, account, "first", &key, &KeyLimits::default()).await?;
    let secret = key.secret.expose_secret();
    let shown = if stdout().is_terminal() {
        Shown::Here(secret.to_owned())
    } else {
        Shown::InFile(write_key(&config.data_dir, secret)?)
    };
    tx.commit().await?;
    Ok(Welcome::First {
        made_in: database.is_new.then(|| absolute(&config.data_dir)),
        balance,
        key: shown,
    })
}

/// The file of the first key if stdout is no terminal. The key stays valid until it is revoked.
pub(super) fn key_file(data_dir: &Path) -> PathBuf {
    absolute(data_dir).join("first-key")
}

fn write_key(data_dir: &Path, secret: &str) -> anyhow::Result<PathBuf> {
    let path = key_file(data_dir);
    let write = || {
        fs::create_dir_all(data_dir)?;
        let mut options = private_files::options();
        let mut file = options
            .create(true)
            .write(true)
            .truncate(true)
            .open(&path)?;
        writeln!(file, "{secret}")
    };
    write().with_context(|| format!("could not write the first key to {}", path.display()))?;
    Ok(path)
}

impl Welcome {
    /// Writes the message to stdout, in the background.
    pub(super) fn print(&self, public_url: &str) {
        // The gateway must serve even if nobody reads its output: neither an error nor a full pipe may delay it.
        let text = self.text(public_url);
        let _ = thread::Builder::new().spawn(move || stdout().write_all(text.as_bytes()));
    }

    fn text(&self, public_url: &str) -> String {
        let ready = format!("Easel is ready at {public_url}\n");
        let Self::First {
            made_in,
            balance,
            key,
        } = self
        else {
            return ready;
        };
        let made = made_in.as_ref().map_or_else(String::new, |data_dir| {
            format!(
                "Its data directory is {}, with a new database.\n",
                data_dir.display()
            )
        });
        let account = format!("The account `{ACCOUNT}` has {balance} CNY");
        let (given, bearer) = match key {
            Shown::Here(key) => (
                format!("{account} and this key, shown only now:\n\n    {key}"),
                key.clone(),
            ),
            Shown::InFile(path) => (
                format!("{account} and a key, in {}", path.display()),
                format!("$(cat '{}')", path.display()),
            ),
        };
        format!(
            "{ready}{made}\n{given}\n\nTo generate a first image, into image.png:\n\n    \
             curl -sS {public_url}/v1/images/generations -H \"Authorization: Bearer {bearer}\" \
             -H 'Content-Type: application/json' -d '{{\"model\":\"gpt-image-2\",\"prompt\":\"a lighthouse at dusk\"}}' \
             | grep -o 'http[^\"]*' | xargs curl -sSL -o image.png\n\n"
        )
    }
}
