//! How an upload's bytes are served: headers, HEAD, ranges, validators, and links to nothing.

use reqwest::Method;

use super::link_of;
use crate::harness::{
    TestApp,
    caller::{Answer, http_client},
    images::png,
};

#[tokio::test]
async fn a_link_needs_no_key_and_its_headers_keep_browsers_safe() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let link = link_of(&caller, png(), "a.png").await;

    let answer = Answer::of(http_client().get(&link)).await;

    assert_eq!((answer.status, &answer.body), (200, &png()));
    for (name, value) in [
        ("content-type", "image/png"),
        ("x-content-type-options", "nosniff"),
        ("content-security-policy", "default-src 'none'; sandbox"),
        ("content-disposition", "inline"),
        ("referrer-policy", "no-referrer"),
        ("x-robots-tag", "noindex"),
        ("accept-ranges", "bytes"),
    ] {
        assert_eq!(answer.header(name), Some(value), "{name}");
    }
    assert_eq!(
        answer.header("content-length"),
        Some(&*png().len().to_string())
    );
    app.finish().await;
}

#[tokio::test]
async fn the_random_part_of_a_link_has_128_bits() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let parts = |link: &str| -> Vec<String> {
        let name = link.rsplit('/').next().unwrap();
        name.splitn(3, '-').map(str::to_owned).collect()
    };

    let first = parts(&link_of(&caller, png(), "a.png").await);
    let second = parts(&link_of(&caller, png(), "a.png").await);

    assert!(
        first[0].bytes().all(|byte| byte.is_ascii_digit()),
        "{first:?}"
    );
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    assert!(
        first[1].len() == 32 && first[1].bytes().all(is_hex),
        "{first:?}"
    );
    assert_eq!(first[2], "a.png");
    assert_ne!(first[1], second[1]);
    app.finish().await;
}

#[tokio::test]
async fn head_has_the_headers_of_get_and_no_body() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let link = link_of(&caller, png(), "a.png").await;

    let get = caller.get(&link).await;
    let head = Answer::of(caller.request(Method::HEAD, &link)).await;

    assert_eq!((head.status, head.body.len()), (200, 0));
    for name in [
        "content-type",
        "content-length",
        "etag",
        "last-modified",
        "accept-ranges",
    ] {
        assert!(get.header(name).is_some(), "{name}");
        assert_eq!(head.header(name), get.header(name), "{name}");
    }
    app.finish().await;
}

#[tokio::test]
async fn ranges_are_served() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let (bytes, link) = (png(), link_of(&caller, png(), "a.png").await);
    let size = bytes.len();
    for (range, from, to) in [
        ("bytes=0-7", 0, 8),
        ("bytes=8-", 8, size),
        ("bytes=-5", size - 5, size),
        ("bytes=4-99999", 4, size),
    ] {
        let answer = Answer::of(caller.request(Method::GET, &link).header("range", range)).await;
        assert_eq!(answer.status, 206, "{range}");
        assert_eq!(answer.body, bytes[from..to], "{range}");
        let content_range = format!("bytes {from}-{}/{size}", to - 1);
        assert_eq!(answer.header("content-range"), Some(&*content_range));
    }
    let outside = caller
        .request(Method::GET, &link)
        .header("range", "bytes=99999-");
    let outside = Answer::of(outside).await;
    let body = outside.refusal();
    let body = body.replace(&format!("has {size} bytes"), "has [size] bytes");
    insta::assert_snapshot!(body, @r#"416 {"error":{"message":"the range lies outside of the file, which has [size] bytes","type":"invalid_request_error","code":null,"param":null,"provider":"easel"}}"#);
    assert_eq!(
        outside.header("content-range"),
        Some(&*format!("bytes */{size}"))
    );
    app.finish().await;
}

#[tokio::test]
async fn cached_bytes_are_not_sent_again() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let link = link_of(&caller, png(), "a.png").await;
    let first = caller.get(&link).await;
    let ask = |name: &'static str, value: String| {
        Answer::of(caller.request(Method::GET, &link).header(name, value))
    };
    let etag = first.header("etag").unwrap().to_owned();
    let modified = first.header("last-modified").unwrap().to_owned();

    for (name, value, status) in [
        ("if-none-match", etag.clone(), 304),
        ("if-none-match", "*".to_owned(), 304),
        ("if-none-match", "\"other\"".to_owned(), 200),
        ("if-modified-since", modified, 304),
        (
            "if-modified-since",
            "Mon, 31 Mar 2025 16:00:00 GMT".to_owned(),
            200,
        ),
    ] {
        let answer = ask(name, value).await;
        assert_eq!(answer.status, status, "{name}");
        assert_eq!(answer.body.is_empty(), status == 304, "{name}");
        assert_eq!(answer.header("etag"), Some(&*etag), "{name}");
    }
    app.finish().await;
}

#[tokio::test]
async fn unknown_links_are_404() {
    let app = TestApp::start().await;
    let caller = app.caller("0").await;
    let link = link_of(&caller, png(), "a.png").await;
    let other_digit = if link.ends_with("0-a.png") {
        "1-a.png"
    } else {
        "0-a.png"
    };
    let guessed = format!("{}{other_digit}", &link[..link.len() - 7]);
    for path in [
        &guessed,
        &link.replace("a.png", "b.png"),
        "/f/image/x",
        "/f/image/..%2f..%2fetc%2fpasswd",
        "/f/image/%00",
    ] {
        let answer = caller.get(path).await;
        answer.assert_refused(404, "no such file");
    }
    for path in ["/f/image/", "/f/image/%ff"] {
        let answer = caller.get(path).await;
        answer.assert_refused(404, "no such route");
    }
    app.finish().await;
}
