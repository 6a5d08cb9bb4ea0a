//! A call that a fake received.

use axum::{
    BoxError,
    body::{Body, Bytes, to_bytes},
    http::{HeaderMap, Method, Request, header::CONTENT_TYPE},
};
use hyper::body::Incoming;
use serde_json::{Map, Value};
use url::form_urlencoded;

/// A call, parsed.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    /// The JSON body, or the text parts of a form as strings.
    pub fields: Map<String, Value>,
    /// The files, in the order they arrived.
    pub files: Vec<File>,
    /// The names of a form's parts, in the order they arrived.
    pub parts: Vec<String>,
}

/// A file in a form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub name: String,
    pub filename: String,
    pub content_type: String,
    pub bytes: Bytes,
}

impl Call {
    /// Reads a JSON body or a form.
    pub(super) async fn read(request: Request<Incoming>) -> Result<Self, BoxError> {
        let (head, body) = request.into_parts();
        let body = to_bytes(Body::new(body), usize::MAX).await?;
        let mut call = Self {
            method: head.method,
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: head.headers,
            fields: Map::new(),
            files: Vec::new(),
            parts: Vec::new(),
        };
        let content_type = call.header(CONTENT_TYPE.as_str()).unwrap_or_default();
        if let Ok(boundary) = multer::parse_boundary(content_type) {
            call.read_form(body, boundary).await?;
        } else if let Ok(Value::Object(fields)) = serde_json::from_slice(&body) {
            call.fields = fields;
        }
        Ok(call)
    }

    async fn read_form(&mut self, body: Bytes, boundary: String) -> multer::Result<()> {
        let body = futures_util::stream::iter([Ok::<_, std::io::Error>(body)]);
        let mut form = multer::Multipart::new(body, boundary);
        while let Some(part) = form.next_field().await? {
            let name = part.name().unwrap_or_default().to_owned();
            self.parts.push(name.clone());
            match part.file_name().map(str::to_owned) {
                None => {
                    self.fields.insert(name, part.text().await?.into());
                }
                Some(filename) => self.files.push(File {
                    name,
                    filename,
                    content_type: part
                        .content_type()
                        .map(ToString::to_string)
                        .unwrap_or_default(),
                    bytes: part.bytes().await?,
                }),
            }
        }
        Ok(())
    }

    /// Method and path segments, for matching.
    pub fn line(&self) -> (&str, Vec<&str>) {
        let steps = self.path.split('/').filter(|step| !step.is_empty());
        (self.method.as_str(), steps.collect())
    }

    /// The last segment of the path.
    pub fn last_segment(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    /// A value in the query, decoded; empty if there is none.
    pub fn in_query(&self, name: &str) -> String {
        let mut pairs = form_urlencoded::parse(self.query.as_bytes());
        let found = pairs.find(|(key, _)| key == name);
        found.map_or_else(String::new, |(_, value)| value.into_owned())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the call carries this key as a bearer token.
    pub fn has_bearer(&self, key: &str) -> bool {
        self.header("authorization")
            .and_then(|given| given.strip_prefix("Bearer "))
            == Some(key)
    }

    /// The fields as one value.
    pub fn json(&self) -> Value {
        Value::Object(self.fields.clone())
    }
}
