//! How a client buys: it retries as SDKs do, for as long as the answers suggest it.

use std::time::{Duration, Instant};

use base64_simd::STANDARD;
use futures_util::stream;
use rand::RngExt;
use reqwest::{
    Body, RequestBuilder,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    book::{Ending, Kind, Purchase, Try, prompt},
    client::{Client, Heard},
    stage::DEADLINE_S,
    upstream,
};

/// Longer than anything promised: the deadline of a task and a margin.
pub(super) const PATIENCE: Duration = Duration::from_secs(DEADLINE_S + 15);
/// For all tries of one purchase.
const PATIENCE_IN_ALL: Duration = Duration::from_secs(DEADLINE_S + 30);
const TRIES_MAX: usize = 20;
/// The chunks of a body that is sent slowly.
const PIECES: usize = 10;
const PIECE_EVERY: Duration = Duration::from_millis(300);

/// What to buy, and how.
pub(super) struct Order {
    pub(super) kind: Kind,
    pub(super) path: &'static str,
    /// The fields of the request.
    pub(super) fields: Value,
    /// A reference image, sent as a file.
    pub(super) reference: Option<Vec<u8>>,
    pub(super) idempotency_key: Option<String>,
    /// For one try.
    pub(super) patience: Duration,
}

impl Order {
    pub(super) fn new(kind: Kind, path: &'static str) -> Self {
        Self {
            kind,
            path,
            fields: json!({"model": "flaky"}),
            reference: None,
            idempotency_key: None,
            patience: PATIENCE,
        }
    }
}

impl Client {
    /// Buys an order and records its outcome.
    pub(super) async fn buy(&mut self, mut order: Order, words: &str) -> Ending {
        let mut purchase = self.begin(&mut order, words);
        let ending = self.try_until_ended(&order, &mut purchase).await;
        purchase.ending = ending.clone();
        self.shared.book.purchases().push(purchase);
        ending
    }

    /// Names the purchase in its prompt.
    pub(super) fn begin(&self, order: &mut Order, words: &str) -> Purchase {
        let marker = self.shared.book.next_marker();
        order.fields["prompt"] = json!(prompt(marker, words));
        let unit_price = match order.fields["quality"].as_str() {
            Some("low") => 100_000,
            Some("high") => 400_000,
            _ => 200_000,
        };
        let n = order.fields["n"]
            .as_u64()
            .and_then(|n| usize::try_from(n).ok());
        Purchase {
            marker,
            kind: order.kind,
            n: n.unwrap_or(1),
            unit_price,
            began: Instant::now(),
            tries: Vec::new(),
            tasks: Vec::new(),
            inline: Vec::new(),
            ending: Ending::Nothing,
        }
    }

    async fn try_until_ended(&mut self, order: &Order, purchase: &mut Purchase) -> Ending {
        loop {
            let replica = self.pick();
            let request = self.request(order, replica, purchase.tries.len());
            let heard = self.try_once(request, order.patience, purchase).await;
            match heard.status {
                Some(200) => return images(&heard, purchase),
                Some(202) => match heard.task() {
                    Some(task) => return self.poll(task, purchase).await,
                    None => return Ending::Nothing,
                },
                _ if !heard.may_be_retried() => return Ending::Failed,
                _ => {}
            }
            if !self.wait_to_retry(&heard, purchase).await {
                return Ending::Failed;
            }
        }
    }

    /// Sends one request and records it.
    pub(super) async fn try_once(
        &self,
        request: RequestBuilder,
        patience: Duration,
        purchase: &mut Purchase,
    ) -> Heard {
        let began = Instant::now();
        let heard = Heard::of(request, patience).await;
        purchase.tries.push(Try {
            took: began.elapsed(),
            status: heard.status,
            message: heard.message(),
        });
        purchase.tasks.extend(heard.task());
        heard
    }

    /// Waits as long as the answer says, or a little longer each time. `false`: no more retries.
    pub(super) async fn wait_to_retry(&mut self, heard: &Heard, purchase: &Purchase) -> bool {
        let tries = purchase.tries.len();
        if tries >= TRIES_MAX || purchase.began.elapsed() > PATIENCE_IN_ALL {
            return false;
        }
        let doubled = 0.5 * f64::from(1_u32 << tries.min(5)) / 2.0;
        let own = Duration::from_secs_f64(doubled.min(8.0));
        let wait = heard.retry_after().unwrap_or(own);
        tokio::time::sleep(wait.mul_f64(self.rng.random_range(0.75..1.0))).await;
        true
    }

    fn request(&self, order: &Order, replica: usize, retries: usize) -> RequestBuilder {
        let mut request = self.post(replica, order.path);
        if retries > 0 {
            request = request.header("x-stainless-retry-count", retries);
        }
        if let Some(key) = &order.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let Some(reference) = &order.reference {
            return request.multipart(form(&order.fields, reference));
        }
        if order.kind == Kind::SlowBody {
            let request = request.header("content-type", "application/json");
            return request.body(slowly(&order.fields.to_string()));
        }
        request.json(&order.fields)
    }

    /// Polls until the task has ended, or until no client would wait any longer.
    async fn poll(&mut self, task: Uuid, purchase: &mut Purchase) -> Ending {
        let patience = Duration::from_secs(10);
        let began = Instant::now();
        while began.elapsed() < PATIENCE_IN_ALL {
            self.pause(800..1_200).await;
            let replica = self.pick();
            let request = self.get(replica, &format!("/v1/images/tasks/{task}"));
            let heard = Heard::of(request, patience).await;
            match heard.body["status"].as_str() {
                Some("completed") => return images(&heard, purchase),
                Some("failed") => {
                    let message = heard.body["error"]["message"].as_str();
                    if let Some(last) = purchase.tries.last_mut() {
                        message.unwrap_or_default().clone_into(&mut last.message);
                    }
                    return Ending::Failed;
                }
                _ => {}
            }
        }
        Ending::Nothing
    }
}

fn images(heard: &Heard, purchase: &mut Purchase) -> Ending {
    let data = heard.body["data"].as_array();
    let inline = data.into_iter().flatten().filter_map(|image| {
        let bytes = STANDARD.decode_to_vec(image["b64_json"].as_str()?).ok()?;
        Some(upstream::digest(&bytes))
    });
    purchase.inline = inline.collect();
    match heard.task() {
        Some(task) => Ending::Images {
            task,
            images: data.map_or(0, Vec::len),
        },
        None => Ending::Nothing,
    }
}

fn form(fields: &Value, reference: &[u8]) -> Form {
    let mut form = Form::new();
    for (name, value) in fields.as_object().into_iter().flatten() {
        let text = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        form = form.text(name.clone(), text);
    }
    let file = Part::bytes(reference.to_vec()).file_name("reference.png");
    form.part("image[]", file)
}

fn slowly(body: &str) -> Body {
    let each = body.len().div_ceil(PIECES);
    let pieces: Vec<Vec<u8>> = body.as_bytes().chunks(each).map(<[u8]>::to_vec).collect();
    Body::wrap_stream(stream::unfold(pieces.into_iter(), async |mut pieces| {
        let piece = pieces.next()?;
        tokio::time::sleep(PIECE_EVERY).await;
        Some((Ok::<_, std::io::Error>(piece), pieces))
    }))
}
