//! nginx between the same clients and the same upstream, in the same run: what it reaches is what the machine can do.
//! And processors: with peers, the gateway and nginx have one, clients and upstream the others.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use tokio::{
    net::TcpStream,
    process::{Child, Command as AsyncCommand},
};

const START_WAIT: Duration = Duration::from_secs(10);
/// The processor of what is measured.
pub(super) const MEASURED: &str = "0";

/// A running nginx.
pub(super) struct Nginx {
    pub(super) address: SocketAddr,
    _child: Child,
}

impl Nginx {
    /// Starts it in front of the upstream, with its files in `dir`. Below `/upload` it writes each body to a file first.
    pub(super) async fn start(dir: &Path, upstream: SocketAddr) -> anyhow::Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let dir = dir.join("nginx");
        fs::create_dir_all(&dir)?;
        let config = dir.join("nginx.conf");
        fs::write(&config, settings(&dir, address, upstream))?;
        let child = AsyncCommand::new("taskset")
            .args(["-c", MEASURED, "nginx", "-c"])
            .arg(&config)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("nginx and taskset are needed to measure peers")?;
        let began = Instant::now();
        while TcpStream::connect(address).await.is_err() {
            ensure!(
                began.elapsed() < START_WAIT,
                "nginx did not start, see {}",
                dir.display()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self {
            address,
            _child: child,
        })
    }
}

fn settings(dir: &Path, address: SocketAddr, upstream: SocketAddr) -> String {
    let dir = dir.display();
    format!(
        "daemon off;
        master_process off;
        user root;
        worker_processes 1;
        pid {dir}/pid;
        error_log {dir}/error.log;
        events {{ worker_connections 8192; }}
        http {{
            access_log off;
            client_body_temp_path {dir}/body;
            proxy_temp_path {dir}/proxy;
            fastcgi_temp_path {dir}/fastcgi;
            uwsgi_temp_path {dir}/uwsgi;
            scgi_temp_path {dir}/scgi;
            client_max_body_size 64m;
            keepalive_requests 1000000;
            upstream fake {{ server {upstream}; keepalive 1024; keepalive_requests 1000000; }}
            server {{
                listen {address} backlog=4096;
                proxy_pass_request_headers on;
                proxy_http_version 1.1;
                proxy_set_header Connection '';
                location / {{ proxy_pass http://fake; }}
                location /upload {{
                    client_body_in_file_only clean;
                    proxy_pass_request_body off;
                    proxy_set_header Content-Length 0;
                    proxy_pass http://fake/tiny;
                }}
            }}
        }}\n"
    )
}

/// Restricts a process and its threads to these processors.
pub(super) fn pin(pid: u32, processors: &str) -> anyhow::Result<()> {
    let pinned = Command::new("taskset")
        .args(["-a", "-c", "-p", processors, &pid.to_string()])
        .stdout(Stdio::null())
        .status()?;
    ensure!(pinned.success(), "could not pin process {pid}");
    Ok(())
}

/// The processors of this machine.
pub(super) struct Processors {
    pub(super) all: String,
    /// All but [`MEASURED`].
    pub(super) others: String,
}

impl Processors {
    /// Call it before this process is pinned.
    pub(super) fn read() -> anyhow::Result<Self> {
        let count = std::thread::available_parallelism()?.get();
        ensure!(count > 1, "one processor cannot be shared out");
        Ok(Self {
            all: format!("0-{}", count - 1),
            others: format!("1-{}", count - 1),
        })
    }
}
