//! The well-behaved clients, each kind in its own way.

use std::time::Duration;

use rand::RngExt;
use reqwest::multipart::{Form, Part};
use serde_json::{Value, json};

use super::{
    book::{Ending, Kind, Purchase},
    client::Client,
    purchase::{Order, PATIENCE},
    upstream,
};

const GENERATIONS: &str = "/v1/images/generations";
const EDITS: &str = "/v1/images/edits";
const WORDS: &str = "a lighthouse at dusk, oil on canvas";
/// A time-out that some set in their SDK.
const SHORT_PATIENCE: Duration = Duration::from_secs(25);

/// Buys until time is up.
pub(super) async fn run(mut client: Client, number: usize) {
    client.pause(0..3_000).await;
    while client.goes_on() {
        match number % 10 {
            0..=3 => sync(&mut client, number).await,
            4 => inline(&mut client).await,
            5 | 6 => asynchronous(&mut client).await,
            7 => edit(&mut client).await,
            8 => hang_up(&mut client).await,
            _ => slow_body(&mut client).await,
        }
        client.pause(500..3_500).await;
    }
}

async fn sync(client: &mut Client, number: usize) {
    let mut order = Order::new(Kind::Sync, GENERATIONS);
    order.fields["n"] = json!(client.rng.random_range(1..=3));
    order.fields["quality"] = json!(["low", "medium", "high"][client.rng.random_range(0..3)]);
    if number.is_multiple_of(4) {
        order.idempotency_key = Some(format!("{:032x}", client.rng.random::<u128>()));
    }
    if number.is_multiple_of(3) {
        order.patience = SHORT_PATIENCE;
    }
    client.buy(order, WORDS).await;
}

async fn inline(client: &mut Client) {
    let mut order = Order::new(Kind::Inline, GENERATIONS);
    order.fields["response_format"] = json!("b64_json");
    client.buy(order, WORDS).await;
}

async fn asynchronous(client: &mut Client) {
    let mut order = Order::new(Kind::Async, "/v1/images/generations?async=1");
    order.idempotency_key = Some(format!("{:032x}", client.rng.random::<u128>()));
    order.fields["n"] = json!(client.rng.random_range(1..=2));
    client.buy(order, WORDS).await;
}

/// An edit of an upload, or of a file in the request.
async fn edit(client: &mut Client) {
    let mut order = Order::new(Kind::Edit, EDITS);
    let Ok(reference) = upstream::image() else {
        return;
    };
    if client.rng.random_bool(0.5) {
        order.reference = Some(reference);
    } else {
        let Some(url) = upload(client, &mut order, reference).await else {
            return;
        };
        order.fields["image_urls"] = json!([url]);
    }
    client.buy(order, WORDS).await;
}

/// A failed upload is a failed purchase.
async fn upload(client: &mut Client, order: &mut Order, file: Vec<u8>) -> Option<Value> {
    let mut purchase: Purchase = client.begin(order, "an upload");
    loop {
        let replica = client.pick();
        let part = Part::bytes(file.clone()).file_name("reference.png");
        let request = client.post(replica, "/v1/uploads/images");
        let request = request.multipart(Form::new().part("file", part));
        let heard = client.try_once(request, PATIENCE, &mut purchase).await;
        if heard.status == Some(200) {
            return Some(heard.body["url"].clone());
        }
        if !heard.may_be_retried() || !client.wait_to_retry(&heard, &purchase).await {
            purchase.ending = Ending::Failed;
            client.shared.book.purchases().push(purchase);
            return None;
        }
    }
}

async fn hang_up(client: &mut Client) {
    let mut order = Order::new(Kind::HangUp, GENERATIONS);
    let mut purchase = client.begin(&mut order, WORDS);
    let patience = Duration::from_millis(client.rng.random_range(20..1_500));
    let replica = client.pick();
    let request = client.post(replica, order.path).json(&order.fields);
    client.try_once(request, patience, &mut purchase).await;
    client.shared.book.purchases().push(purchase);
}

async fn slow_body(client: &mut Client) {
    let order = Order::new(Kind::SlowBody, GENERATIONS);
    client.buy(order, WORDS).await;
}
