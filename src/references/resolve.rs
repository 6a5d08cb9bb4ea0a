//! From a name to the addresses that may be connected to. The connection is made to an address
//! checked here, and the name isn't asked for again in between.

use std::{
    io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    sync::Arc,
};

use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use tokio::sync::Semaphore;

use super::guard::Guard;

/// A lookup that stalls keeps its thread until the system gives up on it, whoever still waits.
const LOOKUPS_MAX: usize = 64;
/// A name with a thousand addresses must not become a thousand connections.
const ADDRESSES_MAX: usize = 8;

/// Asks for the addresses of a name.
pub type Lookup = Arc<dyn Fn(String) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> + Send + Sync>;

/// The system's resolver.
pub(super) fn system_lookup() -> Lookup {
    let permits = Arc::new(Semaphore::new(LOOKUPS_MAX));
    Arc::new(move |name| {
        let permits = Arc::clone(&permits);
        Box::pin(async move {
            let permit = permits.acquire_owned().await.map_err(io::Error::other)?;
            let lookup = move || {
                let _until_it_ends = permit;
                let addresses = (name.as_str(), 0).to_socket_addrs()?;
                Ok(addresses.map(|address| address.ip()).collect())
            };
            tokio::task::spawn_blocking(lookup)
                .await
                .map_err(io::Error::other)?
        })
    })
}

/// Refuses a whole name if any of its addresses is refused: an honest public name has no such address.
pub(super) struct GuardedResolver {
    pub(super) guard: Guard,
    pub(super) lookup: Lookup,
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let guard = self.guard;
        let lookup = (self.lookup)(name.as_str().to_owned());
        Box::pin(async move {
            let addresses = lookup.await?;
            for address in &addresses {
                guard.check_address(*address)?;
            }
            // Port 0 stands for the URL's own port.
            let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses.take(ADDRESSES_MAX)) as Addrs)
        })
    }
}
