//! The client address of a request: the connection's peer or, if the peer is a trusted proxy, the address that
//! the proxy names.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use axum::http::{HeaderMap, header};
use ipnet::IpNet;

const X_FORWARDED_FOR: &str = "x-forwarded-for";
/// Headers that show that a proxy forwarded the request.
const PROXIED: [&str; 4] = ["forwarded", X_FORWARDED_FOR, "x-real-ip", "via"];

/// The client's address. `None` if the peer is a trusted proxy, or a program on its machine, and names no client.
/// Reads the named addresses from right to left, and trusts each one that a trusted proxy added.
pub(super) fn client(peer: SocketAddr, headers: &HeaderMap, proxies: &[IpNet]) -> Option<IpAddr> {
    let peer = peer.ip().to_canonical();
    if !is_within(proxies, peer) {
        return Some(peer);
    }
    let mut named = named(headers);
    loop {
        // An unreadable entry makes all entries to its left untrustworthy.
        let address = named.pop()??.to_canonical();
        if named.is_empty() || !is_within(proxies, address) {
            return Some(address);
        }
    }
}

/// Whether the request comes directly from this machine, not through a proxy on it.
pub(super) fn is_local(peer: SocketAddr, headers: &HeaderMap) -> bool {
    peer.ip().to_canonical().is_loopback()
        && !PROXIED.iter().any(|name| headers.contains_key(*name))
}

/// Whether one of the networks contains the address. IPv4-mapped IPv6 addresses count as IPv4.
pub(super) fn is_within(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

/// The address to which per-address limits apply: of IPv6 the /64, since one client usually controls all of it.
pub(super) fn share(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(
            address.to_bits() & !u128::from(u64::MAX),
        )),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The addresses in `X-Forwarded-For` or else in `Forwarded`, from the client to the last proxy but one.
fn named(headers: &HeaderMap) -> Vec<Option<IpAddr>> {
    let listed = |name: &str| -> Vec<&str> {
        let values = headers.get_all(name).into_iter();
        values
            .flat_map(|value| value.to_str().unwrap_or_default().split(','))
            .collect()
    };
    let by_common = listed(X_FORWARDED_FOR);
    if !by_common.is_empty() {
        return by_common.into_iter().map(parse).collect();
    }
    let by_standard = listed(header::FORWARDED.as_str());
    let node = |element: &str| {
        let pairs = element.split(';').filter_map(|pair| pair.split_once('='));
        let mut nodes = pairs.filter(|(name, _)| name.trim().eq_ignore_ascii_case("for"));
        nodes.next().and_then(|(_, node)| parse(node))
    };
    by_standard.into_iter().map(node).collect()
}

/// Parses an address as proxies write it: plain, quoted, in brackets, or with a port.
fn parse(text: &str) -> Option<IpAddr> {
    let text = text.trim().trim_matches('"');
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let alone = bare.parse().ok();
    alone.or_else(|| Some(text.parse::<SocketAddr>().ok()?.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(peer: &str, headers: &[(&'static str, &str)]) -> Option<String> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let proxies = [
            "10.0.0.0/8".parse().unwrap(),
            "127.0.0.0/8".parse().unwrap(),
        ];
        client(peer.parse().unwrap(), &map, &proxies).map(|address| address.to_string())
    }

    #[test]
    fn only_trusted_proxies_can_name_the_client() {
        let forwarded = [("x-forwarded-for", "203.0.113.9")];
        assert_eq!(asked("198.51.100.1:5", &forwarded).unwrap(), "198.51.100.1");
        assert_eq!(asked("10.0.0.1:5", &forwarded).unwrap(), "203.0.113.9");
        assert_eq!(
            asked("[::ffff:10.0.0.1]:5", &forwarded).unwrap(),
            "203.0.113.9"
        );
    }

    #[test]
    fn the_rightmost_untrusted_address_is_the_client() {
        for (value, client) in [
            ("1.1.1.1, 203.0.113.9, 10.0.0.7", "203.0.113.9"),
            ("203.0.113.9:4711", "203.0.113.9"),
            ("[2001:db8::1]:4711", "2001:db8::1"),
            ("2001:db8::1", "2001:db8::1"),
            ("10.0.0.8, 10.0.0.7", "10.0.0.8"),
        ] {
            let found = asked("10.0.0.1:5", &[("x-forwarded-for", value)]);
            assert_eq!(found.as_deref(), Some(client), "{value}");
        }
        let lines = [
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "203.0.113.9"),
        ];
        assert_eq!(asked("10.0.0.1:5", &lines).unwrap(), "203.0.113.9");
    }

    #[test]
    fn the_forwarded_header_is_read() {
        let value =
            r#"for=1.1.1.1;proto=https, For="[2001:db8::1]:4711";by=10.0.0.2, for=10.0.0.3"#;
        assert_eq!(
            asked("10.0.0.1:5", &[("forwarded", value)]).unwrap(),
            "2001:db8::1"
        );
    }

    #[test]
    fn a_proxy_that_hides_its_clients_names_none() {
        assert_eq!(asked("127.0.0.1:5", &[]), None);
        assert_eq!(asked("10.0.0.1:5", &[("forwarded", "for=_hidden")]), None);
        assert_eq!(
            asked("10.0.0.1:5", &[("x-forwarded-for", "1.1.1.1, unknown")]),
            None
        );
    }

    #[test]
    fn addresses_in_one_ipv6_64_share_limits() {
        let share = |text: &str| share(text.parse().unwrap()).to_string();
        assert_eq!(share("2001:db8:1:2:3::4"), "2001:db8:1:2::");
        assert_eq!(share("192.0.2.7"), "192.0.2.7");
        assert_eq!(share("::ffff:192.0.2.7"), "192.0.2.7");
    }

    #[test]
    fn a_request_through_a_local_proxy_is_not_local() {
        let local = |headers: &HeaderMap| is_local("127.0.0.1:5".parse().unwrap(), headers);
        assert!(local(&HeaderMap::new()));
        let mut headers = HeaderMap::new();
        headers.insert("x-forwarded-for", "127.0.0.1".parse().unwrap());
        assert!(!local(&headers));
        assert!(!is_local("192.0.2.1:5".parse().unwrap(), &HeaderMap::new()));
    }
}
