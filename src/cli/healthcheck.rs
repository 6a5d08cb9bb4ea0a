//! `easel healthcheck`: for container runtimes, because the images have no curl.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::{Context as _, bail};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::output;
use crate::config::Config;

const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the gateway at `server.listen` whether it is ready. Fails if it is not or does not answer.
pub(super) async fn run(config: &Config) -> anyhow::Result<ExitCode> {
    let answer = ask(config.server.listen, "/readyz").await?;
    let status = answer.lines().next();
    if !status.is_some_and(|status| status.contains(" 200 ")) {
        bail!(
            "not ready: {}",
            answer.lines().last().unwrap_or("no answer")
        );
    }
    output::print_line("ready")?;
    Ok(ExitCode::SUCCESS)
}

/// The whole response of the gateway that listens on this address of this machine.
pub(super) async fn ask(mut address: SocketAddr, path: &str) -> anyhow::Result<String> {
    // If it listens on all addresses, use the loopback address.
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv4() {
            "127.0.0.1"
        } else {
            "::1"
        };
        address.set_ip(loopback.parse()?);
    }
    let asked = timeout(PATIENCE, send(address, path)).await;
    asked.with_context(|| format!("{address} does not answer"))?
}

async fn send(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("nothing listens on {address}"))?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
