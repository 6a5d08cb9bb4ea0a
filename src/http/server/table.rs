//! The table of open connections: limits their number in total and per address, and chooses which connections
//! to close to admit new ones.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ipnet::IpNet;
use tokio::time::Instant;

use super::Connection;
use crate::{config, http::address};

/// One in this many connections is closed at a time, since each search examines all of them.
const SHED_SHARE: usize = 64;
/// Wait before the next search after one that found no connection to close.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// How long connections are refused at once after one waited for the reserve without success.
const GIVEN_UP_FOR: Duration = Duration::from_secs(1);

/// All open connections, and their limits.
#[derive(Clone)]
pub(super) struct Table {
    open: Arc<Mutex<Open>>,
    limits: Limits,
}

#[derive(Clone)]
struct Limits {
    connections_max: usize,
    reserve_max: usize,
    per_address_max: usize,
    proxies: Arc<[IpNet]>,
}

#[derive(Default)]
struct Open {
    connections: HashMap<u64, Arc<Connection>>,
    per_address: HashMap<IpAddr, usize>,
    of_reserve: usize,
    next_id: u64,
    /// Groups in which a search found no connection to close, with the time of the next search.
    look_again: HashMap<Among, Instant>,
}

/// The group of connections in which to close some.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Among {
    Ordinary,
    Reserve,
    Address(IpAddr),
}

/// A connection's entry in the table; dropping it removes the connection.
pub(super) struct Entry {
    id: u64,
    connection: Arc<Connection>,
    open: Arc<Mutex<Open>>,
}

/// The decision about a new connection.
pub(super) enum Admission {
    /// Serve it.
    Admitted(Entry),
    /// Try again shortly: requests on the reserve are short.
    Later,
    /// Refuse it.
    Refused,
}

impl Table {
    /// An empty table.
    pub(super) fn new(limits: &config::Server) -> Self {
        Self {
            open: Arc::default(),
            limits: Limits {
                connections_max: limits.connections_max,
                reserve_max: limits.connections_reserved,
                per_address_max: limits.connections_per_address_max,
                proxies: limits.trusted_proxies.as_slice().into(),
            },
        }
    }

    /// Admits a connection. At a limit, closes idle and slow connections first; if all are busy, admits it to the
    /// reserve.
    pub(super) fn admit(&self, peer: SocketAddr) -> Admission {
        let limits = &self.limits;
        let is_proxy = address::is_within(&limits.proxies, peer.ip());
        let share = address::share(peer.ip());
        let mut open = lock(&self.open);
        let of_address = open.per_address.get(&share).copied().unwrap_or_default();
        if !is_proxy && of_address >= limits.per_address_max && !open.shed(Among::Address(share)) {
            return Admission::Refused;
        }
        let ordinary = open.connections.len() - open.of_reserve;
        let is_full = ordinary >= limits.connections_max && !open.shed(Among::Ordinary);
        if is_full && open.of_reserve >= limits.reserve_max {
            if open.look_again.contains_key(&Among::Reserve) {
                return Admission::Refused;
            }
            if !open.shed(Among::Reserve) {
                return Admission::Later;
            }
        }
        let connection = Arc::new(Connection::new(peer, is_proxy, is_full));
        let id = open.insert(Arc::clone(&connection));
        drop(open);
        let open = Arc::clone(&self.open);
        Admission::Admitted(Entry {
            id,
            connection,
            open,
        })
    }

    /// Refuses new connections at once for `GIVEN_UP_FOR`, after one waited for the reserve without success.
    pub(super) fn give_up(&self) {
        let then = Instant::now() + GIVEN_UP_FOR;
        lock(&self.open).look_again.insert(Among::Reserve, then);
    }

    /// Closes some idle or slow connections.
    pub(super) fn make_room(&self) {
        lock(&self.open).shed(Among::Ordinary);
    }
}

impl Open {
    fn insert(&mut self, connection: Arc<Connection>) -> u64 {
        let share = address::share(connection.peer.ip());
        *self.per_address.entry(share).or_default() += 1;
        self.of_reserve += usize::from(connection.is_reserve);
        self.next_id += 1;
        self.connections.insert(self.next_id, connection);
        self.next_id
    }

    fn remove(&mut self, id: u64) -> Option<Arc<Connection>> {
        let connection = self.connections.remove(&id)?;
        let share = address::share(connection.peer.ip());
        if let Some(count) = self.per_address.get_mut(&share) {
            *count -= 1;
            if *count == 0 {
                self.per_address.remove(&share);
            }
        }
        self.of_reserve -= usize::from(connection.is_reserve);
        Some(connection)
    }

    /// Closes some idle or slow connections of the group, and returns whether there were any.
    fn shed(&mut self, among: Among) -> bool {
        let now = Instant::now();
        self.look_again.retain(|_, then| now < *then);
        if self.look_again.contains_key(&among) {
            return false;
        }
        let (mut ranked, mut looked_at) = (Vec::new(), 0);
        for (id, connection) in &self.connections {
            if among.includes(connection) {
                looked_at += 1;
                ranked.extend(connection.rank(now).map(|rank| (rank, *id)));
            }
        }
        let count = 1 + looked_at / SHED_SHARE;
        if ranked.len() > count {
            ranked.select_nth_unstable(count);
            ranked.truncate(count);
        }
        for (_, id) in &ranked {
            if let Some(connection) = self.remove(*id) {
                connection.make_room();
            }
        }
        if ranked.is_empty() && among != Among::Reserve {
            self.look_again.insert(among, now + LOOK_AGAIN);
        }
        !ranked.is_empty()
    }
}

impl Among {
    fn includes(self, connection: &Connection) -> bool {
        match self {
            Self::Ordinary => !connection.is_reserve,
            Self::Reserve => connection.is_reserve,
            Self::Address(share) => address::share(connection.peer.ip()) == share,
        }
    }
}

impl Entry {
    /// The connection itself.
    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        lock(&self.open).remove(self.id);
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(connections_max: usize, reserve_max: usize, per_address_max: usize) -> Table {
        let limits = Limits {
            connections_max,
            reserve_max,
            per_address_max,
            proxies: ["10.0.0.0/8".parse().unwrap()].into(),
        };
        Table {
            open: Arc::default(),
            limits,
        }
    }

    fn admit(table: &Table, peer: &str) -> Option<Entry> {
        match table.admit(peer.parse().unwrap()) {
            Admission::Admitted(entry) => Some(entry),
            Admission::Later | Admission::Refused => None,
        }
    }

    fn grow_old() {
        std::thread::sleep(crate::http::server::connection::YOUNG);
    }

    fn working(table: &Table, peer: &str) -> Option<Entry> {
        let entry = admit(table, peer)?;
        entry.connection.asked(false);
        Some(entry)
    }

    fn is_shed(entry: &Entry) -> bool {
        !lock(&entry.open).connections.contains_key(&entry.id)
    }

    #[test]
    fn the_longest_idle_connection_is_closed_first() {
        let table = table(3, 0, 9);
        let peers = ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"];
        let entries: Vec<Entry> = peers.map(|peer| admit(&table, peer).unwrap()).into();
        entries[0].connection.asked(false);
        assert!(
            admit(&table, "192.0.2.4:1").is_none(),
            "all are too recent to close"
        );
        grow_old();
        let newest = admit(&table, "192.0.2.4:1").unwrap();
        assert!(!newest.connection.is_reserve);
        let shed: Vec<bool> = entries.iter().map(is_shed).collect();
        assert_eq!(shed, [false, true, false]);
        assert_eq!(lock(&table.open).connections.len(), 3);
    }

    #[test]
    fn busy_connections_leave_only_the_reserve_and_then_none_is_admitted() {
        let table = table(2, 1, 9);
        let kept: Vec<Entry> = (0..2)
            .map(|n| working(&table, &format!("192.0.2.{n}:1")).unwrap())
            .collect();
        let reserve = admit(&table, "192.0.2.8:1").unwrap();
        assert!(reserve.connection.is_reserve);
        reserve.connection.asked(false);
        assert!(admit(&table, "192.0.2.9:1").is_none());
        assert!(
            admit(&table, "192.0.2.9:1").is_none(),
            "no second search at once"
        );
        drop(reserve);
        assert!(admit(&table, "192.0.2.9:1").is_some());
        drop(kept);
        assert_eq!(lock(&table.open).of_reserve, 0);
        assert!(lock(&table.open).per_address.is_empty());
    }

    #[test]
    fn an_address_has_a_limit_and_a_proxy_has_none() {
        let table = table(99, 9, 2);
        let mut kept: Vec<Entry> = Vec::new();
        for _ in 0..2 {
            kept.push(working(&table, "[2001:db8::1]:1").unwrap());
        }
        assert!(admit(&table, "[2001:db8::2]:1").is_none(), "the same /64");
        assert!(admit(&table, "[2001:db8:0:1::1]:1").is_some());
        for _ in 0..9 {
            kept.push(working(&table, "10.1.2.3:1").unwrap());
        }
        // An address at its limit replaces its own idle connections.
        let first = admit(&table, "192.0.2.1:1").unwrap();
        let second = admit(&table, "192.0.2.1:2").unwrap();
        grow_old();
        let third = admit(&table, "192.0.2.1:3").unwrap();
        assert_eq!([&first, &second, &third].map(is_shed), [true, false, false]);
    }
}
