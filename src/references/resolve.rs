//! Resolves a host name to the addresses that may be connected to. The connection uses an address checked here; the
//! name is not resolved again in between.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{
        ConnectionConfig, LookupIpStrategy, NameServerConfig, ProtocolConfig, ResolverConfig,
    },
    net::{NetError, runtime::TokioRuntimeProvider},
};

use super::{error::RequestFault, guard::Guard};

/// Limits connection attempts to a name with many addresses.
const ADDRESSES_MAX: usize = 8;
/// Attempts per lookup within the connect timeout, in case a query is lost.
const QUESTIONS: u32 = 3;

/// Rejects a whole name if any of its addresses is rejected: an honest public name has no such address.
#[derive(Clone, Debug)]
pub(super) struct GuardedResolver {
    /// Decides about each address.
    pub(super) guard: Guard,
    /// `None`: the system's name servers.
    pub(super) name_server: Option<SocketAddr>,
    /// The limit of a connection, of which resolving takes at most a part.
    pub(super) connect_timeout: Duration,
}

impl GuardedResolver {
    /// All addresses of a name, checked.
    pub(super) async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, RequestFault> {
        let mut addresses = self.clone().look_up(name.to_owned()).await?;
        for address in &addresses {
            self.guard.check_address(*address)?;
        }
        addresses.truncate(ADDRESSES_MAX);
        Ok(addresses)
    }

    /// Resolves anew each time, because an earlier result proves nothing. The system's resolver would block a thread
    /// for every name server that stalls.
    async fn look_up(self, name: String) -> Result<Vec<IpAddr>, NetError> {
        let client = tokio::task::spawn_blocking(move || self.client()).await;
        let client = client.map_err(std::io::Error::other)??;
        let found = client.lookup_ip(name).await?;
        Ok(found.iter().collect())
    }

    /// Reads the system's settings, which may have changed. Blocks, so do not call it on the runtime's threads.
    fn client(&self) -> Result<TokioResolver, NetError> {
        let mut builder = match self.name_server {
            None => TokioResolver::builder_tokio()?,
            Some(address) => {
                TokioResolver::builder_with_config(only(address), TokioRuntimeProvider::default())
            }
        };
        let options = builder.options_mut();
        // Both families, because only returned addresses are checked.
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.timeout = options.timeout.min(self.connect_timeout / QUESTIONS);
        options.cache_size = 0;
        builder.build()
    }
}

fn only(address: SocketAddr) -> ResolverConfig {
    let connections = [ProtocolConfig::Udp, ProtocolConfig::Tcp].map(|protocol| {
        let mut connection = ConnectionConfig::new(protocol);
        connection.port = address.port();
        connection
    });
    let server = NameServerConfig::new(address.ip(), true, connections.into());
    ResolverConfig::from_name_servers(vec![server])
}
