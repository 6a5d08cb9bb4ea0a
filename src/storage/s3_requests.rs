//! Requests to an S3 store that the client library has no call for: checking that the bucket is writable, and creating
//! it.

use std::time::Duration;

use object_store::{
    ClientOptions,
    aws::{AwsAuthorizer, AwsCredentialProvider},
    client::{HttpClient, HttpConnector, HttpRequest, HttpRequestBody},
    signer::Method,
};
use url::Url;

use super::StorageError;
use crate::tls;

/// A bucket, and how to send signed requests to it.
pub(super) struct Bucket {
    /// Sends the requests.
    pub(super) http: HttpClient,
    /// Supplies the keys, which may change.
    pub(super) credentials: AwsCredentialProvider,
    /// Part of every signature.
    pub(super) region: String,
    /// The bucket's URL.
    pub(super) url: Url,
    /// For error messages.
    pub(super) description: String,
}

/// An HTTP connector that always returns its own client and ignores the library's options.
#[derive(Debug)]
pub(super) struct Direct(pub(super) HttpClient);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time limit between two pieces of a response. It also limits sending one part.
const READ_TIMEOUT: Duration = Duration::from_mins(1);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const PROBE: &str = ".easel-check";

/// A client that connects to the store directly and ignores proxies set in the environment.
pub(super) fn http_client() -> Result<HttpClient, StorageError> {
    tls::install_crypto_provider();
    let client = reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .http1_only()
        .user_agent(concat!("easel/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| StorageError::Settings(format!("no HTTP client: {error}")))?;
    Ok(HttpClient::new(client))
}

impl HttpConnector for Direct {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(self.0.clone())
    }
}

/// A response of the store, with the code and message of an error body.
struct Answer {
    status: u16,
    code: String,
    message: String,
}

impl Bucket {
    /// Writes a small object. Returns `false` if the bucket does not exist.
    ///
    /// This proves more than a bucket lookup: credentials that may write objects often may not look up buckets.
    pub(super) async fn probe(&self, prefix: &str) -> Result<bool, StorageError> {
        let path = format!("{}{prefix}/{PROBE}", self.url.path().trim_end_matches('/'));
        let answer = self.put(&path, "check").await?;
        match (answer.status, answer.code.as_str()) {
            (200, _) => Ok(true),
            (404, "NoSuchBucket") => Ok(false),
            _ => Err(self.refused(answer)),
        }
    }

    /// Creates the bucket; no error if it exists.
    pub(super) async fn create(&self) -> Result<(), StorageError> {
        let body = match self.region.as_str() {
            // The one region that must be omitted.
            "us-east-1" => String::new(),
            region => format!(
                "<CreateBucketConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">\
                 <LocationConstraint>{region}</LocationConstraint></CreateBucketConfiguration>"
            ),
        };
        let answer = self.put(self.url.path(), &body).await?;
        match (answer.status, answer.code.as_str()) {
            // Another process may have created it in the meantime.
            (200, _) | (409, "BucketAlreadyOwnedByYou" | "BucketAlreadyExists") => Ok(()),
            _ => Err(self.refused(answer)),
        }
    }

    async fn put(&self, path: &str, body: &str) -> Result<Answer, StorageError> {
        tokio::time::timeout(ANSWER_TIMEOUT, self.put_and_wait(path, body))
            .await
            .map_err(|_elapsed| StorageError::NoAnswer {
                store: self.description.clone(),
                seconds: ANSWER_TIMEOUT.as_secs(),
            })?
    }

    async fn put_and_wait(&self, path: &str, body: &str) -> Result<Answer, StorageError> {
        let mut url = self.url.clone();
        url.set_path(path);
        let mut request = HttpRequest::new(HttpRequestBody::from(body.to_owned()));
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = url.as_str().parse().map_err(|error| {
            StorageError::Settings(format!("{url} is not a valid URL: {error}"))
        })?;
        let credential = self
            .credentials
            .get_credential()
            .await
            .map_err(StorageError::s3("get credentials"))?;
        AwsAuthorizer::new(&credential, "s3", &self.region)
            .try_authorize(&mut request, None)
            .map_err(StorageError::s3("sign a request"))?;
        let unreachable = |source| StorageError::Unreachable {
            store: self.description.clone(),
            source,
        };
        let response = self.http.execute(request).await.map_err(unreachable)?;
        let status = response.status().as_u16();
        let body = response.into_body().bytes().await.map_err(unreachable)?;
        let body = String::from_utf8_lossy(&body);
        Ok(Answer {
            status,
            code: element(&body, "Code"),
            message: element(&body, "Message"),
        })
    }

    fn refused(&self, answer: Answer) -> StorageError {
        let Answer {
            status,
            code,
            message,
        } = answer;
        StorageError::Refused {
            store: self.description.clone(),
            status,
            detail: format!("{code} {message}").trim().to_owned(),
        }
    }
}

/// The text of the first element with this name, shortened for a log line.
fn element(xml: &str, name: &str) -> String {
    xml.split_once(&format!("<{name}>"))
        .and_then(|(_, rest)| rest.split_once("</"))
        .map(|(text, _)| text.chars().take(300).collect())
        .unwrap_or_default()
}
