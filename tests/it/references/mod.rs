//! Fetching references: what is accepted, and the limits on bytes and time.

mod dns;
mod gateway;
mod names;
mod refused;
mod vectors;
mod web;

use std::time::{Duration, Instant};

use easel::references::{FetchError, FetchFault, Fetched};
use futures_util::{StreamExt, TryStreamExt, future::join_all};
use url::Url;

use self::web::{BYTES_MAX, Web, references};

const COULD_NOT_BE_FETCHED: &str = "could not be fetched";

#[tokio::test]
async fn a_body_is_passed_on_unchanged() {
    let web = Web::start().await;
    let (length, body) = read(web.fetch("https://public.test/image").await)
        .await
        .unwrap();
    assert_eq!((length, body.as_slice()), (Some(5), b"image".as_slice()));
    let (length, body) = read(web.fetch("https://public.test/chunked").await)
        .await
        .unwrap();
    assert_eq!((length, body.as_slice()), (None, b"image".as_slice()));
    let (_, body) = read(web.fetch("https://public.test/html").await)
        .await
        .unwrap();
    assert_eq!(body, b"<html>");
}

#[tokio::test]
async fn a_request_reveals_nothing_about_the_caller() {
    let web = Web::start().await;
    read(
        web.fetch("https://public.test/redirect/1?secret=1#part")
            .await,
    )
    .await
    .unwrap();
    let port = web.address.port();
    let head = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\naccept: image/*\r\nuser-agent: easel/{}\r\n\
             accept-encoding: identity\r\nhost: public.test:{port}\r\n\r\n",
            env!("CARGO_PKG_VERSION")
        )
    };
    let expected = [head("/redirect/1?secret=1"), head("/image")];
    assert_eq!(web.heads(), expected);
}

#[tokio::test]
async fn redirects_are_followed_three_times_and_no_more() {
    let web = Web::start().await;
    for path in ["redirect/1", "redirect/2", "redirect/3", "relative"] {
        let (_, body) = read(web.fetch(&format!("https://public.test/{path}")).await)
            .await
            .unwrap();
        assert_eq!(body, b"image");
    }
    for path in ["redirect/4", "loop"] {
        let fault = web.fault(&format!("https://public.test/{path}")).await;
        assert!(
            matches!(fault, FetchFault::Redirects { redirects_max: 3 }),
            "{fault:?}"
        );
    }
    assert_eq!(
        web.heads()
            .iter()
            .filter(|head| head.starts_with("GET /loop "))
            .count(),
        4
    );
}

#[tokio::test]
async fn oversized_bodies_end_at_the_limit() {
    let web = Web::start().await;
    let (_, body) = read(web.fetch("https://public.test/chunked?100000").await)
        .await
        .unwrap();
    assert_eq!(body.len() as u64, BYTES_MAX);
    let (length, body) = read(web.fetch("https://public.test/sized?100000").await)
        .await
        .unwrap();
    assert_eq!((length, body.len() as u64), (Some(BYTES_MAX), BYTES_MAX));

    let fetched = web.fetch("https://public.test/sized?100001").await;
    let error = fetched.map(|_| ()).unwrap_err();
    assert!(
        matches!(
            error,
            FetchError::TooLarge {
                bytes_max: BYTES_MAX
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.to_string(), "must be at most 100000 bytes");
    for path in ["chunked?100001", "endless", "endless-until-close"] {
        let mut stream = web
            .fetch(&format!("https://public.test/{path}"))
            .await
            .unwrap()
            .stream;
        let mut bytes = 0;
        let error = loop {
            match stream.next().await.expect("it must end in an error") {
                Ok(piece) => bytes += piece.len() as u64,
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error, FetchError::TooLarge { .. }),
            "{path}: {error:?}"
        );
        assert!(bytes <= BYTES_MAX, "{path}: {bytes} bytes came out");
        assert!(stream.next().await.is_none());
    }
}

#[tokio::test]
async fn a_false_length_adds_nothing_and_hides_no_truncation() {
    let web = Web::start().await;
    let (_, body) = read(web.fetch("https://public.test/more-than-announced").await)
        .await
        .unwrap();
    assert_eq!(body, b"ima");
    for path in ["less-than-announced", "cut-chunk"] {
        let error = read(web.fetch(&format!("https://public.test/{path}")).await)
            .await
            .unwrap_err();
        assert!(
            matches!(error, FetchError::Failed(FetchFault::Request(_))),
            "{path}: {error:?}"
        );
        assert_eq!(error.to_string(), COULD_NOT_BE_FETCHED);
    }
}

#[tokio::test]
async fn endless_interim_answers_are_counted_and_cut_off() {
    let web = Web::start().await;
    let begin = Instant::now();
    let fault = web.fault("https://public.test/continues").await;
    assert!(matches!(fault, FetchFault::Request(_)), "{fault:?}");
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}",
        begin.elapsed()
    );
    // What the fetcher reads, and what is in flight between the two.
    let sent = web.flooded();
    assert!(sent < 16 << 20, "{sent} bytes were sent");
}

/// The gateway's limit: 20 MiB. The server announces another length than it sends, or none.
#[tokio::test]
async fn twenty_mebibytes_are_the_most() {
    const MOST: u64 = 20 << 20;
    let mut web = Web::start().await;
    web.fetcher = web.fetcher_of(&references(""), web.address, MOST);
    for path in [
        format!("lies?{}", MOST + 1),
        "endless-until-close".to_owned(),
    ] {
        let error = read(web.fetch(&format!("https://public.test/{path}")).await)
            .await
            .unwrap_err();
        assert!(
            matches!(error, FetchError::TooLarge { bytes_max: MOST }),
            "{path}: {error:?}"
        );
    }
    let fetched = web.fetch(&format!("https://public.test/lies?{MOST}")).await;
    assert_eq!(fetched.unwrap().length, Some(MOST));
}

#[tokio::test]
async fn the_deadline_covers_everything() {
    let mut web = Web::start().await;
    web.fetcher = web.fetcher(&references("fetch_timeout_ms = 700"), web.address);
    let paths = ["drip", "silent", "head-drip", "slow-redirects"];
    join_all(paths.map(async |path| {
        let begin = Instant::now();
        let error = read(web.fetch(&format!("https://public.test/{path}")).await)
            .await
            .unwrap_err();
        assert!(
            matches!(error, FetchError::Failed(FetchFault::Timeout(_))),
            "{path}: {error:?}"
        );
        assert_took(path, begin, 700);
    }))
    .await;
}

#[tokio::test]
async fn a_server_must_start_and_keep_sending() {
    let mut web = Web::start().await;
    web.fetcher = web.fetcher(&references("idle_timeout_ms = 300"), web.address);
    join_all(["silent", "stops"].map(async |path| {
        let begin = Instant::now();
        let error = read(web.fetch(&format!("https://public.test/{path}")).await)
            .await
            .unwrap_err();
        let FetchError::Failed(FetchFault::Request(error)) = &error else {
            panic!("{path}: {error:?}")
        };
        assert!(error.is_timeout(), "{path}: {error:?}");
        assert_took(path, begin, 300);
    }))
    .await;
}

/// It accepts the connection and stays silent, so that the TLS handshake never starts.
#[tokio::test]
async fn a_connection_must_be_ready_in_time() {
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = Web::start().await;
    let address = mute.local_addr().unwrap();
    let fetcher = web.fetcher(&references("connect_timeout_ms = 300"), address);
    let url = Url::parse(&format!("https://public.test:{}/", address.port())).unwrap();
    let begin = Instant::now();
    let error = fetcher.fetch(&url, &fetcher.allowance()).await.map(drop);
    let error = error.unwrap_err();
    assert!(
        matches!(&error, FetchError::Failed(FetchFault::Request(error)) if error.is_timeout()),
        "{error:?}"
    );
    assert_took("no handshake", begin, 300);
}

#[tokio::test]
async fn the_references_of_a_task_share_bytes_and_time() {
    let web = Web::start().await;
    let settings = "fetched_bytes_max = 150_000\nfetch_all_timeout_ms = 1_000";
    let fetcher = web.fetcher(&references(settings), web.address);
    let url = |path: &str| {
        let port = web.address.port();
        Url::parse(&format!("https://public.test:{port}/{path}")).unwrap()
    };
    let allowance = fetcher.allowance();
    let first = url("sized?90000");
    read(fetcher.fetch(&first, &allowance).await).await.unwrap();
    for path in ["sized?60001", "endless"] {
        let error = read(fetcher.fetch(&url(path), &allowance).await).await;
        let error = error.unwrap_err();
        assert!(
            matches!(error, FetchError::TooLargeTogether { bytes_max: 150_000 }),
            "{error:?}"
        );
    }
    // Another task has its own allowance.
    let second = fetcher.fetch(&first, &fetcher.allowance()).await;
    read(second).await.unwrap();

    let (begin, allowance) = (Instant::now(), fetcher.allowance());
    for path in ["silent", "image"] {
        let error = fetcher.fetch(&url(path), &allowance).await.map(drop);
        let error = error.unwrap_err();
        assert!(
            matches!(error, FetchError::Failed(FetchFault::Timeout(_))),
            "{path}: {error:?}"
        );
    }
    assert_took("both", begin, 1_000);
}

#[tokio::test]
async fn only_an_uncompressed_200_is_an_image() {
    let web = Web::start().await;
    for status in [
        201, 204, 206, 300, 304, 400, 401, 403, 404, 407, 429, 500, 503,
    ] {
        let fault = web
            .fault(&format!("https://public.test/status?{status}"))
            .await;
        assert!(
            matches!(fault, FetchFault::Status(got) if got == status),
            "{status}: {fault:?}"
        );
    }
    for encoding in ["gzip", "br", "identity, gzip", "x"] {
        let fault = web
            .fault(&format!("https://public.test/encoded?{encoding}"))
            .await;
        assert!(
            matches!(fault, FetchFault::Encoding),
            "{encoding}: {fault:?}"
        );
    }
    read(web.fetch("https://public.test/encoded?identity").await)
        .await
        .unwrap();
}

/// It took this long, and hardly longer: the margin is for busy machines.
#[track_caller]
fn assert_took(what: &str, begin: Instant, least_ms: u64) {
    let (took, least) = (begin.elapsed(), Duration::from_millis(least_ms));
    let most = least + Duration::from_secs(4);
    assert!(took >= least && took < most, "{what}: {took:?}");
}

async fn read(fetched: Result<Fetched, FetchError>) -> Result<(Option<u64>, Vec<u8>), FetchError> {
    let Fetched { length, stream } = fetched?;
    let pieces: Vec<_> = stream.try_collect().await?;
    Ok((length, pieces.concat()))
}
