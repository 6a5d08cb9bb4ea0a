//! Reloads the configuration while the gateway serves: on SIGHUP, or after `easel config reload`.

use std::{error::Error, future::Future};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    app::App,
    backend::Catalog,
    config::{Config, Sources},
};

/// The sections that take effect without a restart.
const SECTIONS: [&str; 3] = ["backends", "models", "routing"];

/// Listens for SIGHUP from now on. The returned future reloads the configuration on each request.
pub(super) fn keep_reloading(
    app: App,
    sources: Sources,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut hangup = signal(SignalKind::hangup()).context("could not register a signal handler")?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => {}
                () = app.reload.notified() => {}
            }
            match reload(&app, &sources) {
                Ok(()) => tracing::info!("reloaded the configuration"),
                Err(error) => tracing::error!(
                    error = error.as_ref() as &dyn Error,
                    "could not reload the configuration, keeping the current one"
                ),
            }
        }
    })
}

fn reload(app: &App, sources: &Sources) -> anyhow::Result<()> {
    let config = Config::load(sources)?;
    app.replace_catalog(Catalog::open(&config, Some(&app.catalog()))?);
    let changed: Vec<&str> = app
        .config
        .sections_unlike(&config)
        .filter(|section| !SECTIONS.contains(section))
        .collect();
    if !changed.is_empty() {
        let changed = changed.join(", ");
        tracing::warn!("changed, but takes effect only after a restart: {changed}");
    }
    Ok(())
}
