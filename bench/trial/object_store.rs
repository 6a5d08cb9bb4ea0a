//! The S3 store, in this process, which can be told to answer 500.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use hyper::{Response, StatusCode, service::service_fn};
use hyper_util::rt::TokioIo;
use s3s::{
    Body,
    auth::SimpleAuth,
    service::{S3Service, S3ServiceBuilder},
};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

pub(super) const ACCESS_KEY_ID: &str = "soak";
pub(super) const SECRET_ACCESS_KEY: &str = "soak-secret";
pub(super) const BUCKET: &str = "easel";

/// A running S3 store.
pub(super) struct ObjectStore {
    pub(super) address: SocketAddr,
    fails: Arc<AtomicBool>,
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
        let fails = Arc::new(AtomicBool::new(false));
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, builder.build(), Arc::clone(&fails)));
        Ok(Self {
            address,
            fails,
            folder: folder.to_path_buf(),
            _serving: serving,
        })
    }

    /// Answers every request with 500 from now on, or normally again.
    pub(super) fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::Relaxed);
    }

    /// The bytes of an object, read past the server.
    pub(super) fn read(&self, key: &str) -> Option<Vec<u8>> {
        std::fs::read(self.folder.join(BUCKET).join(key)).ok()
    }
}

async fn accept(listener: TcpListener, service: S3Service, fails: Arc<AtomicBool>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(serve(stream, service.clone(), Arc::clone(&fails)));
    }
}

/// Serves until the connection ends: a client that disconnects is no fault of the store.
async fn serve(stream: TcpStream, store: S3Service, fails: Arc<AtomicBool>) {
    let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
        let (store, fails) = (store.clone(), fails.load(Ordering::Relaxed));
        async move {
            if !fails {
                return store.call(request.map(Body::from)).await;
            }
            let mut response = Response::new(Body::from("out of order".to_owned()));
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            Ok(response)
        }
    });
    let http = hyper::server::conn::http1::Builder::new();
    drop(http.serve_connection(TokioIo::new(stream), service).await);
}
