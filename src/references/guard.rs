//! Which URLs and addresses a client can make this gateway connect to: only the public internet. Rejects every address
//! that the IANA special-purpose registries do not list as globally reachable, and every IPv6 address with an embedded
//! IPv4 address, which a translator on the way would unpack.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use ipnet::{Ipv4Net, Ipv6Net};
use url::{Host, Url};

use crate::config;

const HTTPS_PORT: u16 = 443;
const URL_BYTES_MAX: usize = 8192;

/// Decides what clients may make this gateway connect to.
#[derive(Clone, Debug)]
pub struct Guard {
    policy: AddressPolicy,
    /// Host and port of this gateway as clients know it. It must not call itself.
    own: Option<(String, u16)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AddressPolicy {
    /// The public internet, on port 443.
    Public,
    /// Like `Public`, plus this one address and port: a test server that replaces a public one.
    PublicAnd(SocketAddr),
    /// Every address, on any port: the operator allows private networks.
    Everything,
}

/// Why a URL is rejected before any request. The texts are for the client and reveal nothing about this gateway's
/// network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It cannot be parsed.
    #[error("must be a valid https:// URL")]
    Invalid,
    /// It is refused before it is parsed.
    #[error("must be at most {URL_BYTES_MAX} bytes long")]
    TooLong,
    /// It has another scheme.
    #[error("must be an https:// URL")]
    Scheme,
    /// A public image needs neither.
    #[error("must not hold a user name or password")]
    UserInfo,
    /// It has another port.
    #[error("must use port {HTTPS_PORT}")]
    Port,
    /// The host is an address that is not public, or a name of local networks.
    #[error("must name a public host")]
    Host,
    /// The gateway fetches nothing from itself: it knows its own links.
    #[error("must not be a URL of this gateway, other than that of an upload or image")]
    Own,
}

/// An address that no client may make this gateway connect to. For the log only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not an address of the public internet")]
pub struct AddressRefused(pub IpAddr);

impl Guard {
    /// `public_url` is the prefix of this gateway's own links.
    pub fn new(config: &config::References, public_url: &str) -> Self {
        let policy = if config.allow_private_networks {
            AddressPolicy::Everything
        } else {
            AddressPolicy::Public
        };
        let own = Url::parse(public_url).ok().as_ref().and_then(authority);
        Self { policy, own }
    }

    /// Permits one more address, unless all are permitted.
    pub(super) fn with_exempt(mut self, exempt: SocketAddr) -> Self {
        if self.policy == AddressPolicy::Public {
            self.policy = AddressPolicy::PublicAnd(exempt);
        }
        self
    }

    /// Parses a client's URL and checks all that can be checked without the network.
    pub fn check_url(&self, url: &str) -> Result<Url, UrlError> {
        if url.len() > URL_BYTES_MAX {
            return Err(UrlError::TooLong);
        }
        let url = Url::parse(url).map_err(|_unreadable| UrlError::Invalid)?;
        self.check_parsed_url(&url)?;
        Ok(url)
    }

    /// Like [`Guard::check_url`], for a URL that is already parsed or comes from a redirect.
    pub fn check_parsed_url(&self, url: &Url) -> Result<(), UrlError> {
        if url.as_str().len() > URL_BYTES_MAX {
            return Err(UrlError::TooLong);
        }
        if url.scheme() != "https" {
            return Err(UrlError::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(UrlError::UserInfo);
        }
        if !self.policy.permits_port(url.port().unwrap_or(HTTPS_PORT)) {
            return Err(UrlError::Port);
        }
        if self.own.is_some() && authority(url) == self.own {
            return Err(UrlError::Own);
        }
        // However an address is written, parsing has turned it into a literal.
        let permitted = match url.host() {
            Some(Host::Ipv4(address)) => self.policy.permits(address.into()),
            Some(Host::Ipv6(address)) => self.policy.permits(address.into()),
            Some(Host::Domain(name)) => self.policy.permits_name(name),
            None => false,
        };
        if permitted {
            Ok(())
        } else {
            Err(UrlError::Host)
        }
    }

    /// Checks an address before or after connecting to it: it must be public and not this machine's own.
    pub fn check_address(&self, address: IpAddr) -> Result<(), AddressRefused> {
        let exempt = match self.policy {
            AddressPolicy::Public => false,
            AddressPolicy::PublicAnd(exempt) => address == exempt.ip(),
            AddressPolicy::Everything => true,
        };
        if exempt || is_global(address) && !is_own(address) {
            Ok(())
        } else {
            Err(AddressRefused(address))
        }
    }
}

impl AddressPolicy {
    /// Ignores this machine's own addresses: an answer to the client must not reveal them.
    fn permits(self, address: IpAddr) -> bool {
        match self {
            Self::Public => is_global(address),
            Self::PublicAnd(exempt) => address == exempt.ip() || is_global(address),
            Self::Everything => true,
        }
    }

    /// Rejects only names that never mean a public host. Resolving decides the others.
    fn permits_name(self, name: &str) -> bool {
        let name = name.strip_suffix('.').unwrap_or(name);
        let last = name.rsplit('.').next().unwrap_or(name);
        self == Self::Everything || !matches!(last, "" | "localhost" | "local" | "internal")
    }

    fn permits_port(self, port: u16) -> bool {
        match self {
            Self::Public => port == HTTPS_PORT,
            Self::PublicAnd(exempt) => port == HTTPS_PORT || port == exempt.port(),
            Self::Everything => port != 0,
        }
    }
}

/// The host and port of a URL. Port 80 counts as 443, because a proxy in front of this gateway may serve both.
fn authority(url: &Url) -> Option<(String, u16)> {
    let host = url.host_str()?;
    let host = host.strip_suffix('.').unwrap_or(host).to_owned();
    let port = url.port_or_known_default()?;
    Some((host, if port == 80 { HTTPS_PORT } else { port }))
}

fn is_global(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_global_v4(address),
        IpAddr::V6(address) => is_global_v6(address),
    }
}

fn is_global_v4(address: Ipv4Addr) -> bool {
    !NOT_GLOBAL_V4.iter().any(|net| net.contains(&address))
}

fn is_global_v6(address: Ipv6Addr) -> bool {
    UNICAST_V6.contains(&address)
        && !NOT_GLOBAL_V6.iter().any(|net| net.contains(&address))
        && !is_isatap(address)
}

/// ISATAP (RFC 5214) embeds an IPv4 address in the last 32 bits, below any prefix.
fn is_isatap(address: Ipv6Addr) -> bool {
    let [.., high, low, _, _] = address.segments();
    // The universal and group bits may be set or not.
    high & !0x0300 == 0 && low == 0x5efe
}

/// Whether this is an address of this machine: a packet to it would leave from the same address. Connecting a UDP
/// socket consults the routing table and sends nothing.
fn is_own(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let local_address = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, HTTPS_PORT))?;
        socket.local_addr()
    });
    local_address.is_ok_and(|local| local.ip() == address)
}

const fn v4(a: u8, b: u8, c: u8, d: u8, prefix_length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), prefix_length)
}

const fn v6(high: [u16; 3], prefix_length: u8) -> Ipv6Net {
    let [a, b, c] = high;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), prefix_length)
}

const NOT_GLOBAL_V4: [Ipv4Net; 16] = [
    v4(0, 0, 0, 0, 8),        // this network
    v4(10, 0, 0, 0, 8),       // private
    v4(100, 64, 0, 0, 10),    // carriers' own; some clouds' metadata
    v4(127, 0, 0, 0, 8),      // loopback
    v4(168, 63, 129, 16, 32), // Azure's virtual host: public by number only
    v4(169, 254, 0, 0, 16),   // link-local; most clouds' metadata
    v4(172, 16, 0, 0, 12),    // private
    v4(192, 0, 0, 0, 24),     // protocol assignments
    v4(192, 0, 2, 0, 24),     // documentation
    v4(192, 88, 99, 0, 24),   // relays from IPv6, withdrawn
    v4(192, 168, 0, 0, 16),   // private
    v4(198, 18, 0, 0, 15),    // benchmarks
    v4(198, 51, 100, 0, 24),  // documentation
    v4(203, 0, 113, 0, 24),   // documentation
    v4(224, 0, 0, 0, 4),      // multicast
    v4(240, 0, 0, 0, 4),      // reserved; broadcast
];

// All IPv6 space allocated for unicast on the internet. It excludes ::, ::1, ::a.b.c.d,
// ::ffff:a.b.c.d, both translation prefixes 64:ff9b, 100::/64, 5f00::/16, fc00::/7, fe80::/10, fec0::/10 and ff00::/8.
const UNICAST_V6: Ipv6Net = v6([0x2000, 0, 0], 3);

// The parts of it that are not globally reachable.
const NOT_GLOBAL_V6: [Ipv6Net; 4] = [
    v6([0x2001, 0, 0], 23),     // protocol assignments: Teredo, benchmarks, ORCHID
    v6([0x2001, 0xdb8, 0], 32), // documentation
    v6([0x2002, 0, 0], 16),     // 6to4: an IPv4 address inside
    v6([0x3fff, 0, 0], 20),     // documentation
];

#[cfg(test)]
mod tests {
    use super::*;

    const REFUSED: &str = "
        0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.100.100.200 100.127.255.255
        127.0.0.1 127.255.255.255 168.63.129.16 169.254.0.1 169.254.169.254 172.16.0.0 172.31.255.255
        192.0.0.0 192.0.0.192 192.0.0.255 192.0.2.1 192.88.99.1 192.168.0.0 192.168.255.255
        198.18.0.0 198.19.255.255 198.51.100.7 203.0.113.7 224.0.0.1 239.255.255.255 240.0.0.1
        255.255.255.255
        :: ::1 ::127.0.0.1 ::8.8.8.8 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254 ::ffff:8.8.8.8
        ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1 64:ff9b:1:ffff::a00:1
        100::1 100:0:0:1::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:0:0:0:0:0:80ff:fffe 2001:2::1
        2001:10::1 2001:1f:ffff::1 2001:20::1 2001:2f:ffff::1 2001:30::1 2001:1ff:ffff::1
        2001:db8::1 2001:db8:ffff::1 2002:7f00:1:: 2002:808:808::1 3fff::1 3fff:fff:ffff::1
        5f00::1 5f00:ffff::1 4000::1 8000::1 fc00::1 fd00:ec2::254 fd7a:115c:a1e0::1 fdff::1
        fe80::1 fe80::5efe:10.0.0.1 febf::1 fec0::1 feff::1 ff00::1 ff02::1 ffff::1
        2606:4700::5efe:7f00:1 2606:4700::200:5efe:808:808 2606:4700:0:0:100:5efe:a00:1
        2606:4700:0:0:300:5efe:a00:1";

    const PERMITTED: &str = "
        1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0
        168.63.129.15 168.63.129.17 169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0 192.0.1.0
        192.0.3.0 192.88.98.255 192.88.100.0 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0
        198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255
        2000::1 2001:200::1 2001:db7::1 2001:db9::1 2001:4860:4860::8888 2003::1 2606:4700::1111
        2a00:1450:4001::1 3ffe::1 3fff:1000::1 2606:4700::5eff:7f00:1 2606:4700::400:5efe:808:808";

    fn addresses(list: &str) -> impl Iterator<Item = IpAddr> {
        list.split_whitespace()
            .map(|address| address.parse().expect(address))
    }

    fn guard(policy: AddressPolicy) -> Guard {
        let own = Some(("own.example".to_owned(), HTTPS_PORT));
        Guard { policy, own }
    }

    fn refusal(url: &str) -> Option<UrlError> {
        guard(AddressPolicy::Public).check_url(url).err()
    }

    #[test]
    fn only_global_addresses_are_permitted() {
        for address in addresses(REFUSED) {
            assert!(
                !AddressPolicy::Public.permits(address),
                "{address} is permitted"
            );
            let refused = guard(AddressPolicy::Public).check_address(address);
            assert_eq!(refused, Err(AddressRefused(address)));
        }
        for address in addresses(PERMITTED) {
            assert!(
                AddressPolicy::Public.permits(address),
                "{address} is refused"
            );
            assert_eq!(guard(AddressPolicy::Public).check_address(address), Ok(()));
        }
    }

    #[test]
    fn literal_addresses_in_urls_are_judged_like_resolved_ones() {
        for (list, expected) in [(REFUSED, Some(UrlError::Host)), (PERMITTED, None)] {
            for address in addresses(list) {
                let host = match address {
                    IpAddr::V4(address) => address.to_string(),
                    IpAddr::V6(address) => format!("[{address}]"),
                };
                assert_eq!(
                    refusal(&format!("https://{host}/a.png")),
                    expected,
                    "{host}"
                );
            }
        }
    }

    #[test]
    fn an_address_of_this_machine_is_its_own() {
        assert!(is_own(Ipv4Addr::LOCALHOST.into()));
        assert!(!is_own(Ipv4Addr::new(192, 0, 2, 1).into()));
    }

    #[test]
    fn other_spellings_of_an_address_hide_nothing() {
        for host in [
            "2130706433",
            "0x7f000001",
            "0X7F.0.0.1",
            "017700000001",
            "0177.0.0.1",
            "127.1",
            "127.0.1",
            "0",
            "0x0",
            "0.0.0.0",
            "127.0.0.1.",
            "①②⑦.⓪.⓪.①",
            "127。0。0。1",
            "１２７．０．０．１",
            "%31%32%37.0.0.1",
            "127%2e0%2e0%2e1",
            "1\t2\n7.0.0\r.1",
            "0xa9fea9fe",
            "2852039166",
            "[::ffff:7f00:1]",
            "[0:0:0:0:0:ffff:127.0.0.1]",
            "[0000:0000:0000::0001]",
        ] {
            assert_eq!(
                refusal(&format!("https://{host}/a.png")),
                Some(UrlError::Host),
                "{host}"
            );
        }
    }

    #[test]
    fn names_that_are_never_public_are_refused() {
        for host in [
            "localhost",
            "localhost.",
            "LOCALHOST",
            "ⓛocalhost",
            "a.localhost",
            "%6cocalhost",
            "metadata.google.internal",
            "metadata.google.internal.",
            "printer.local",
            ".",
        ] {
            assert_eq!(
                refusal(&format!("https://{host}/a.png")),
                Some(UrlError::Host),
                "{host}"
            );
        }
    }

    #[test]
    fn a_host_is_read_where_the_client_connects() {
        for (url, expected) in [
            ("https://user:pw@example.com/", UrlError::UserInfo),
            ("https://user@example.com/", UrlError::UserInfo),
            ("https://:pw@example.com/", UrlError::UserInfo),
            ("https://example.com@127.0.0.1/", UrlError::UserInfo),
            ("https://127.0.0.1#@example.com/", UrlError::Host),
            ("https://127.0.0.1\\@example.com/", UrlError::Host),
            ("https://127.0.0.1?@example.com/", UrlError::Host),
            ("https:///127.0.0.1/", UrlError::Host),
            ("https:127.0.0.1", UrlError::Host),
            ("https:\\\\127.0.0.1", UrlError::Host),
            (" \t\nhttps://127.0.0.1 ", UrlError::Host),
            ("h\ttt\nps://127.0.0.1/", UrlError::Host),
        ] {
            assert_eq!(refusal(url), Some(expected), "{url:?}");
        }
    }

    #[test]
    fn schemes_and_ports_other_than_https_are_refused() {
        for url in [
            "http://example.com/",
            "file:///etc/passwd",
            "gopher://example.com/",
            "data:image/png,x",
            "ftp://example.com/",
            "javascript:1",
            "ws://example.com",
            "unix:/run/x",
            "httpss://a.b/",
        ] {
            assert_eq!(refusal(url), Some(UrlError::Scheme), "{url}");
        }
        for port in [0, 1, 22, 80, 442, 444, 6379, 8443, 65535] {
            assert_eq!(
                refusal(&format!("https://example.com:{port}/")),
                Some(UrlError::Port)
            );
        }
        for url in [
            "",
            "example.com/a.png",
            "/a.png",
            "//example.com/a.png",
            "https://",
            "https://:443/",
            "https://[fe80::1%25eth0]/",
            "https://[::1",
            "https://256.1.1.1/",
            "https://1.2.3.4.5/",
            "https://exam ple.com/",
            "https://example.com:65536/",
            "https://example.com\0.evil/",
        ] {
            assert_eq!(refusal(url), Some(UrlError::Invalid), "{url:?}");
        }
    }

    #[test]
    fn ordinary_urls_are_accepted() {
        for url in [
            "https://example.com/a.png",
            "https://example.com:443/a.png?sig=%2F+x#top",
            "HTTPS://EXAMPLE.COM",
            "https://bücher.example/ä.png",
            "https://example.com./a.png",
            "https://notlocalhost/",
            "https://localhost.example.com/",
            "https://8.8.8.8/",
        ] {
            assert_eq!(refusal(url), None, "{url}");
        }
        let long = format!("https://example.com/{}", "a".repeat(URL_BYTES_MAX));
        assert_eq!(refusal(&long), Some(UrlError::TooLong));
        let swelling = format!("https://example.com/{}", "ä".repeat(URL_BYTES_MAX / 3));
        assert_eq!(refusal(&swelling), Some(UrlError::TooLong));
    }

    #[test]
    fn an_operator_can_allow_everything_but_plain_http() {
        for url in [
            "https://127.0.0.1:9000/a",
            "https://localhost/",
            "https://[::1]:8443/",
        ] {
            assert!(
                guard(AddressPolicy::Everything).check_url(url).is_ok(),
                "{url}"
            );
        }
        assert_eq!(
            guard(AddressPolicy::Everything).check_url("http://127.0.0.1/"),
            Err(UrlError::Scheme)
        );
        assert_eq!(
            guard(AddressPolicy::Everything).check_url("https://10.0.0.1:0/"),
            Err(UrlError::Port)
        );
        assert_eq!(
            guard(AddressPolicy::Everything).check_address(Ipv4Addr::LOCALHOST.into()),
            Ok(())
        );
    }

    #[test]
    fn an_exempt_server_is_the_only_exception() {
        let guard = guard(AddressPolicy::PublicAnd(SocketAddr::from((
            [127, 0, 0, 1],
            9000,
        ))));
        assert_eq!(guard.check_address(Ipv4Addr::LOCALHOST.into()), Ok(()));
        assert!(
            guard
                .check_address(Ipv4Addr::new(127, 0, 0, 2).into())
                .is_err()
        );
        assert!(guard.check_url("https://example.com:9000/").is_ok());
        assert_eq!(
            guard.check_url("https://example.com:9001/"),
            Err(UrlError::Port)
        );
        assert_eq!(
            guard.check_url("https://127.0.0.2:9000/"),
            Err(UrlError::Host)
        );
    }

    #[test]
    fn the_gateway_itself_is_known_by_host_and_port() {
        for policy in [AddressPolicy::Public, AddressPolicy::Everything] {
            for url in [
                "https://own.example/",
                "https://OWN.example.:443/f/image/x",
                "https://own.example/v1/images/files/a",
            ] {
                let refused = guard(policy).check_url(url);
                assert_eq!(refused, Err(UrlError::Own), "{url}");
            }
            let other = guard(policy).check_url("https://own.example.com/");
            assert!(other.is_ok());
        }
        let elsewhere = guard(AddressPolicy::Everything).check_url("https://own.example:8443/");
        assert!(elsewhere.is_ok());
        for (public_url, url) in [
            ("http://[2606:4700::1]:80", "https://[2606:4700::1]/"),
            ("http://8.8.8.8/easel", "https://0x08080808/"),
            (
                "https://bücher.example:8443/",
                "https://xn--bcher-kva.example:8443/",
            ),
        ] {
            let own = Url::parse(public_url).ok().as_ref().and_then(authority);
            let guard = Guard {
                policy: AddressPolicy::Everything,
                own,
            };
            assert_eq!(guard.check_url(url), Err(UrlError::Own), "{url}");
        }
    }
}
