//! The `comfyui` backend against a fake of its server.

mod gateway;
mod jobs;
mod nodes;
mod server;
mod workflows;

use easel::backend::{BackendError, GenerateRequest};

use super::{
    Collected, backend_of,
    contract::{self, FakeUpstream},
    request,
};
use server::Comfyui;

#[tokio::test]
async fn it_fulfils_the_contract_of_a_backend() {
    contract::fulfils_the_contract(&Comfyui::start().await).await;
}

fn wanted(server: &Comfyui, n: u8) -> GenerateRequest {
    GenerateRequest {
        model: server.model(),
        ..request(n)
    }
}

async fn generate(
    server: &Comfyui,
    request: &GenerateRequest,
) -> (Collected, Result<(), BackendError>) {
    generate_with(&server.settings(), request).await
}

async fn generate_with(
    settings: &str,
    request: &GenerateRequest,
) -> (Collected, Result<(), BackendError>) {
    let mut collected = Collected::default();
    let result = backend_of(settings).generate(request, &mut collected).await;
    (collected, result)
}

/// The settings with these keys added.
fn with(settings: &str, more: &str) -> String {
    let mut settings: toml::Table = settings.parse().unwrap();
    settings.extend(more.parse::<toml::Table>().unwrap());
    settings.to_string()
}
