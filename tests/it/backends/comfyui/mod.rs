//! The `comfyui` backend against a stand-in for its server.

mod gateway;
mod jobs;
mod nodes;
mod server;
mod workflows;

use easel::backend::{BackendError, Drawing};

use super::{
    Collected, backend_of,
    contract::{self, StandIn},
    drawing,
};
use server::Comfyui;

#[tokio::test]
async fn it_keeps_the_promises_of_a_backend() {
    contract::keeps_its_promises(&Comfyui::start().await).await;
}

fn wanted(server: &Comfyui, n: u8) -> Drawing {
    Drawing {
        model: server.model(),
        ..drawing(n)
    }
}

async fn draw(server: &Comfyui, drawing: &Drawing) -> (Collected, Result<(), BackendError>) {
    draw_with(&server.settings(), drawing).await
}

async fn draw_with(settings: &str, drawing: &Drawing) -> (Collected, Result<(), BackendError>) {
    let mut collected = Collected::default();
    let drawn = backend_of(settings).draw(drawing, &mut collected).await;
    (collected, drawn)
}

/// The settings with these keys set.
fn with(settings: &str, more: &str) -> String {
    let mut settings: toml::Table = settings.parse().unwrap();
    settings.extend(more.parse::<toml::Table>().unwrap());
    settings.to_string()
}
