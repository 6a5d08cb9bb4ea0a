//! Gateways whose system calls are recorded by strace.

use std::{path::Path, process::Command, time::Duration};

/// Whether strace is installed. If it must be, panics; else says what is skipped.
pub fn is_installed(skipped: &str) -> bool {
    let is_installed = Command::new("strace").arg("-V").output().is_ok();
    if !is_installed {
        assert!(
            std::env::var_os("IT_REQUIRE_ALL").is_none(),
            "strace is missing"
        );
        super::say(&format!("skipped: {skipped} needs strace"));
    }
    is_installed
}

/// The whole record. The last calls are written only once the gateway has ended.
pub async fn record(log: &Path) -> String {
    let read = || std::fs::read_to_string(log).unwrap();
    for _ in 0..1_000 {
        if read().contains("+++ exited with 0 +++") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    read()
}
