//! Tests the scanner with real answers, hostile answers, and every cut of them.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// The images found, and the rest of the answer.
type Scanned = Result<(Vec<Vec<u8>>, Vec<u8>), InvalidAnswer>;

/// The paths of an Images API.
fn images_api() -> Vec<ImagePath> {
    let b64_json = ImagePath::of_base64("/data/*/b64_json");
    vec![b64_json, ImagePath::of_data_urls("/data/*/url")]
}

fn scan(cuts: &[&[u8]]) -> Scanned {
    scan_for(images_api(), cuts)
}

fn scan_for(paths: Vec<ImagePath>, cuts: &[&[u8]]) -> Scanned {
    let mut scanner = ImageScanner::new(paths.into());
    let mut images = Vec::new();
    let mut image = Vec::new();
    for cut in cuts {
        let mut left = *cut;
        while let Some(found) = scanner.next(&mut left)? {
            match found {
                Found::Piece(piece) => image.extend_from_slice(&piece),
                Found::End => images.push(std::mem::take(&mut image)),
            }
        }
    }
    assert!(image.is_empty(), "an image was started but not ended");
    Ok((images, scanner.into_rest()))
}

fn scan_text(text: &str) -> (Vec<Vec<u8>>, Value) {
    let (images, rest) = scan(&[text.as_bytes()]).unwrap();
    (images, serde_json::from_slice(&rest).unwrap())
}

#[test]
fn decodes_images_and_keeps_the_rest() {
    let (images, rest) = scan_text(
        r#" {"created": 1, "data": [{"b64_json": "aGVsbG8="}, {"url": "https://h/1.png", "b64_json": null},
            {"revised_prompt": "a \"b64_json\": \\", "b64_json" : "d29ybGQ"}], "usage": {"total_tokens": 3}}"#,
    );
    assert_eq!(images, [b"hello", b"world"]);
    let expected = json!({"created": 1, "data": [{"b64_json": true},
        {"url": "https://h/1.png", "b64_json": null},
        {"revised_prompt": "a \"b64_json\": \\", "b64_json": true}], "usage": {"total_tokens": 3}});
    assert_eq!(rest, expected);
}

#[test]
fn finds_images_at_any_path() {
    let gemini = || {
        let data = ["inlineData", "inline_data"];
        let path = |data| format!("/candidates/*/content/parts/*/{data}/data");
        data.map(|data| ImagePath::of_base64(path(data).as_str()))
            .to_vec()
    };
    for (paths, text, rest) in [
        (
            vec![ImagePath::of_base64("/images/*")],
            r#"{"images":["aGVsbG8=","aGVsbG8"],"parameters":{"images":["x"]},"info":""}"#,
            r#"{"images":[true,true],"parameters":{"images":["x"]},"info":""}"#,
        ),
        (
            vec![
                ImagePath::of_base64("/images/*"),
                ImagePath::of_echo("/parameters/init_images/*"),
            ],
            r#"{"parameters":{"init_images":["a\"*","data:,",null]},"images":["aGVsbG8=","aGVsbG8"]}"#,
            r#"{"parameters":{"init_images":[true,true,null]},"images":[true,true]}"#,
        ),
        (
            gemini(),
            r#"{"candidates":[{"content":{"role":"model","parts":[{"text":"data"},
                {"inlineData":{"mimeType":"image/png","data":"aGVsbG8="},"thoughtSignature":"data"}]}},
                {"content":{"parts":[{"inline_data":{"data":"aGVsbG8="},"data":"x"}],"data":[]}}]}"#,
            r#"{"candidates":[{"content":{"role":"model","parts":[{"text":"data"},
                {"inlineData":{"mimeType":"image/png","data":true},"thoughtSignature":"data"}]}},
                {"content":{"parts":[{"inline_data":{"data":true},"data":"x"}],"data":[]}}]}"#,
        ),
        (
            vec![
                ImagePath::of_base64("/*/*/a"),
                ImagePath::of_data_urls("/*/*/b/c"),
            ],
            r#"[[{"b":{"c":"data:,aGVsbG8=","a":"x"},"a":"aGVsbG8="}],{"a":"x"}]"#,
            r#"[[{"b":{"c":true,"a":"x"},"a":true}],{"a":"x"}]"#,
        ),
        (
            vec![
                ImagePath::of_base64("/image"),
                ImagePath::of_base64("/image/*"),
            ],
            r#"{"image":"aGVsbG8=","x":[],"image":["aGVsbG8=",{"image":"x"},["x"]]}"#,
            r#"{"image":true,"x":[],"image":[true,{"image":"x"},["x"]]}"#,
        ),
    ] {
        let (images, left) = scan_for(paths, &[text.as_bytes()]).unwrap();
        assert_eq!(images, [b"hello", b"hello"], "{text}");
        assert_eq!(left, rest.as_bytes());
    }
}

#[test]
fn takes_escapes_line_ends_and_data_urls() {
    for text in [
        r#"{"data":[{"b64_json":"\/\/\/\/aGVsbG8="}]}"#,
        r#"{"data":[{"b64_json":"//\n/\r\/aGVs\tbG8\u003d"}]}"#,
        r#"{"data":[{"b64_json":"data:image/png;base64,////aGVsbG8="}]}"#,
        r#"{"data":[{"url":"data:image\/png;base64,////aGVsbG8="}]}"#,
    ] {
        let (images, _) = scan_text(text);
        assert_eq!(images, [b"\xff\xff\xffhello"], "{text}");
    }
}

#[test]
fn short_strings_are_whole_images_and_empty_ones_none() {
    let (images, rest) = scan_text(r#"{"data":[{"b64_json":""},{"url":""},{"b64_json":"aA=="}]}"#);
    assert_eq!(images, [b"h"]);
    assert_eq!(
        rest["data"],
        json!([{"b64_json": ""}, {"url": ""}, {"b64_json": true}])
    );
}

#[test]
fn finds_images_only_in_the_entries_of_data() {
    for text in [
        r#"{"b64_json":"aGVs"}"#,
        r#"{"data":{"b64_json":"aGVs"}}"#,
        r#"{"data":["b64_json","aGVs"]}"#,
        r#"{"data":[[{"b64_json":"aGVs"}]]}"#,
        r#"{"data":[{"x":{"b64_json":"aGVs"}}]}"#,
        r#"{"x":{"data":[{"b64_json":"aGVs"}]}}"#,
        r#"[{"data":[{"b64_json":"aGVs"}]}]"#,
        r#"{"data":[{"x":["b64_json","aGVs"]}]}"#,
    ] {
        let (images, rest) = scan_text(text);
        assert!(images.is_empty(), "{text}");
        assert_eq!(rest, serde_json::from_str::<Value>(text).unwrap());
    }
}

#[test]
fn rejects_invalid_base64() {
    for text in [
        r#"{"data":[{"b64_json":"a*Vs"}]}"#,
        r#"{"data":[{"b64_json":"aGVs\u00e9"}]}"#,
        r#"{"data":[{"b64_json":"aGVs\q"}]}"#,
        r#"{"data":[{"b64_json":"data:image/png;base64"}]}"#,
    ] {
        assert_eq!(
            scan(&[text.as_bytes()]),
            Err(InvalidAnswer::Base64),
            "{text}"
        );
    }
}

#[test]
fn hostile_answers_stay_small() {
    let nested = "[".repeat(REST_BYTES_MAX + 1);
    assert_eq!(scan(&[nested.as_bytes()]), Err(InvalidAnswer::TooLong));
    let prompt = format!(
        r#"{{"data":[{{"revised_prompt":"{}"#,
        "a".repeat(REST_BYTES_MAX)
    );
    assert_eq!(scan(&[prompt.as_bytes()]), Err(InvalidAnswer::TooLong));
    let echo = vec![ImagePath::of_echo("/a")];
    let long = format!(r#"{{"a":"{}"}}"#, r#"é\""#.repeat(REST_BYTES_MAX));
    assert_eq!(
        scan_for(echo, &[long.as_bytes()]).unwrap().1,
        br#"{"a":true}"#
    );
    let closed = "]}".repeat(1000);
    assert!(scan(&[closed.as_bytes()]).unwrap().0.is_empty());
}

/// Generates answers as text, with the images in them.
fn answers() -> impl Strategy<Value = (String, Vec<Vec<u8>>)> {
    let lengths = prop_oneof![1..50usize, 1..200_000usize];
    let image = lengths.prop_perturb(|length, mut random| {
        let bytes: Vec<u8> = (0..length).map(|_| random.random()).collect();
        let text = base64_simd::STANDARD.encode_to_string(&bytes);
        let text = match random.random_range(0..5) {
            0 => text.replace('/', "\\/").replace('=', "\\u003D"),
            1 => text
                .trim_end_matches('=')
                .replace('+', "-")
                .replace('/', "_"),
            2 => text.replace('A', "A\\n"),
            3 => format!("data:image/png;base64,{text}"),
            _ => text,
        };
        (text, bytes)
    });
    proptest::collection::vec((image, ".{0,20}"), 0..4).prop_map(|entries| {
        let texts: Vec<String> = entries
            .iter()
            .map(|((text, _), prompt)| {
                format!(
                    r#"{{"revised_prompt": {},"b64_json":"{text}"}}"#,
                    json!(prompt)
                )
            })
            .collect();
        let answer = format!(
            "{{\"created\":1,\"data\":[{}],\"usage\":{{}}}}",
            texts.join(",")
        );
        let images = entries.into_iter().map(|((_, bytes), _)| bytes).collect();
        (answer, images)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_cut_changes_what_is_found(
        (answer, images) in answers(),
        lengths in proptest::collection::vec(prop_oneof![1..9usize, 1..100_000usize], 1..20),
    ) {
        let mut cuts = Vec::new();
        let mut left = answer.as_bytes();
        for length in lengths.iter().cycle() {
            if left.is_empty() {
                break;
            }
            let (cut, after) = left.split_at(left.len().min(*length));
            cuts.push(cut);
            left = after;
        }
        let (found, rest) = scan(&cuts).unwrap();
        prop_assert!(found == images);
        let rest: Value = serde_json::from_slice(&rest).unwrap();
        prop_assert_eq!(rest["data"].as_array().unwrap().len(), images.len());
    }

    #[test]
    fn junk_is_never_fatal(junk in proptest::collection::vec(
        proptest::sample::select(&br#"{}[]",:\ad u1"#[..]), 0..200)) {
        let head = br#"{"data":[{"b64_json":"#;
        let mut scanner = ImageScanner::new(images_api().into());
        for mut left in [&head[..], &junk] {
            while let Ok(Some(_)) = scanner.next(&mut left) {}
        }
    }
}
