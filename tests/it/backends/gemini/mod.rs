//! The `gemini` backend against a fake of its upstream.

mod answers;
mod gateway;
mod request;
mod requests;
pub mod server;

use super::{
    backend_of,
    contract::{self, FakeUpstream},
    generate, generate_with, input, wanted,
};
use server::Gemini;

#[tokio::test]
async fn it_fulfils_the_contract_of_a_backend() {
    contract::fulfils_the_contract(&Gemini::start().await).await;
}
