//! Somebody with a key, and what they are answered.

use easel::ids::{AccountId, KeyId};
use reqwest::{Method, RequestBuilder, header::HeaderMap, multipart::Form};
use serde_json::{Value, json};

/// A client of the gateway. Follows no redirects.
#[derive(Clone)]
pub struct Caller {
    http: reqwest::Client,
    pub url: String,
    pub key: String,
    pub account: String,
    pub account_id: AccountId,
    pub key_id: KeyId,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

pub fn http_client() -> reqwest::Client {
    easel::tls::install_crypto_provider();
    let builder = reqwest::Client::builder()
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    builder.build().unwrap()
}

impl Caller {
    pub fn new(
        url: &str,
        key: &str,
        account: String,
        account_id: AccountId,
        key_id: KeyId,
    ) -> Self {
        let (url, key) = (url.to_owned(), key.to_owned());
        Self {
            http: http_client(),
            url,
            key,
            account,
            account_id,
            key_id,
        }
    }

    /// The same caller at another replica.
    pub fn at(&self, url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ..self.clone()
        }
    }

    /// A request with the key; `path` may be a whole URL.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let url = if path.starts_with("http") {
            path.to_owned()
        } else {
            format!("{}{path}", self.url)
        };
        self.http.request(method, url).bearer_auth(&self.key)
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(body)).await
    }

    pub async fn post_form(&self, path: &str, form: Form) -> Answer {
        Answer::of(self.request(Method::POST, path).multipart(form)).await
    }

    /// Draws one small picture, and waits for it.
    pub async fn draw(&self, prompt: &str) -> Answer {
        self.post(
            "/v1/images/generations",
            &json!({"model": "gpt-image-2", "prompt": prompt}),
        )
        .await
    }

    /// Polls a task until it has ended.
    pub async fn wait_for(&self, task: &str) -> Value {
        for _ in 0..600 {
            let answer = self.get(&format!("/v1/images/tasks/{task}")).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let task = answer.json();
            if task["status"] != "pending" {
                return task;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("the task {task} did not end within 30 s");
    }

    pub async fn balance(&self) -> Value {
        self.get("/v1/balance").await.json()
    }
}

impl Answer {
    pub async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self {
            status,
            headers,
            body: response.bytes().await.unwrap().to_vec(),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}
