//! Every way of leaving the public internet, and of telling from outside what is behind a refusal.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::atomic::{AtomicUsize, Ordering},
};

use easel::references::{AddressRefused, FetchError, FetchFault, Fetcher, UrlError};
use tokio::net::TcpListener;
use url::Url;

use super::{
    COULD_NOT_BE_FETCHED, read,
    web::{BYTES_MAX, Web, references},
};

#[tokio::test]
async fn a_redirect_leads_nowhere_that_a_url_may_not() {
    let web = Web::start().await;
    let port = web.address.port();
    for (target, expected) in [
        ("http://public.test/picture".to_owned(), UrlError::Scheme),
        ("file:///etc/passwd".to_owned(), UrlError::Scheme),
        ("gopher://public.test/".to_owned(), UrlError::Scheme),
        ("data:image/png;base64,AAAA".to_owned(), UrlError::Scheme),
        (
            format!("https://u:p@public.test:{port}/picture"),
            UrlError::UserInfo,
        ),
        ("https://public.test:22/".to_owned(), UrlError::Port),
        ("https://public.test:6379/".to_owned(), UrlError::Port),
        ("https://10.0.0.1/".to_owned(), UrlError::Host),
        ("https://2130706434/".to_owned(), UrlError::Host),
        ("https://0x7f.2/".to_owned(), UrlError::Host),
        (
            "https://169.254.169.254/latest/meta-data/".to_owned(),
            UrlError::Host,
        ),
        ("https://[::1]/".to_owned(), UrlError::Host),
        ("https://[::ffff:10.0.0.1]/".to_owned(), UrlError::Host),
        ("https://[64:ff9b::7f00:1]/".to_owned(), UrlError::Host),
        ("//127.0.0.2/".to_owned(), UrlError::Host),
        ("https://localhost/".to_owned(), UrlError::Host),
    ] {
        let fault = web.fault(&format!("https://public.test/to?{target}")).await;
        assert!(
            matches!(fault, FetchFault::Url(error) if error == expected),
            "{target}: {fault:?}"
        );
    }
    let fault = web.fault("https://public.test/nowhere").await;
    assert!(matches!(fault, FetchFault::Location), "{fault:?}");
    let fault = web
        .fault(&format!(
            "https://public.test/to?https://private.test:{port}/"
        ))
        .await;
    assert_eq!(
        refused_address(&fault),
        Some(Ipv4Addr::new(10, 0, 0, 1).into())
    );
}

#[tokio::test]
async fn a_name_with_any_refused_address_is_refused() {
    let public = "127.0.0.1"; // the stand-in
    for (answers, refused) in [
        (vec!["10.0.0.1"], "10.0.0.1"),
        (vec![public, "192.168.0.1"], "192.168.0.1"),
        (vec![public, "fd00::1"], "fd00::1"),
        (
            vec![public, "8.8.8.8", "::ffff:127.0.0.1"],
            "::ffff:127.0.0.1",
        ),
        (vec!["64:ff9b::808:808", public], "64:ff9b::808:808"),
        ([vec![public; 1000], vec!["0.0.0.0"]].concat(), "0.0.0.0"),
    ] {
        let answers: Vec<IpAddr> = answers
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        let web = Web::start_with(move |_| Ok(answers.clone())).await;
        let fault = web.fault("https://public.test/picture").await;
        assert_eq!(
            refused_address(&fault),
            Some(refused.parse().unwrap()),
            "{fault:?}"
        );
        assert_eq!(web.connections(), 0);
    }
    let web = Web::start_with(move |_| Ok(vec![Ipv4Addr::LOCALHOST.into(); 1000])).await;
    read(web.fetch("https://public.test/picture").await)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_name_that_changes_its_address_is_refused_on_the_next_hop() {
    let asked = AtomicUsize::new(0);
    let web = Web::start_with(move |_| {
        let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
        Ok(vec![
            if first {
                [127, 0, 0, 1]
            } else {
                [127, 0, 0, 2]
            }
            .into(),
        ])
    })
    .await;
    let fault = web.fault("https://public.test/redirect/1").await;
    assert_eq!(
        refused_address(&fault),
        Some(Ipv4Addr::new(127, 0, 0, 2).into())
    );
    assert_eq!(web.heads().len(), 1);
}

/// The listener is really there, so that only the guard can keep the connection away.
#[tokio::test]
async fn nothing_connects_to_loopback() {
    let mut web = Web::start().await;
    let port = web.address.port();
    let elsewhere = SocketAddr::from(([192, 0, 2, 1], port));
    let fetcher = web.fetcher(&references(""), elsewhere);
    for host in ["public.test", "private.test"] {
        let url = Url::parse(&format!("https://{host}:{port}/picture")).unwrap();
        let error = fetcher.fetch(&url).await.map(|_| ()).unwrap_err();
        assert!(refused_address(&error).is_some(), "{error:?}");
    }
    for host in [
        "127.0.0.1",
        "127.1",
        "0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "localhost",
    ] {
        let url = Url::parse(&format!("https://{host}:{port}/picture")).unwrap();
        let error = fetcher.fetch(&url).await.map(|_| ()).unwrap_err();
        assert!(
            matches!(error, FetchError::Failed(FetchFault::Url(UrlError::Host))),
            "{error:?}"
        );
    }
    assert_eq!(web.connections(), 0);

    // The same, where the operator allows it.
    web.fetcher = web.fetcher(&references("allow_private_networks = true"), elsewhere);
    read(web.fetch("https://public.test/picture").await)
        .await
        .unwrap();
    read(web.fetch("https://127.1/picture").await)
        .await
        .unwrap();
}

#[tokio::test]
async fn a_server_must_prove_its_name() {
    let web = Web::start().await;
    let fault = web.fault("https://wrong-name.test/picture").await;
    assert!(
        chain(&fault).contains("NotValidForName"),
        "{}",
        chain(&fault)
    );

    let stranger = Web::start().await;
    let mut web = Web::start().await;
    web.address = stranger.address;
    web.fetcher = web.fetcher(&references(""), stranger.address);
    let fault = web.fault("https://public.test/picture").await;
    assert!(
        chain(&fault).contains("invalid peer certificate"),
        "{}",
        chain(&fault)
    );

    let expired = Web::start_until(2001, |_| Ok(vec![Ipv4Addr::LOCALHOST.into()])).await;
    let fault = expired.fault("https://public.test/picture").await;
    assert!(chain(&fault).contains("expired"), "{}", chain(&fault));
    assert_eq!(expired.heads(), [] as [&str; 0]);
}

#[tokio::test]
async fn refused_closed_and_silent_read_the_same() {
    let mut web = Web::start().await;
    web.fetcher = web.fetcher(&references("fetch_timeout_ms = 500"), web.address);
    let closed = {
        let unused = TcpListener::bind("127.0.0.1:0")
            .await
            .unwrap()
            .local_addr()
            .unwrap();
        let fetcher = web.fetcher(&references(""), unused);
        let url = format!("https://public.test:{}/", unused.port());
        fetcher
            .fetch(&Url::parse(&url).unwrap())
            .await
            .map(|_| ())
            .unwrap_err()
    };
    let mut texts = vec![closed.to_string()];
    for url in [
        "https://private.test/",
        "https://unknown.test/",
        "https://wrong-name.test/",
        "https://10.0.0.1/",
        "https://public.test/silent",
        "https://public.test/status?404",
        "https://public.test/loop",
        "https://public.test/to?https://10.0.0.1/",
    ] {
        let error = web.fetch(url).await.map(|_| ()).unwrap_err();
        assert!(
            !chain(&error).contains("https:"),
            "a URL in {}",
            chain(&error)
        );
        texts.push(error.to_string());
    }
    assert!(
        texts.iter().all(|text| text == COULD_NOT_BE_FETCHED),
        "{texts:?}"
    );
}

/// The system's resolver and certificates are at work; these don't know the server.
#[tokio::test]
async fn the_real_fetcher_resolves_and_trusts_as_the_system_does() {
    let web = Web::start().await;
    let config = references("allow_private_networks = true");
    let fetcher = Fetcher::new(&config, BYTES_MAX).unwrap();
    let url = format!("https://localhost:{}/picture", web.address.port());
    let error = fetcher
        .fetch(&Url::parse(&url).unwrap())
        .await
        .map(|_| ())
        .unwrap_err();
    assert!(
        chain(&error).contains("invalid peer certificate"),
        "{}",
        chain(&error)
    );
    assert_eq!((web.connections(), web.heads().len()), (1, 0));
}

/// Runs this binary's own test of plain fetching with a proxy in its environment.
#[tokio::test]
async fn a_proxy_of_the_environment_is_not_used() {
    let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy_url = format!("http://{}", proxy.local_addr().unwrap());
    let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "references::a_body_comes_as_it_is"]);
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
        child
            .env(name, &proxy_url)
            .env(name.to_lowercase(), &proxy_url);
    }
    child
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .kill_on_drop(true);
    tokio::select! {
        output = child.output() => {
            let output = output.unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && said.contains("1 passed"), "{said}");
        }
        _ = proxy.accept() => panic!("the proxy was asked"),
    }
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

fn refused_address(error: &(dyn Error + 'static)) -> Option<IpAddr> {
    causes(error).find_map(|cause| cause.downcast_ref().map(|AddressRefused(address)| *address))
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<_> = causes(error)
        .map(|cause| format!("{cause} ({cause:?})"))
        .collect();
    causes.join(": ")
}
