//! `easel serve`: runs the gateway from startup to graceful shutdown.

use std::{future::Future, pin::pin, process::ExitCode};

use anyhow::{Context as _, anyhow};
use tokio::{
    net::TcpSocket,
    signal::unix::{Signal, SignalKind, signal},
};

use super::{
    database::{self, Database, Purpose},
    first_run, open_files, reload,
    traces::{Running, Traces},
};
use crate::{
    app::App,
    clock::Clock,
    config::{Config, Sources},
    http::{self, server},
    images::{Images, sweep},
    shutdown::Shutdown,
    worker::Worker,
};

#[derive(Debug, Default, clap::Args)]
pub(super) struct Args {
    /// Address and port to listen on; a port alone listens on 127.0.0.1 [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub(super) listen: Option<String>,
}

/// Runs the gateway until a signal ends it. Fails if it cannot start or cannot stop cleanly.
pub(super) async fn run(mut config: Config, sources: Sources) -> anyhow::Result<ExitCode> {
    open_files::allow_most();
    for warning in config.warnings() {
        tracing::warn!("{warning}");
    }
    let address = config.server.listen;
    let socket = server::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    // Port 0 requests any free port. Links need the actual one.
    config.server.listen = socket
        .local_addr()
        .context("the listening address is unknown")?;
    let database = Database::open(&config, Purpose::Serve).await?;
    let served = serve(config, socket, sources, &database).await;
    let closed = database.close().await;
    served.and(closed).map(|()| ExitCode::SUCCESS)
}

async fn serve(
    config: Config,
    socket: TcpSocket,
    sources: Sources,
    database: &Database,
) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    let shutdown = Shutdown::default();
    let app = App::open(
        config.clone(),
        database.pool.clone(),
        Clock::default(),
        shutdown.clone(),
    )
    .await?;
    let address = config.server.listen;
    let listener = server::listen(socket).with_context(|| format!("cannot listen on {address}"))?;
    // The last step that can fail: the first key is shown only once.
    let welcome = first_run::prepare(&config, database).await?;
    let _running = leave_traces(&config, &sources);
    let (images, to_run) = Images::start(app.clone());
    let worker = Worker::new(images.clone());
    let working = shutdown.spawn_background(worker.clone().run(to_run));
    let sweeping = shutdown.spawn_background(sweep::keep_sweeping(app.clone()));
    let reloading = shutdown.spawn_background(reload::keep_reloading(app.clone(), sources)?);
    let router = http::router(images);
    let serving = async { server::serve(listener, router, &config.server, &shutdown).await };
    welcome.print(&app.public_url);
    tracing::info!(server.listen = %address, "ready at {}", app.public_url);

    let outcome = tokio::select! {
        () = end_in_order(&mut signals, &app, &worker, serving) => Ok(()),
        () = database.ended() => Err(anyhow!(
            "the private PostgreSQL exited unexpectedly: see postgres/server.log in the data directory"
        )),
    };
    shutdown.begin();
    working.abort();
    sweeping.abort();
    reloading.abort();
    outcome
}

/// For commands. They work without these files if the data directory is not needed or not writable.
fn leave_traces(config: &Config, sources: &Sources) -> Option<Running> {
    let traces = Traces {
        address: config.server.listen,
        config: sources.file.as_deref().map(database::absolute),
    };
    match traces.leave(&config.data_dir) {
        Ok(running) => Some(running),
        Err(error) => {
            tracing::debug!(%error, "commands need the address and the configuration as flags");
            None
        }
    }
}

/// Serves until a signal arrives, then drains the requests in progress until a second signal.
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
    tracing::info!("shutting down: draining requests");
    app.shutdown.begin();
    let patience = app.config.server.drain_timeout();
    tokio::select! {
        () = worker.drain(serving, patience) => {}
        () = signals.next() => tracing::warn!("second signal received: exiting at once"),
    }
}

/// The signals that end the process. Created once, so that no signal is missed.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let receive = |kind| signal(kind).context("could not register a signal handler");
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
