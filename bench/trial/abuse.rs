//! Two abusive accounts, one of them without money: nobody else may notice.

use std::{sync::Arc, time::Duration};

use rand::{SeedableRng, rngs::StdRng};
use reqwest::multipart::Form;
use serde_json::json;
use tokio::{io::AsyncWriteExt, net::TcpStream, task::JoinSet};

use super::{
    book::{Ending, Kind, Purchase},
    client::Client,
    purchase::Order,
};

/// How many abusive clients there are.
pub(super) const CLIENTS: usize = 8;
const GENERATIONS: &str = "/v1/images/generations";
const AT_ONCE: usize = 20;
const JUNK_BYTES: usize = 8 * 1024 * 1024;
const PATIENCE: Duration = Duration::from_secs(30);

/// Abuses the gateway until time is up, in a way that `number` selects.
pub(super) async fn run(mut client: Client, number: usize) {
    while client.goes_on() {
        match number {
            0 | 1 => flood(&client).await,
            2 => junk(&client).await,
            3 => ask(&mut client, "something refused").await,
            4 => ask(&mut client, "something to talk about").await,
            5 => long_texts(&client).await,
            6 => drip(&client).await,
            _ => leave_unread(&mut client).await,
        }
        client.pause(500..1_500).await;
    }
}

/// Many requests at once, whether there is money for them or not.
async fn flood(client: &Client) {
    let mut requests = JoinSet::new();
    for number in 0..AT_ONCE {
        let rng = StdRng::seed_from_u64(number as u64);
        let mut one = Client::new(Arc::clone(&client.shared), &client.key, rng);
        one.http = client.http.clone();
        requests.spawn(async move {
            let order = Order::new(Kind::Abuse, GENERATIONS);
            send(&mut one, order, "flood").await;
        });
    }
    requests.join_all().await;
}

async fn ask(client: &mut Client, words: &str) {
    send(client, Order::new(Kind::Abuse, GENERATIONS), words).await;
}

/// Sends one request and records the answer: the ledger must agree.
async fn send(client: &mut Client, mut order: Order, words: &str) {
    let mut purchase: Purchase = client.begin(&mut order, words);
    let replica = client.pick();
    let request = client.post(replica, order.path).json(&order.fields);
    let heard = client.try_once(request, PATIENCE, &mut purchase).await;
    if heard.status == Some(200)
        && let Some(task) = heard.task()
    {
        let images = heard.body["data"].as_array().map_or(0, Vec::len);
        purchase.ending = Ending::Images { task, images };
    }
    client.shared.book.purchases().push(purchase);
}

/// An unknown field with megabytes of data.
async fn junk(client: &Client) {
    let mut body = json!({"model": "flaky"}).to_string();
    body.pop();
    let junk = "{\"\":0},".repeat(JUNK_BYTES / 7);
    let body = format!("{body},\"prompt\":\"soak junk\",\"style\":[{junk}0]}}");
    let request = client.post(0, GENERATIONS);
    let request = request
        .header("content-type", "application/json")
        .body(body);
    drop(request.timeout(PATIENCE).send().await);
}

async fn long_texts(client: &Client) {
    let mut form = Form::new().text("model", "flaky");
    for number in 0..8 {
        form = form.text(format!("field-{number}"), "x".repeat(JUNK_BYTES / 8));
    }
    let request = client.post(1, GENERATIONS).multipart(form);
    drop(request.timeout(PATIENCE).send().await);
}

/// Large bodies are announced, and hardly any bytes follow.
async fn drip(client: &Client) {
    let mut requests = JoinSet::new();
    for replica in [0, 1, 0, 1] {
        let address = client.shared.balancer.address(replica);
        let head = format!(
            "POST {GENERATIONS} HTTP/1.1\r\nhost: soak\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\ncontent-length: 60000000\r\n\r\n{{",
            client.key
        );
        requests.spawn(async move {
            let Ok(mut stream) = TcpStream::connect(address).await else {
                return;
            };
            if stream.write_all(head.as_bytes()).await.is_err() {
                return;
            }
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_secs(1)).await;
                if stream.write_all(b" ").await.is_err() {
                    return;
                }
            }
        });
    }
    requests.join_all().await;
}

/// Requests without end, whose answers nobody reads.
async fn leave_unread(client: &mut Client) {
    let replica = client.pick();
    let address = client.shared.balancer.address(replica);
    let Ok(mut stream) = TcpStream::connect(address).await else {
        return;
    };
    let requests = b"GET /healthz HTTP/1.1\r\nhost: soak\r\n\r\n".repeat(1_000);
    let flood = async { while stream.write_all(&requests).await.is_ok() {} };
    // The gateway may cut them off earlier.
    drop(tokio::time::timeout(Duration::from_secs(10), flood).await);
}
