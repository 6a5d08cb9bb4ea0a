//! Hostile answers of a name server: every answer that leads off the public internet, and those that never end.

use std::{net::IpAddr, time::Instant};

use easel::references::FetchFault;

use super::{
    assert_took,
    dns::{Known, known},
    read,
    refused::refused_address,
    vectors::REFUSED,
    web::{Web, references},
};

const PUBLIC: &str = "127.0.0.1"; // the exempt server

#[tokio::test]
async fn a_name_with_any_refused_address_is_refused() {
    for (answers, refused) in [
        (vec!["10.0.0.1"], "10.0.0.1"),
        (vec![PUBLIC, "192.168.0.1"], "192.168.0.1"),
        (vec!["192.168.0.1", PUBLIC], "192.168.0.1"),
        (vec![PUBLIC, "fd00::1"], "fd00::1"),
        (vec![PUBLIC, "::ffff:127.0.0.1"], "::ffff:127.0.0.1"),
        (vec!["64:ff9b::808:808", PUBLIC], "64:ff9b::808:808"),
        ([vec![PUBLIC; 1000], vec!["0.0.0.0"]].concat(), "0.0.0.0"),
    ] {
        let web = Web::start_with(move |_, _| known(&answers)).await;
        let fault = web.fault("https://public.test/image").await;
        let refused = Some(refused.parse().unwrap());
        assert_eq!(refused_address(&fault), refused, "{fault:?}");
        assert_eq!(web.connections(), 0);
    }
}

/// Every refused address, as the answer for a name: requested directly, and after a redirect.
#[tokio::test]
async fn a_name_leads_to_no_refused_address() {
    let listed: Vec<&str> = REFUSED
        .split_whitespace()
        .filter(|address| *address != PUBLIC)
        .collect();
    let addresses = listed.clone();
    let web = Web::start_with(move |name, _| {
        let number = name
            .strip_prefix('n')
            .and_then(|name| name.split('.').next());
        let number = number.and_then(|number| number.parse::<usize>().ok());
        known(&[number.map_or(PUBLIC, |number| addresses[number])])
    })
    .await;
    let port = web.address.port();
    for (number, address) in listed.iter().enumerate() {
        let refused: IpAddr = address.parse().unwrap();
        for url in [
            format!("https://n{number}.test/"),
            format!("https://public.test/to?https://n{number}.test:{port}/"),
        ] {
            let fault = web.fault(&url).await;
            assert_eq!(refused_address(&fault), Some(refused), "{url}: {fault:?}");
        }
    }
    assert_eq!(web.connections(), listed.len());
}

#[tokio::test]
async fn an_alias_is_followed_to_its_end() {
    let web = Web::start_with(|name, _| match name {
        "private-at-once.test" => {
            Known::Alias(vec!["a.test", "b.test"], vec!["10.0.0.1".parse().unwrap()])
        }
        "private-later.test" => Known::Alias(vec!["c.test"], vec![]),
        "c.test" => known(&["127.0.0.1", "fd00::1"]),
        "public.test" => Known::Alias(vec!["d.test"], vec!["127.0.0.1".parse().unwrap()]),
        "circle.test" => Known::Alias(vec!["circle.test"], vec![]),
        _ => Known::NoSuchName,
    })
    .await;
    for (name, refused) in [
        ("private-at-once", "10.0.0.1"),
        ("private-later", "fd00::1"),
    ] {
        let fault = web.fault(&format!("https://{name}.test/")).await;
        let refused = Some(refused.parse().unwrap());
        assert_eq!(refused_address(&fault), refused, "{name}: {fault:?}");
    }
    let fault = web.fault("https://circle.test/").await;
    assert!(matches!(fault, FetchFault::Request(_)), "{fault:?}");
    assert_eq!(web.connections(), 0);
    read(web.fetch("https://public.test/image").await)
        .await
        .unwrap();
}

/// A second query would get a refused address: the connection goes to the address that was checked.
#[tokio::test]
async fn a_name_is_asked_for_once_a_hop() {
    let web = Web::start_with(|_, nth| known(&[if nth == 0 { PUBLIC } else { "127.0.0.2" }])).await;
    read(web.fetch("https://public.test/image").await)
        .await
        .unwrap();
    assert_eq!(web.name_server.asked("public.test"), [1, 1]);

    let web = Web::start_with(|_, nth| known(&[if nth == 0 { PUBLIC } else { "127.0.0.2" }])).await;
    let fault = web.fault("https://public.test/redirect/1").await;
    let refused = Some("127.0.0.2".parse().unwrap());
    assert_eq!(refused_address(&fault), refused, "{fault:?}");
    assert_eq!(web.name_server.asked("public.test"), [2, 2]);
    assert_eq!((web.connections(), web.heads().len()), (1, 1));
}

#[tokio::test]
async fn a_thousand_addresses_are_handled() {
    let web = Web::start_with(|_, _| known(&[PUBLIC; 1000])).await;
    read(web.fetch("https://public.test/image").await)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_unresolvable_name_cannot_be_fetched() {
    let web = Web::start_with(|name, _| match name {
        "nothing.test" => known(&[]),
        _ => Known::NoSuchName,
    })
    .await;
    for name in ["unknown.test", "nothing.test"] {
        let fault = web.fault(&format!("https://{name}/")).await;
        assert!(matches!(fault, FetchFault::Request(_)), "{name}: {fault:?}");
    }
    assert_eq!(web.connections(), 0);
}

#[tokio::test]
async fn a_name_server_that_stalls_is_given_up() {
    let mut web = Web::start().await;
    web.fetcher = web.fetcher(&references("connect_timeout_ms = 400"), web.address);
    let begin = Instant::now();
    let fault = web.fault("https://stalled.test/").await;
    assert!(matches!(fault, FetchFault::Request(_)), "{fault:?}");
    assert_took("a name", begin, 300);
}
