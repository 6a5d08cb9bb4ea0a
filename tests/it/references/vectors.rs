//! Spellings of hosts and addresses that must be refused, each requested directly and by a redirect. `names` tests the
//! addresses as answers of a name server.

use easel::references::{FetchFault, UrlError};
use url::Url;

use super::web::Web;

/// One address of every range, and its edges.
pub(super) const REFUSED: &str = "
    0.0.0.0 0.255.255.255 10.0.0.0 10.255.255.255 100.64.0.0 100.100.100.200 100.127.255.255 127.0.0.1
    127.255.255.255 168.63.129.16 169.254.0.0 169.254.169.254 169.254.255.255 172.16.0.0 172.31.255.255
    192.0.0.0 192.0.0.255 192.0.2.0 192.0.2.255 192.88.99.0 192.88.99.255 192.168.0.0 192.168.255.255
    198.18.0.0 198.19.255.255 198.51.100.0 198.51.100.255 203.0.113.0 203.0.113.255 224.0.0.0
    239.255.255.255 240.0.0.0 255.255.255.255
    :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 ::ffff:169.254.169.254
    64:ff9b::7f00:1 64:ff9b::a9fe:a9fe 64:ff9b:1::7f00:1 64:ff9b:1:fffe::a00:1 2002:7f00:1:: 2002:a00:1::1
    2001:0:4136:e378:8000:63bf:80ff:fffe 2001:0:4136:e378:8000:63bf:3fff:fdd2
    fe80::5efe:7f00:1 2606:4700::5efe:7f00:1 2606:4700::200:5efe:a00:1
    fe80::1 febf:ffff::1 fc00::1 fd00:ec2::254 fd7a:115c:a1e0::1 fdff:ffff::1 ff00::1 ff02::1 ffff::1
    100::1 2001:db8::1 2001:db8:ffff::1 3fff::1 3fff:fff::1 5f00::1 5f00:ffff::1";

/// Hosts as clients may write them. Spellings of 127.0.0.1 appear here as 127.0.0.2, because the former is the exempt
/// server that plays a public one; `src/references/guard.rs` tests the former, too.
const SPELLINGS: &[&str] = &[
    "2130706434",
    "0x7f000002",
    "0X7F.0.0.2",
    "017700000002",
    "0177.0.0.2",
    "127.2",
    "127.0.2",
    "0",
    "0x0",
    "①②⑦.⓪.⓪.②",
    "127。0。0。2",
    "１２７．０．０．２",
    "%31%32%37.0.0.2",
    "127%2e0%2e0%2e2",
    "127.0.0.2.",
    "[::ffff:7f00:2]",
    "[0:0:0:0:0:ffff:127.0.0.2]",
    "localhost",
    "localhost.",
    "LOCALHOST",
    "ⓛocalhost",
    "a.localhost",
    "metadata.google.internal",
    "metadata.google.internal.",
    "printer.local",
];

fn hosts() -> impl Iterator<Item = String> {
    let addresses = REFUSED.split_whitespace();
    let addresses = addresses.filter(|address| *address != "127.0.0.1");
    let literals = addresses.map(|address| {
        if address.contains(':') {
            format!("[{address}]")
        } else {
            address.to_owned()
        }
    });
    literals.chain(SPELLINGS.iter().map(|host| (*host).to_owned()))
}

#[tokio::test]
async fn no_spelling_of_a_refused_host_is_requested() {
    let web = Web::start().await;
    let port = web.address.port();
    for host in hosts() {
        for url in [
            format!("https://{host}/latest/meta-data/"),
            format!("https://{host}:{port}/image"),
        ] {
            let refused = web.fetcher.check_url(&url);
            assert_eq!(refused, Err(UrlError::Host), "{url}");
            // The port of the server, which really exists, is not added: the second URL already has it.
            let (url, allowance) = (Url::parse(&url).unwrap(), web.fetcher.allowance());
            let fetched = web.fetcher.fetch(&url, &allowance).await;
            let fault = fetched.map(drop).unwrap_err();
            assert!(
                format!("{fault:?}").contains("Url(Host)"),
                "{url}: {fault:?}"
            );
        }
    }
    assert_eq!(web.connections(), 0);
    let asked = web.name_server.asked("metadata.google.internal");
    assert_eq!(asked, [0, 0]);
}

#[tokio::test]
async fn no_redirect_leads_to_a_refused_host() {
    let web = Web::start().await;
    let mut asked = 0;
    for host in hosts() {
        // A header has no other characters; a server sends them unchanged.
        let url = format!("https://public.test/to?https://{host}/image");
        let fault = web.fault(&url).await;
        assert!(
            matches!(fault, FetchFault::Url(UrlError::Host)),
            "{host}: {fault:?}"
        );
        asked += 1;
    }
    assert_eq!(web.connections(), asked);
}
