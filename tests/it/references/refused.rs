//! Every way to leave the public internet, or to learn from outside what is behind a refusal.

use std::{
    error::Error,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use easel::references::{AddressRefused, FetchError, FetchFault, Fetcher, UrlError};
use futures_util::future::join_all;
use tokio::net::TcpListener;
use url::Url;

use super::{
    COULD_NOT_BE_FETCHED,
    dns::known,
    read,
    web::{BYTES_MAX, Web, references},
};

#[tokio::test]
async fn a_redirect_goes_only_where_a_url_may() {
    let web = Web::start().await;
    let port = web.address.port();
    for (target, expected) in [
        ("http://public.test/image".to_owned(), UrlError::Scheme),
        ("file:///etc/passwd".to_owned(), UrlError::Scheme),
        ("gopher://public.test/".to_owned(), UrlError::Scheme),
        ("data:image/png;base64,AAAA".to_owned(), UrlError::Scheme),
        (
            format!("https://u:p@public.test:{port}/image"),
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
        (format!("https://own.test:{port}/image"), UrlError::Own),
        (
            format!("https://OWN.test.:{port}/v1/images/files/m/20260101/x-1.png"),
            UrlError::Own,
        ),
        (
            format!("https://own.test:{port}/f/image/1-2-a.png"),
            UrlError::Own,
        ),
        ("https://public.test:0/".to_owned(), UrlError::Port),
        ("javascript:1".to_owned(), UrlError::Scheme),
        (
            "https://public.test@127.0.0.2/".to_owned(),
            UrlError::UserInfo,
        ),
        ("https://127.0.0.2#@public.test/".to_owned(), UrlError::Host),
        (
            "https://127.0.0.2\\@public.test/".to_owned(),
            UrlError::Host,
        ),
        ("https:///127.0.0.2".to_owned(), UrlError::Host),
        ("h\tttps://127.0.0.2/".to_owned(), UrlError::Host),
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

/// The listener really exists, so that only the guard can prevent the connection.
#[tokio::test]
async fn nothing_connects_to_loopback() {
    let mut web = Web::start().await;
    let port = web.address.port();
    let elsewhere = SocketAddr::from(([192, 0, 2, 1], port));
    let fetcher = web.fetcher(&references(""), elsewhere);
    for host in ["public.test", "private.test"] {
        let url = Url::parse(&format!("https://{host}:{port}/image")).unwrap();
        let error = fetcher
            .fetch(&url, &fetcher.allowance())
            .await
            .map(drop)
            .unwrap_err();
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
        let url = Url::parse(&format!("https://{host}:{port}/image")).unwrap();
        let error = fetcher
            .fetch(&url, &fetcher.allowance())
            .await
            .map(drop)
            .unwrap_err();
        assert!(
            matches!(error, FetchError::Failed(FetchFault::Url(UrlError::Host))),
            "{error:?}"
        );
    }
    assert_eq!(web.connections(), 0);

    // The same, where the operator allows it.
    web.fetcher = web.fetcher(&references("allow_private_networks = true"), elsewhere);
    read(web.fetch("https://public.test/image").await)
        .await
        .unwrap();
    read(web.fetch("https://127.1/image").await).await.unwrap();
}

#[tokio::test]
async fn a_server_must_prove_its_name() {
    let web = Web::start().await;
    let port = web.address.port();
    for url in [
        "https://wrong-name.test/image",
        &format!("https://public.test/to?https://wrong-name.test:{port}/image"),
    ] {
        let fault = web.fault(url).await;
        assert!(
            chain(&fault).contains("NotValidForName"),
            "{}",
            chain(&fault)
        );
    }

    let stranger = Web::start().await;
    let mut web = Web::start().await;
    web.address = stranger.address;
    web.fetcher = web.fetcher(&references(""), stranger.address);
    let fault = web.fault("https://public.test/image").await;
    assert!(
        chain(&fault).contains("invalid peer certificate"),
        "{}",
        chain(&fault)
    );

    let expired = Web::start_until(2001, |_, _| known(&["127.0.0.1"])).await;
    let fault = expired.fault("https://public.test/image").await;
    assert!(chain(&fault).contains("expired"), "{}", chain(&fault));
    assert_eq!(expired.heads(), [] as [&str; 0]);
}

#[tokio::test]
async fn refused_closed_and_silent_hosts_are_indistinguishable() {
    const STEP_MS: u64 = 600;
    let mut web = Web::start().await;
    let settings = "connect_timeout_ms = 300\nidle_timeout_ms = 400\nfailure_delay_step_ms = 600";
    web.fetcher = web.fetcher(&references(settings), web.address);
    let unused = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = unused.local_addr().unwrap();
    drop(unused);
    let urls = [
        "https://private.test/",
        "https://unknown.test/",
        "https://stalled.test/",
        "https://wrong-name.test/",
        "https://10.0.0.1/",
        "https://public.test/silent",
        "https://public.test/status?404",
        "https://public.test/loop",
        "https://public.test/to?https://10.0.0.1/",
        &format!(
            "https://public.test/to?https://private.test:{}/",
            web.address.port()
        ),
        &format!(
            "https://public.test/to?https://unknown.test:{}/",
            web.address.port()
        ),
    ];
    let assert_hidden = async |url: &str, fetcher: &Fetcher| {
        let (begin, url) = (Instant::now(), Url::parse(url).unwrap());
        let error = fetcher.fetch(&url, &fetcher.allowance()).await.map(drop);
        let (error, took) = (error.unwrap_err(), begin.elapsed());
        assert_eq!(error.to_string(), COULD_NOT_BE_FETCHED, "{url}");
        assert!(!chain(&error).contains("https:"), "{}", chain(&error));
        // One step, unless the machine is very busy.
        let step = Duration::from_millis(STEP_MS);
        assert!(took >= step && took < step * 6, "{url}: {took:?}");
    };
    let port = web.address.port();
    let open = urls.map(|url| url.replacen(".test/", &format!(".test:{port}/"), 1));
    let elsewhere = web.fetcher(&references(settings), closed);
    let closed = format!("https://public.test:{}/", closed.port());
    let open = join_all(open.iter().map(|url| assert_hidden(url, &web.fetcher)));
    tokio::join!(open, assert_hidden(&closed, &elsewhere));
}

/// Uses the system's resolver and certificates, which do not know the server.
#[tokio::test]
async fn the_real_fetcher_resolves_and_trusts_as_the_system_does() {
    let web = Web::start().await;
    let config = references("allow_private_networks = true");
    let fetcher = Fetcher::new(&config, BYTES_MAX, "https://own.test").unwrap();
    let url = format!("https://localhost:{}/image", web.address.port());
    let url = Url::parse(&url).unwrap();
    let error = fetcher
        .fetch(&url, &fetcher.allowance())
        .await
        .map(drop)
        .unwrap_err();
    assert!(
        chain(&error).contains("invalid peer certificate"),
        "{}",
        chain(&error)
    );
    assert_eq!((web.connections(), web.heads().len()), (1, 0));
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

/// The address that was refused, if that is the cause of the error.
pub(super) fn refused_address(error: &(dyn Error + 'static)) -> Option<IpAddr> {
    causes(error).find_map(|cause| cause.downcast_ref().map(|AddressRefused(address)| *address))
}

fn chain(error: &(dyn Error + 'static)) -> String {
    let causes: Vec<_> = causes(error)
        .map(|cause| format!("{cause} ({cause:?})"))
        .collect();
    causes.join(": ")
}
