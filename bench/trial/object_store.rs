//! The S3 store, in this process, which can be told to fail or to be full.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use hyper::{Method, Response, StatusCode, service::service_fn};
use hyper_util::rt::TokioIo;
use s3s::{
    Body,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

pub(super) const ACCESS_KEY_ID: &str = "soak";
pub(super) const SECRET_ACCESS_KEY: &str = "soak-secret";
pub(super) const BUCKET: &str = "easel";
/// What MinIO answers once its disks are full.
const FULL: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
    <Error><Code>XMinioStorageFull</Code><Message>Storage backend has reached its minimum free drive \
    threshold. Please delete a few objects to proceed.</Message></Error>";

/// What the store can do at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    Working,
    /// It answers every request with 500.
    Failing,
    /// It refuses to write. Reads, lists and deletes work.
    Full,
}

/// A running S3 store.
pub(super) struct ObjectStore {
    pub(super) address: SocketAddr,
    condition: watch::Sender<Condition>,
    folder: PathBuf,
    _serving: JoinSet<()>,
}

impl ObjectStore {
    pub(super) async fn start(folder: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(folder)?;
        let files = s3s_fs::FileSystem::new(folder)
            .map_err(|error| anyhow::anyhow!("the store does not start: {error:?}"))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (condition, current) = watch::channel(Condition::Working);
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, builder.build(), current));
        Ok(Self {
            address,
            condition,
            folder: folder.to_path_buf(),
            _serving: serving,
        })
    }

    /// Applies to every request from now on.
    pub(super) fn set(&self, condition: Condition) {
        self.condition.send_replace(condition);
    }

    /// The bytes of an object, read past the server.
    pub(super) fn read(&self, key: &str) -> Option<Vec<u8>> {
        std::fs::read(self.folder.join(BUCKET).join(key)).ok()
    }
}

impl Condition {
    /// The status and the body of the error that a request gets, if it gets one.
    fn refusal(self, method: &Method) -> Option<(StatusCode, &'static str)> {
        let is_write = [Method::PUT, Method::POST].contains(method);
        match self {
            Self::Failing => Some((StatusCode::INTERNAL_SERVER_ERROR, "out of order")),
            Self::Full if is_write => Some((StatusCode::INSUFFICIENT_STORAGE, FULL)),
            Self::Working | Self::Full => None,
        }
    }
}

async fn accept(listener: TcpListener, service: S3Service, condition: watch::Receiver<Condition>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(serve(stream, service.clone(), condition.clone()));
    }
}

/// Serves until the connection ends: a client that disconnects is no fault of the store.
async fn serve(stream: TcpStream, store: S3Service, condition: watch::Receiver<Condition>) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let refusal = condition.borrow().refusal(request.method());
        let store = store.clone();
        async move {
            let Some((status, body)) = refusal else {
                return store.call(request.map(Body::from)).await;
            };
            let mut response = Response::new(Body::from(body.to_owned()));
            *response.status_mut() = status;
            Ok(response)
        }
    });
    let http = hyper::server::conn::http1::Builder::new();
    drop(http.serve_connection(TokioIo::new(stream), service).await);
}
