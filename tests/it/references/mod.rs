//! Fetching references: what comes in, and that it ends in bytes and in time.

mod refused;
mod web;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use easel::references::{FetchError, FetchFault, Fetched, Fetcher, StandIn};
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use url::Url;

use self::web::{BYTES_MAX, Web, references};

const COULD_NOT_BE_FETCHED: &str = "could not be fetched";

#[tokio::test]
async fn a_body_comes_as_it_is() {
    let web = Web::start().await;
    let (length, body) = read(web.fetch("https://public.test/picture").await)
        .await
        .unwrap();
    assert_eq!((length, body.as_slice()), (Some(7), b"picture".as_slice()));
    let (length, body) = read(web.fetch("https://public.test/chunked").await)
        .await
        .unwrap();
    assert_eq!((length, body.as_slice()), (None, b"picture".as_slice()));
    let (_, body) = read(web.fetch("https://public.test/html").await)
        .await
        .unwrap();
    assert_eq!(body, b"<html>");
}

#[tokio::test]
async fn a_request_says_nothing_about_the_caller() {
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
    let expected = [head("/redirect/1?secret=1"), head("/picture")];
    assert_eq!(web.heads(), expected);
}

#[tokio::test]
async fn redirects_are_followed_three_times_and_no_more() {
    let web = Web::start().await;
    for path in ["redirect/1", "redirect/2", "redirect/3", "relative"] {
        let (_, body) = read(web.fetch(&format!("https://public.test/{path}")).await)
            .await
            .unwrap();
        assert_eq!(body, b"picture");
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
async fn what_is_too_large_ends_at_the_limit() {
    let web = Web::start().await;
    let (_, body) = read(web.fetch("https://public.test/chunked?100000").await)
        .await
        .unwrap();
    assert_eq!(body.len() as u64, BYTES_MAX);
    let (length, body) = read(web.fetch("https://public.test/sized?100000").await)
        .await
        .unwrap();
    assert_eq!((length, body.len() as u64), (Some(BYTES_MAX), BYTES_MAX));

    let told = web.fetch("https://public.test/sized?100001").await;
    let error = told.map(|_| ()).unwrap_err();
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
async fn a_length_that_lies_adds_nothing_and_hides_no_cut() {
    let web = Web::start().await;
    let (_, body) = read(web.fetch("https://public.test/more-than-told").await)
        .await
        .unwrap();
    assert_eq!(body, b"pic");
    for path in ["less-than-told", "cut-chunk"] {
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
async fn the_deadline_covers_everything() {
    let mut web = Web::start().await;
    web.fetcher = web.fetcher(&references("fetch_timeout_ms = 700"), web.address);
    for path in ["drip", "silent", "head-drip", "slow-redirects"] {
        let begin = Instant::now();
        let error = read(web.fetch(&format!("https://public.test/{path}")).await)
            .await
            .unwrap_err();
        assert!(
            matches!(error, FetchError::Failed(FetchFault::Timeout(_))),
            "{path}: {error:?}"
        );
        let took = begin.elapsed();
        assert!(
            took >= Duration::from_millis(700) && took < Duration::from_secs(8),
            "{path}: {took:?}"
        );
    }
}

#[tokio::test]
async fn a_name_that_never_resolves_ends_at_the_deadline() {
    let web = Web::start().await;
    let stand_in = StandIn {
        address: web.address,
        lookup: Arc::new(|_| std::future::pending().boxed()),
        root: web.root.clone(),
    };
    let config = references("fetch_timeout_ms = 300");
    let fetcher = Fetcher::with_stand_in(&config, BYTES_MAX, stand_in).unwrap();
    let url = Url::parse("https://public.test/picture").unwrap();
    let error = fetcher.fetch(&url).await.map(|_| ()).unwrap_err();
    assert!(
        matches!(error, FetchError::Failed(FetchFault::Timeout(_))),
        "{error:?}"
    );
}

#[tokio::test]
async fn only_an_uncompressed_200_is_a_picture() {
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

async fn read(fetched: Result<Fetched, FetchError>) -> Result<(Option<u64>, Vec<u8>), FetchError> {
    let Fetched { length, stream } = fetched?;
    let pieces: Vec<_> = stream.try_collect().await?;
    Ok((length, pieces.concat()))
}
