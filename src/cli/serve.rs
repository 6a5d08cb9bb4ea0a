//! `easel serve`: the gateway, from its start to its orderly end.

use std::{net::SocketAddr, process::ExitCode};

use anyhow::{Context as _, bail};
use tokio::signal::unix::{SignalKind, signal};

use super::{
    database::{Database, Purpose},
    first_run,
};
use crate::{
    app::App,
    clock::Clock,
    config::Config,
    http::{self, server},
    images::sweep,
    shutdown::Shutdown,
    worker::Worker,
};

#[derive(Debug, Default, clap::Args)]
pub(super) struct Args {
    /// Address and port to listen on [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<SocketAddr>,
}

pub(super) async fn run(mut config: Config) -> anyhow::Result<ExitCode> {
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let database = Database::open(&config, Purpose::Serve).await?;
    let served = serve(&mut config, &database).await;
    database.close().await?;
    served.map(|()| ExitCode::SUCCESS)
}

async fn serve(config: &mut Config, database: &Database) -> anyhow::Result<()> {
    let listener = server::bind(config.server.listen)
        .with_context(|| format!("cannot listen on {}", config.server.listen))?;
    // Port 0 asks for any free one; links need the real one.
    config.server.listen = listener
        .local_addr()
        .context("the listening address is unknown")?;
    let welcome = first_run::prepare(config, &database.pool).await?;
    let shutdown = Shutdown::default();
    let (app, to_run) = App::open(
        config.clone(),
        database.pool.clone(),
        Clock::default(),
        shutdown.clone(),
    )
    .await?;
    let worker = Worker::new(app.clone());
    let working = shutdown.spawn_background(worker.clone().run(to_run));
    let sweeping = shutdown.spawn_background(sweep::keep_sweeping(app.clone()));
    welcome.print(&app.public_url);
    tracing::info!(server.listen = %config.server.listen, "ready at {}", app.public_url);

    let outcome = tokio::select! {
        () = server::serve(listener, http::router(app.clone()), &config.server, &shutdown) => Ok(()),
        outcome = until_told_to_end(database, &shutdown) => outcome,
    };
    shutdown.begin();
    tokio::select! {
        () = worker.drain(config.server.drain_timeout()) => {}
        _ = told_to_end() => tracing::warn!("told to end again: ending at once"),
    }
    working.abort();
    sweeping.abort();
    outcome
}

/// Begins the shutdown at a signal, and goes on waiting: for the server to finish its answers. Ends
/// with an error when the private database is gone.
async fn until_told_to_end(database: &Database, shutdown: &Shutdown) -> anyhow::Result<()> {
    let database_ended = async {
        match &database.private {
            Some(private) => private.ended().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        told = told_to_end() => told?,
        () = database_ended => bail!("the private PostgreSQL has ended by itself: see its server.log in the data directory"),
    }
    tracing::info!("ending: answering what is under way, taking nothing new");
    shutdown.begin();
    std::future::pending().await
}

async fn told_to_end() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("no signals can be received")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signals can be received")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
