//! `easel accounts`

use std::process::ExitCode;

use anyhow::bail;

use super::{
    database::{Database, Purpose},
    output, table,
};
use crate::{
    accounts::store::{self, AccountStatus},
    billing::ledger,
    config::Config,
    db::{self, Patience},
    money::Cny,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Create an account
    #[command(
        after_help = "Example:\n  easel accounts create studio --balance 50 --monthly-quota 20"
    )]
    Create {
        name: String,
        /// Initial balance, in CNY
        #[arg(long, value_name = "CNY", default_value = "0")]
        balance: Cny,
        /// Maximum spending per month, in CNY [default: no limit]
        #[arg(long, value_name = "CNY")]
        monthly_quota: Option<Cny>,
    },
    /// Add to an account's balance; a negative amount deducts, but never from holds
    #[command(after_help = "Example:\n  easel accounts top-up studio 12.50")]
    TopUp {
        name: String,
        #[arg(value_name = "CNY", allow_negative_numbers = true)]
        amount: Cny,
    },
    /// List all accounts
    List,
    /// Show one account
    Show { name: String },
    /// Disable an account: it cannot spend anything
    Disable { name: String },
    /// Enable a disabled account
    Enable { name: String },
}

/// Runs one of the commands. Works on the database directly, whether or not a gateway is running.
pub(super) async fn run(command: Command, config: &Config) -> anyhow::Result<ExitCode> {
    let database = Database::open(config, Purpose::Command).await?;
    let done = act(command, &database, config).await;
    database.close().await?;
    done.map(|()| ExitCode::SUCCESS)
}

async fn act(command: Command, database: &Database, config: &Config) -> anyhow::Result<()> {
    match command {
        Command::Create {
            name,
            balance,
            monthly_quota,
        } => create(database, &name, balance, monthly_quota).await,
        Command::TopUp { name, amount } => top_up(database, &name, amount).await,
        Command::List => list(database, config, None).await,
        Command::Show { name } => list(database, config, Some(&name)).await,
        Command::Disable { name } => set_status(database, &name, AccountStatus::Disabled).await,
        Command::Enable { name } => set_status(database, &name, AccountStatus::Enabled).await,
    }
}

async fn create(
    database: &Database,
    name: &str,
    balance: Cny,
    monthly_quota: Option<Cny>,
) -> anyhow::Result<()> {
    if balance < Cny::ZERO || monthly_quota.is_some_and(|quota| quota < Cny::ZERO) {
        bail!("a balance and a quota must not be negative");
    }
    let mut tx = db::begin(&database.pool, Patience::Much).await?;
    let Some(id) = store::insert(&mut tx, name, monthly_quota).await? else {
        bail!("account {name:?} already exists");
    };
    if balance > Cny::ZERO {
        ledger::top_up(&mut tx, id, balance).await?;
    }
    tx.commit().await?;
    output::print_line(&format!("created the account {name:?} with {balance} CNY"))
}

async fn top_up(database: &Database, name: &str, amount: Cny) -> anyhow::Result<()> {
    let mut tx = db::begin(&database.pool, Patience::Much).await?;
    let Some(id) = store::id_of(&mut tx, name).await? else {
        bail!("{}", unknown(name))
    };
    let topped_up = ledger::top_up(&mut tx, id, amount).await;
    let balance = match topped_up {
        Ok(Some(balance)) => balance,
        Ok(None) => bail!("{}", unknown(name)),
        Err(sqlx::Error::Database(error)) if error.constraint() == Some("accounts_held_check") => {
            bail!("taking {amount} CNY from {name:?} would leave less than is on hold")
        }
        Err(error) => return Err(error.into()),
    };
    tx.commit().await?;
    output::print_line(&format!("{name:?} now has {balance} CNY"))
}

async fn list(database: &Database, config: &Config, only: Option<&str>) -> anyhow::Result<()> {
    let zone = &config.billing.time_zone;
    let mut accounts = store::list(&mut *database.pool.acquire().await?, zone).await?;
    accounts.retain(|account| only.is_none_or(|name| account.name == name));
    if let (Some(name), true) = (only, accounts.is_empty()) {
        bail!("{}", unknown(name));
    }
    let rows: Vec<Vec<String>> = accounts
        .iter()
        .map(|account| {
            vec![
                account.name.clone(),
                account.balance.to_string(),
                account.held.to_string(),
                account.spent.to_string(),
                account.month_spend.to_string(),
                account
                    .monthly_quota
                    .map_or("-".to_owned(), |quota| quota.to_string()),
                if account.disabled_at.is_some() {
                    "disabled"
                } else {
                    "enabled"
                }
                .to_owned(),
            ]
        })
        .collect();
    let header = [
        "NAME",
        "BALANCE",
        "HELD",
        "SPENT",
        "THIS MONTH",
        "QUOTA",
        "STATE",
    ];
    output::print(&table::text(&header, &rows))
}

async fn set_status(database: &Database, name: &str, status: AccountStatus) -> anyhow::Result<()> {
    let mut conn = database.pool.acquire().await?;
    if store::set_status(&mut conn, name, status).await?.is_none() {
        bail!("{}", unknown(name));
    }
    let state = if matches!(status, AccountStatus::Disabled) {
        "disabled"
    } else {
        "enabled"
    };
    output::print_line(&format!("{name:?} is {state}"))
}

/// The error of a name that no account has.
pub(super) fn unknown(name: &str) -> String {
    format!("there is no account {name:?}: `easel accounts list` shows all")
}
