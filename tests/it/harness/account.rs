//! Accounts of tests: each has a balance and a key, and a caller that uses it.

use easel::{
    accounts::{keys, store as accounts, store::KeyLimits},
    billing::ledger,
    ids::AccountId,
    money::Cny,
};
use secrecy::ExposeSecret;
use sqlx::{Connection, PgConnection};

use super::{caller::Caller, database::TestDatabase};

/// An account to create.
pub struct Account {
    balance: Cny,
    monthly_quota: Option<Cny>,
    limits: KeyLimits,
}

impl Account {
    /// An account without a quota, whose key has no limits of its own.
    pub fn with(balance: &str) -> Self {
        Self {
            balance: balance.parse().unwrap(),
            monthly_quota: None,
            limits: KeyLimits::default(),
        }
    }

    pub fn monthly_quota(mut self, quota: &str) -> Self {
        self.monthly_quota = Some(quota.parse().unwrap());
        self
    }

    /// Sets limits of its key.
    pub fn key(mut self, set: impl FnOnce(&mut KeyLimits)) -> Self {
        set(&mut self.limits);
        self
    }

    /// Creates the account; its caller uses the gateway at `url`.
    pub async fn create(self, database: &TestDatabase, url: &str) -> Caller {
        let mut conn = database.connect().await;
        let mut tx = conn.begin().await.unwrap();
        let name = format!("account-{}", easel::ids::random_base62(8));
        let id = accounts::insert(&mut tx, &name, self.monthly_quota).await;
        let id = id.unwrap().unwrap();
        ledger::top_up(&mut tx, id, self.balance).await.unwrap();
        let caller = add_key(&mut tx, (name, id), &self.limits, url).await;
        tx.commit().await.unwrap();
        caller
    }
}

async fn add_key(
    conn: &mut PgConnection,
    (account, account_id): (String, AccountId),
    limits: &KeyLimits,
    url: &str,
) -> Caller {
    let key = keys::generate();
    let key_id = accounts::insert_key(conn, account_id, "test", &key, limits)
        .await
        .unwrap();
    Caller::new(url, key.secret.expose_secret(), account, account_id, key_id)
}

impl TestDatabase {
    /// Creates an account with this balance, for the gateway at `url`.
    pub async fn caller(&self, url: &str, balance: &str) -> Caller {
        Account::with(balance).create(self, url).await
    }

    /// Creates another key of the caller's account.
    pub async fn second_key(&self, caller: &Caller) -> Caller {
        let account = (caller.account.clone(), caller.account_id);
        let limits = KeyLimits::default();
        add_key(&mut self.connect().await, account, &limits, &caller.url).await
    }
}
