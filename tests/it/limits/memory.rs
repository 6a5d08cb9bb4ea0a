//! How much memory one request takes: at most twice its bytes, whatever it contains.

use std::{fmt::Write as _, fs};

use reqwest::Method;

use crate::harness::{
    caller::Answer,
    database::TestDatabase,
    images::png_of,
    process::{Process, Setup},
};

const SETTINGS: &str = "[backends.demo]\nkind = 'demo'\nfailure_percent = 100";
const BODY_BYTES: usize = 30 << 20;
/// Memory that a process takes occasionally: stacks, the allocator's reserves, connections.
const SLACK_BYTES: usize = 20 << 20;
const JSON: &str = "application/json";
const FORM: &str = "multipart/form-data; boundary=x";

struct Case {
    name: &'static str,
    content_type: &'static str,
    body: Vec<u8>,
    status: u16,
    message: &'static str,
}

/// A request with a value of this many bytes in one of its fields.
fn json(field: &str, open: &str, unit: &str, close: &str) -> Vec<u8> {
    let mut body = format!("{{\"model\":\"gpt-image-2\",\"prompt\":\"a cat\",\"{field}\":{open}");
    while !unit.is_empty() && body.len() < BODY_BYTES {
        body.push_str(unit);
    }
    body.push_str(close);
    body.into_bytes()
}

fn flood(field: impl Fn(usize) -> String) -> Vec<u8> {
    let mut body = String::from("{");
    for index in 0.. {
        body.push_str(&field(index));
        if body.len() >= BODY_BYTES {
            break;
        }
        body.push(',');
    }
    body.push('}');
    body.into_bytes()
}

fn text_part(form: &mut String, name: &str, text: &str) {
    let disposition = format!("content-disposition: form-data; name=\"{name}\"");
    write!(form, "--x\r\n{disposition}\r\n\r\n{text}\r\n").unwrap();
}

fn form(name: &str, text: &str, count: usize) -> Vec<u8> {
    let mut form = String::new();
    text_part(&mut form, "model", "gpt-image-2");
    text_part(&mut form, "prompt", "a cat");
    for _ in 0..count {
        text_part(&mut form, name, text);
    }
    form.push_str("--x--\r\n");
    form.into_bytes()
}

#[expect(clippy::too_many_lines, reason = "a table")]
fn cases() -> Vec<Case> {
    let case = |name, content_type, body, status, message| Case {
        name,
        content_type,
        body,
        status,
        message,
    };
    let long = "x".repeat(BODY_BYTES / 40);
    let image = base64_simd::STANDARD.encode_to_string(png_of(19 << 20));
    let escaped = image.replace('/', "\\/");
    let fields = "a body may have 256 fields";
    let images = "reference images given, allowed are 16";
    let head = "the head of a part exceeds maximum 16384 bytes";
    let image_at = |data: &str| {
        json(
            "image",
            &format!("\"data:image/png;base64,{data}"),
            "",
            "\"}",
        )
    };
    vec![
        case(
            "a field nobody reads",
            JSON,
            json("style", "[0", ",{\"\":0}", "]}"),
            202,
            "",
        ),
        case(
            "references",
            JSON,
            json("image_urls", "[\"a\"", ",\"a\"", "]}"),
            400,
            images,
        ),
        case(
            "empty references",
            JSON,
            json("image_urls", "[\"\"", ",\"\"", "]}"),
            202,
            "",
        ),
        case(
            "a list in a list",
            JSON,
            json("x", "", "[", "}"),
            400,
            "malformed JSON",
        ),
        case(
            "a text",
            JSON,
            json("size", "\"", "\\n", "\"}"),
            400,
            "size must have at most",
        ),
        case(
            "a prompt",
            JSON,
            json("prompt", "\"", "\\n", "\"}"),
            400,
            "prompt must have at most",
        ),
        case(
            "one name",
            JSON,
            flood(|_| "\"a\":1".to_owned()),
            400,
            fields,
        ),
        case(
            "names",
            JSON,
            flood(|index| format!("\"a{index}\":1")),
            400,
            fields,
        ),
        case("an image", JSON, padded(image_at(&image)), 202, ""),
        case(
            "an image with escapes",
            JSON,
            padded(image_at(&escaped)),
            202,
            "",
        ),
        case(
            "a head",
            FORM,
            [b"--x\r\na: ", &vec![b'b'; BODY_BYTES][..]].concat(),
            400,
            head,
        ),
        case(
            "a preamble",
            FORM,
            vec![b'\r'; BODY_BYTES],
            400,
            "it ends before its last boundary",
        ),
        case("text parts", FORM, form("x", &long, 40), 202, ""),
        case(
            "a text part",
            FORM,
            form("prompt", &long, 40),
            400,
            "prompt must have at most",
        ),
        case(
            "references in a form",
            FORM,
            form("image_urls", &long, 40),
            400,
            images,
        ),
        case(
            "a list in a form",
            FORM,
            form(
                "image_urls",
                &format!("[\"a\"{}]", ",\"a\"".repeat(BODY_BYTES / 4)),
                1,
            ),
            400,
            images,
        ),
    ]
}

/// With trailing spaces, which JSON allows.
fn padded(mut body: Vec<u8>) -> Vec<u8> {
    body.resize(body.len().max(BODY_BYTES), b' ');
    body
}

/// A value of the process's status, in bytes, by its name.
fn memory(process: &Process, name: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    let kilobytes = line.split_whitespace().nth(1).unwrap();
    kilobytes.parse::<usize>().unwrap() * 1024
}

#[tokio::test]
async fn no_request_takes_more_than_twice_its_bytes_of_memory() {
    let database = TestDatabase::create().await;
    let process = Setup::on(&database, SETTINGS).serve();
    let caller = database.caller(&process.url(), "99").await;
    let mut grown = String::new();
    for case in cases() {
        let bytes = case.body.len();
        let before = memory(&process, "VmRSS");
        // Resets the peak.
        fs::write(format!("/proc/{}/clear_refs", process.pid()), "5").unwrap();
        let request = caller
            .request(Method::POST, "/v1/images/generations?async=1")
            .header("content-type", case.content_type)
            .body(case.body);
        let answer = Answer::of(request).await;

        let growth = memory(&process, "VmHWM").saturating_sub(before);
        let (name, mib) = (case.name, |bytes: usize| bytes >> 20);
        writeln!(grown, "{name}: {} MiB by {} MiB", mib(bytes), mib(growth)).unwrap();
        assert_eq!(answer.status, case.status, "{name} {answer:?}");
        let text = String::from_utf8(answer.body).unwrap();
        assert!(text.contains(case.message), "{name} {text}");
        assert!(growth <= 2 * bytes + SLACK_BYTES, "{grown}");
    }
    crate::harness::say(&grown);
    process.end();
}
