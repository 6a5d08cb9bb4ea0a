//! Reading the configuration again while the gateway serves: on SIGHUP, or when `easel config reload` says so.

use std::{error::Error, future::Future};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    app::App,
    backend::Catalog,
    config::{Config, Sources},
};

/// The sections that are put in force without a restart.
const SECTIONS: [&str; 3] = ["backends", "models", "routing"];

/// Hears SIGHUP from now on; what is answered reads the configuration again whenever told to.
pub(super) fn keep_reloading(
    app: App,
    sources: Sources,
) -> anyhow::Result<impl Future<Output = ()> + Send + 'static> {
    let mut hangup = signal(SignalKind::hangup()).context("no signals can be received")?;
    Ok(async move {
        loop {
            tokio::select! {
                _ = hangup.recv() => {}
                () = app.reload.notified() => {}
            }
            match reload(&app, &sources) {
                Ok(()) => tracing::info!("read the configuration again"),
                Err(error) => tracing::error!(
                    error = error.as_ref() as &dyn Error,
                    "the configuration stays as it was"
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
        tracing::warn!("changed, but in force only after a restart: {changed}");
    }
    Ok(())
}
