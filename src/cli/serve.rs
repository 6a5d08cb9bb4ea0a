//! `easel serve`: the gateway, from its start to its orderly end.

use std::{future::Future, net::SocketAddr, pin::pin, process::ExitCode};

use anyhow::{Context as _, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    database::{Database, Purpose},
    first_run, open_files, reload,
};
use crate::{
    app::App,
    clock::Clock,
    config::{Config, Sources},
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

pub(super) async fn run(mut config: Config, sources: Sources) -> anyhow::Result<ExitCode> {
    open_files::allow_most();
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let database = Database::open(&config, Purpose::Serve).await?;
    let served = serve(&mut config, sources, &database).await;
    let closed = database.close().await;
    served.and(closed).map(|()| ExitCode::SUCCESS)
}

async fn serve(config: &mut Config, sources: Sources, database: &Database) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let listener = server::bind(config.server.listen)
        .with_context(|| format!("cannot listen on {}", config.server.listen))?;
    // Port 0 asks for any free one; links need the real one.
    config.server.listen = listener
        .local_addr()
        .context("the listening address is unknown")?;
    let shutdown = Shutdown::default();
    let (app, to_run) = App::open(
        config.clone(),
        database.pool.clone(),
        Clock::default(),
        shutdown.clone(),
    )
    .await?;
    // Last of what can fail: the first key is shown only once.
    let welcome = first_run::prepare(config, &database.pool).await?;
    let worker = Worker::new(app.clone());
    let working = shutdown.spawn_background(worker.clone().run(to_run));
    let sweeping = shutdown.spawn_background(sweep::keep_sweeping(app.clone()));
    let reloading = shutdown.spawn_background(reload::keep_reloading(app.clone(), sources)?);
    let router = http::router(app.clone());
    let serving = async { server::serve(listener, router, &config.server, &shutdown).await };
    welcome.print(&app.public_url);
    tracing::info!(server.listen = %config.server.listen, "ready at {}", app.public_url);

    let outcome = tokio::select! {
        () = end_in_order(&mut signals, &app, &worker, serving) => Ok(()),
        () = database.ended() => Err(anyhow!(
            "the private PostgreSQL has ended by itself: see postgres/server.log in the data directory"
        )),
    };
    shutdown.begin();
    working.abort();
    sweeping.abort();
    reloading.abort();
    outcome
}

/// Serves until told to end; then ends what is under way, unless told again.
async fn end_in_order(
    signals: &mut Signals,
    app: &App,
    worker: &Worker,
    serving: impl Future<Output = ()>,
) {
    let mut serving = pin!(serving);
    tokio::select! {
        () = serving.as_mut() => return,
        () = signals.next() => {}
    }
    tracing::info!("ending: answering what is under way, taking nothing new");
    app.shutdown.begin();
    let patience = app.config.server.drain_timeout();
    tokio::select! {
        () = worker.drain(serving, patience) => {}
        () = signals.next() => tracing::warn!("told to end again: ending at once"),
    }
}

/// What tells the process to end. Made once: a signal is heard whenever it comes.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let receive = |kind| signal(kind).context("no signals can be received");
        Ok(Self {
            terminate: receive(SignalKind::terminate())?,
            interrupt: receive(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
