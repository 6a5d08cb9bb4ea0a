//! The `gemini` backend against a stand-in for its upstream.

mod answers;
mod gateway;
mod request;
mod requests;
pub mod server;

use easel::backend::{BackendError, Drawing};

use super::{
    Collected, backend_of,
    contract::{self, StandIn},
    drawing, input,
};
use server::Gemini;

#[tokio::test]
async fn it_keeps_the_promises_of_a_backend() {
    contract::keeps_its_promises(&Gemini::start().await).await;
}

fn wanted(server: &Gemini) -> Drawing {
    Drawing {
        model: server.model(),
        ..drawing(1)
    }
}

async fn draw(server: &Gemini, drawing: &Drawing) -> (Collected, Result<(), BackendError>) {
    draw_with(&server.settings(), drawing).await
}

async fn draw_with(settings: &str, drawing: &Drawing) -> (Collected, Result<(), BackendError>) {
    let mut collected = Collected::default();
    let drawn = backend_of(settings).draw(drawing, &mut collected).await;
    (collected, drawn)
}
