//! The environment of the trial: PostgreSQL, the store, the upstream, two replicas, and the clients' accounts.

use std::{
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use anyhow::Context;
use easel::{
    accounts::{keys, store as accounts, store::KeyLimits},
    billing::ledger,
    private_postgres::PrivatePostgres,
};
use rand::rngs::StdRng;
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection};

use super::{
    balancer::{Balancer, Prober},
    book::Book,
    client::{Client, Shared},
    fault_proxy::{FaultProxy, Target},
    object_store::{self, ObjectStore},
    replica::{self, Replica},
    upstream::Upstream,
};

pub(super) const REPLICAS: usize = 2;
const ACCOUNTS: usize = 20;
/// `tasks.deadline_ms`, in seconds.
pub(super) const DEADLINE_S: u64 = 60;
/// The base of links; a name that cannot be resolved.
pub(super) const PUBLIC_URL: &str = "http://soak.invalid";

/// Everything that the trial needs, running.
pub(super) struct Stage {
    pub(super) replicas: Vec<Replica>,
    pub(super) store: ObjectStore,
    postgres: PrivatePostgres,
    _upstream: Upstream,
    /// Keys of the well-behaved accounts.
    keys: Vec<String>,
    abusive_key: String,
    penniless_key: String,
    prober_key: String,
}

impl Stage {
    pub(super) async fn set_up(
        program: &Path,
        dir: &Path,
        seed: u64,
        book: Arc<Book>,
    ) -> anyhow::Result<Self> {
        let upstream = Upstream::start(seed, book).await?;
        let store = ObjectStore::start(&dir.join("store")).await?;
        // The path of a socket must be short.
        let postgres = PrivatePostgres::start(&dir.join("pg")).await?;
        let mut replicas = Vec::new();
        for number in 0..REPLICAS {
            let database = FaultProxy::start(Target::Unix(socket(&postgres)?)).await;
            let storage = FaultProxy::start(Target::Tcp(store.address)).await;
            let settings = settings(upstream.address, storage.address());
            let dir = dir.join(format!("replica-{number}"));
            let proxies = (database, storage);
            let replica = Replica::new(program, dir, free_address()?, proxies, &settings)?;
            replica.start().await?;
            replica.wait_until_it_listens().await?;
            replicas.push(replica);
        }
        let mut conn = PgConnection::connect_with(&postgres.options()).await?;
        let mut keys = Vec::new();
        for number in 0..ACCOUNTS {
            keys.push(account(&mut conn, &format!("good-{number}"), "100000").await?);
        }
        Ok(Self {
            replicas,
            store,
            _upstream: upstream,
            keys,
            abusive_key: account(&mut conn, "abusive", "100").await?,
            penniless_key: account(&mut conn, "penniless", "0").await?,
            prober_key: account(&mut conn, "prober", "100000").await?,
            postgres,
        })
    }

    /// Connects to the database past the proxies.
    pub(super) async fn connect(&self) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect_with(&self.postgres.options()).await?)
    }

    /// What the clients of one trial share; nothing new starts after `until`.
    pub(super) fn shared(&self, book: Arc<Book>, until: Instant) -> Arc<Shared> {
        let addresses = self.replicas.iter().map(|replica| replica.address);
        Arc::new(Shared {
            book,
            balancer: Balancer::new(addresses.collect()),
            until,
        })
    }

    /// A well-behaved client.
    pub(super) fn client(&self, shared: &Arc<Shared>, number: usize, rng: StdRng) -> Client {
        let key = &self.keys[number % self.keys.len()];
        Client::new(Arc::clone(shared), key, rng)
    }

    /// A client of an abusive account.
    pub(super) fn abuser(&self, shared: &Arc<Shared>, number: usize, rng: StdRng) -> Client {
        let is_penniless = number == 0;
        let key = if is_penniless {
            &self.penniless_key
        } else {
            &self.abusive_key
        };
        Client::new(Arc::clone(shared), key, rng)
    }

    pub(super) fn prober(&self, shared: &Arc<Shared>) -> Prober {
        Prober::new(Arc::clone(shared), &self.prober_key)
    }

    /// Stops everything.
    pub(super) async fn end(self) {
        for replica in &self.replicas {
            // Replicas that have ended already were reported.
            drop(replica.kill().await);
        }
        drop(self.postgres.stop().await);
    }
}

/// Creates an account with a key and a balance.
async fn account(conn: &mut PgConnection, name: &str, balance: &str) -> anyhow::Result<String> {
    let account = accounts::insert(conn, name, None)
        .await?
        .context("the name is taken")?;
    ledger::top_up(conn, account, balance.parse()?).await?;
    let key = keys::generate();
    accounts::insert_key(conn, account, "soak", &key, &KeyLimits::default()).await?;
    Ok(key.secret.expose_secret().to_owned())
}

fn socket(postgres: &PrivatePostgres) -> anyhow::Result<PathBuf> {
    let options = postgres.options();
    let dir = options.get_socket().context("no socket")?;
    Ok(dir.join(format!(".s.PGSQL.{}", options.get_port())))
}

/// With a port outside the range of outgoing connections: a replica must find it free again after a restart.
fn free_address() -> anyhow::Result<SocketAddr> {
    for _ in 0..100 {
        let address = SocketAddr::from(([127, 0, 0, 1], rand::random_range(11_000..32_000)));
        if TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    anyhow::bail!("no port is free")
}

/// Defaults except for addresses and the time a request may take: a trial is short.
fn settings(upstream: SocketAddr, storage: SocketAddr) -> String {
    let model = |name: &str, timeout_ms: u64| {
        format!(
            "[backends.{name}]\nkind = \"openai\"\nprofile = \"generic\"\napi_key = \"none\"\n\
             base_url = \"http://{upstream}/{name}/v1\"\n\
             [models.{name}]\nroutes = [{{ backend = \"{name}\", timeout_ms = {timeout_ms} }}]\n"
        )
    };
    let (access_key_id, secret) = (object_store::ACCESS_KEY_ID, object_store::SECRET_ACCESS_KEY);
    let head = format!(
        "[server]\npublic_url = \"{PUBLIC_URL}\"\ndrain_timeout_ms = {}\n\
         [tasks]\ndeadline_ms = {}\n\
         [storage]\nurl = \"s3://{}\"\nendpoint = \"http://{storage}\"\n\
         access_key_id = \"{access_key_id}\"\nsecret_access_key = \"{secret}\"\n",
        replica::DRAIN.as_millis(),
        DEADLINE_S * 1_000,
        object_store::BUCKET,
    );
    head + &model("flaky", 8_000) + &model("steady", 5_000)
}
