//! The `gemini` backend against a fake of its upstream.

mod answers;
mod gateway;
mod request;
mod requests;
pub mod server;

use easel::backend::{BackendError, GenerateRequest};

use super::{
    Collected, backend_of,
    contract::{self, FakeUpstream},
    input, request,
};
use server::Gemini;

#[tokio::test]
async fn it_fulfils_the_contract_of_a_backend() {
    contract::fulfils_the_contract(&Gemini::start().await).await;
}

fn wanted(server: &Gemini) -> GenerateRequest {
    GenerateRequest {
        model: server.model(),
        ..request(1)
    }
}

async fn generate(
    server: &Gemini,
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
