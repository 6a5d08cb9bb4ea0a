//! The `comfyui` backend against a fake of its server.

mod gateway;
mod jobs;
mod nodes;
mod server;
mod workflows;

use super::{
    Collected, backend_of,
    contract::{self, FakeUpstream},
    generate, generate_with, wanted,
};
use server::Comfyui;

#[tokio::test]
async fn it_fulfils_the_contract_of_a_backend() {
    contract::fulfils_the_contract(&Comfyui::start().await).await;
}

/// The settings with these keys added.
fn with(settings: &str, more: &str) -> String {
    let mut settings: toml::Table = settings.parse().unwrap();
    settings.extend(more.parse::<toml::Table>().unwrap());
    settings.to_string()
}
