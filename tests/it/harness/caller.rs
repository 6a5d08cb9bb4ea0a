//! A client of the gateway with an API key, and the answers it gets.

use easel::ids::{AccountId, KeyId};
use reqwest::{
    Method, RequestBuilder,
    header::HeaderMap,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// A client of the gateway. Follows no redirects.
#[derive(Clone)]
pub struct Caller {
    http: reqwest::Client,
    /// The gateway's base URL.
    pub url: String,
    /// The secret key.
    pub key: String,
    /// The name of the account.
    pub account: String,
    pub account_id: AccountId,
    pub key_id: KeyId,
}

/// A complete response: status, headers and body.
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

/// The body of an answer that was read from a connection whole.
pub fn body_of(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

/// A client that follows no redirects.
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

    /// The same caller, connected to another replica.
    pub fn at(&self, url: &str) -> Self {
        Self {
            url: url.to_owned(),
            ..self.clone()
        }
    }

    /// A request that carries the key; `path` may be a whole URL.
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

    /// Generates one small image and waits for it.
    pub async fn generate(&self, prompt: &str) -> Answer {
        self.post(
            "/v1/images/generations",
            &json!({"model": "gpt-image-2", "prompt": prompt}),
        )
        .await
    }

    /// Generates one small image beside the test.
    pub fn waiting(&self, prompt: &str) -> JoinHandle<Answer> {
        self.waiting_for(json!({"model": "gpt-image-2", "prompt": prompt}))
    }

    /// Waits for a generation beside the test.
    #[expect(clippy::disallowed_methods, reason = "it may end with the test")]
    pub fn waiting_for(&self, body: Value) -> JoinHandle<Answer> {
        let caller = self.clone();
        tokio::spawn(async move { caller.post("/v1/images/generations", &body).await })
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

    /// Submits an asynchronous request that must be accepted, and returns the id of its task.
    pub async fn submit(&self, body: &Value) -> String {
        let ticket = self.post("/v1/images/generations/async", body).await;
        assert_eq!(ticket.status, 202, "{body} {ticket:?}");
        ticket.json()["id"].as_str().unwrap().to_owned()
    }

    /// Uploads one file as the part `file`.
    pub async fn upload(&self, bytes: Vec<u8>, file_name: &str) -> Answer {
        let file = Part::bytes(bytes).file_name(file_name.to_owned());
        self.post_form("/v1/uploads/images", Form::new().part("file", file))
            .await
    }

    /// The body of `/v1/balance`.
    pub async fn balance(&self) -> Value {
        self.get("/v1/balance").await.json()
    }
}

impl Answer {
    /// Sends a request and reads its complete answer.
    pub async fn of(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self {
            status,
            headers,
            body: response.bytes().await.unwrap().to_vec(),
        }
    }

    /// The body as JSON; panics if it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The body as it was sent.
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// Asserts an error: the status, the type that belongs to it, and all five keys. Returns its body, for a snapshot.
    #[track_caller]
    pub fn refused(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert!(self.header("x-request-id").is_some());
        let body = self.json();
        let error = body["error"].as_object().unwrap();
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(keys, ["code", "message", "param", "provider", "type"]);
        assert_eq!(body.as_object().unwrap().len(), 1);
        let kind = match status {
            401 => "authentication_error",
            402 => "payment_required",
            404 | 410 => "not_found_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        assert_eq!(error["type"], kind);
        body
    }

    /// An error as one line of a snapshot: its status, and its body as it was sent.
    #[track_caller]
    pub fn refusal(&self) -> String {
        self.refused(self.status);
        format!("{} {}", self.status, self.text())
    }

    /// Like [`refused`](Self::refused), with this exact message. Returns the fields of the error.
    #[track_caller]
    pub fn assert_refused(&self, status: u16, message: &str) -> Value {
        let error = self.refused(status)["error"].take();
        assert_eq!(error["message"], message);
        error
    }

    /// Like [`assert_refused`](Self::assert_refused), for a field of the request.
    #[track_caller]
    pub fn assert_refused_field(&self, status: u16, param: &str, message: &str) {
        let error = self.assert_refused(status, message);
        assert_eq!(error["param"], param);
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// Prints bodies as text, and long ones only in part.
impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.body[..self.body.len().min(2000)];
        writeln!(f, "{} {:?}", self.status, self.headers)?;
        f.write_str(&String::from_utf8_lossy(shown))
    }
}
