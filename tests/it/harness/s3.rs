//! S3 stores to test against, on loopback: one in this process, and one that is used in production.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{body::Body, http::Response};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use tempfile::TempDir;

use super::loopback::{Loopback, Serving};

pub(crate) const ACCESS_KEY_ID: &str = "test-access-key";
pub(crate) const SECRET_ACCESS_KEY: &str = "test-secret-key";

/// A running store; it stops when it is dropped.
pub(crate) struct S3Server {
    /// The URL of its S3 API.
    pub(crate) endpoint: String,
    server: Server,
    /// For the store in this process: whether it answers everything with 500.
    pub(crate) failing: Arc<AtomicBool>,
    /// The directory of its files; dropped last.
    pub(crate) folder: TempDir,
}

enum Server {
    InProcess { _serving: Serving },
    Process(Child),
}

impl S3Server {
    /// Starts `s3s-fs` in this process.
    pub(crate) async fn s3s() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).unwrap());
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY_ID, SECRET_ACCESS_KEY));
        let service = builder.build();
        let loopback = Loopback::bind().await;
        let endpoint = loopback.url();
        let failing = Arc::new(AtomicBool::new(false));
        let fails = Arc::clone(&failing);
        let serving = loopback.serve(move |request| {
            let (service, fails) = (service.clone(), fails.load(Ordering::Relaxed));
            async move {
                if fails {
                    return Ok(Response::builder().status(500).body(Body::empty())?);
                }
                let response = service.call(request.map(s3s::Body::from)).await;
                Ok(response.map_err(s3s::StdError::from)?.map(Body::new))
            }
        });
        Self {
            endpoint,
            server: Server::InProcess { _serving: serving },
            failing,
            folder,
        }
    }

    /// Starts `SeaweedFS`, if `IT_WEED` names its binary.
    pub(crate) async fn seaweedfs() -> Option<Self> {
        let binary = super::tool("IT_WEED", "SeaweedFS")?;
        let folder = tempfile::tempdir().unwrap();
        let port = free_ports();
        let mut child = weed(Path::new(&binary), folder.path(), port)
            .spawn()
            .unwrap();
        let endpoint = format!("http://127.0.0.1:{}", port.s3);
        wait_until_it_answers(&endpoint, &mut child, folder.path()).await;
        Some(Self {
            endpoint,
            server: Server::Process(child),
            failing: Arc::default(),
            folder,
        })
    }
}

impl S3Server {
    /// Settings of a gateway that keeps its objects in the store at `endpoint`.
    pub(crate) fn settings(endpoint: &str) -> String {
        format!(
            "[storage]\nurl = \"s3://easel\"\nendpoint = \"{endpoint}\"\n\
             access_key_id = \"{ACCESS_KEY_ID}\"\nsecret_access_key = \"{SECRET_ACCESS_KEY}\"\n"
        )
    }

    /// The address it listens on.
    pub(crate) fn address(&self) -> std::net::SocketAddr {
        self.endpoint
            .strip_prefix("http://")
            .unwrap()
            .parse()
            .unwrap()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        if let Server::Process(child) = &mut self.server {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

#[derive(Clone, Copy)]
struct Ports {
    master: u16,
    volume: u16,
    filer: u16,
    s3: u16,
}

/// Free ports whose numbers plus 10,000 are free as well, because `SeaweedFS` puts a gRPC port there.
fn free_ports() -> Ports {
    // Held until all are chosen, so that no port is chosen twice.
    let mut held = Vec::new();
    let mut next = || {
        loop {
            let port = rand::random_range(11_000..32_000);
            let pair = [port, port + 10_000].map(|port| TcpListener::bind(("127.0.0.1", port)));
            if let [Ok(one), Ok(twin)] = pair {
                held.push((one, twin));
                return port;
            }
        }
    };
    Ports {
        master: next(),
        volume: next(),
        filer: next(),
        s3: next(),
    }
}

fn weed(binary: &Path, folder: &Path, ports: Ports) -> Command {
    let config = serde_json::json!({"identities": [{
        "name": "easel",
        "credentials": [{"accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY}],
        "actions": ["Admin", "Read", "List", "Tagging", "Write"],
    }]});
    let config_file = folder.join("s3.json");
    fs::write(&config_file, config.to_string()).unwrap();
    let log = File::create(folder.join("log")).unwrap();
    let mut command = Command::new(binary);
    command
        .arg("server")
        .arg(format!("-dir={}", folder.display()))
        .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-volume.max=20"])
        .args(["-master.volumeSizeLimitMB=64", "-volume.preStopSeconds=0"])
        .args(["-master.telemetry=false", "-s3.autoCreateBucket=false"])
        .args([
            "-s3",
            "-s3.iam=false",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
        ])
        .arg(format!("-s3.config={}", config_file.display()))
        .arg(format!("-master.port={}", ports.master))
        .arg(format!("-volume.port={}", ports.volume))
        .arg(format!("-filer.port={}", ports.filer))
        .arg(format!("-s3.port={}", ports.s3))
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    command
}

/// Any answer of its S3 port counts: without credentials it is a refusal.
async fn wait_until_it_answers(endpoint: &str, child: &mut Child, folder: &Path) {
    let client = plain_client();
    let started = Instant::now();
    while client.get(endpoint).send().await.is_err() {
        let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
        assert!(child.try_wait().unwrap().is_none(), "weed ended: {}", log());
        assert!(
            started.elapsed() < Duration::from_mins(1),
            "weed: {}",
            log()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A client such as a browser, which knows nothing of S3.
pub(crate) fn plain_client() -> reqwest::Client {
    easel::tls::install_crypto_provider();
    reqwest::Client::builder().no_proxy().build().unwrap()
}
