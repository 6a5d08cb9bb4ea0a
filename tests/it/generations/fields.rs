//! The fields of a request: how each is read, and the exact error for each that is refused.

use insta::{assert_json_snapshot, assert_snapshot};
use reqwest::{Method, multipart::Form};
use serde_json::json;

use super::{FAILING, READING, accepted, body};
use crate::harness::{TestApp, caller::Answer};

#[tokio::test]
async fn invalid_fields_are_refused_by_name() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let mut bodies = Vec::new();
    for (field, value) in [
        ("model", json!(null)),
        ("model", json!("")),
        ("model", json!(7)),
        ("model", json!("dall-e-3")),
        ("prompt", json!(null)),
        ("prompt", json!("")),
        ("prompt", json!(" \n\t")),
        ("prompt", json!("a\0b")),
        ("prompt", json!(["a"])),
        ("prompt", json!("猫".repeat(32_001))),
        ("prompt", json!("x".repeat(400_000))),
        ("n", json!(0)),
        ("n", json!(11)),
        ("n", json!(300)),
        ("n", json!(-1)),
        ("n", json!(1.5)),
        ("n", json!("two")),
        ("size", json!("7:5")),
        ("size", json!("1000x700")),
        ("size", json!("1055x1024")),
        ("size", json!("0x0")),
        ("size", json!("huge")),
        ("size", json!("4096x4096")),
        ("size", json!("x".repeat(4096))),
        ("resolution", json!("4k")),
        ("resolution", json!("1024")),
        ("quality", json!("ultra")),
        ("response_format", json!("png")),
        ("mask", json!("data:image/png;base64,AAAA")),
        ("mask", json!(["https://a.invalid/", "https://b.invalid/"])),
    ] {
        let answer = caller
            .post("/v1/images/generations", &body(json!({ field: value })))
            .await;
        bodies.push(answer.refusal());
    }
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"model is required, allowed: gemini-3-pro-image-preview, gpt-image-2","type":"invalid_request_error","code":null,"param":"model","provider":"easel"}}
    400 {"error":{"message":"model must be a string","type":"invalid_request_error","code":null,"param":"model","provider":"easel"}}
    404 {"error":{"message":"no such model: dall-e-3, allowed: gemini-3-pro-image-preview, gpt-image-2","type":"not_found_error","code":"model_not_found","param":"model","provider":"easel"}}
    400 {"error":{"message":"prompt is required","type":"invalid_request_error","code":null,"param":"prompt","provider":"easel"}}
    400 {"error":{"message":"prompt must not be blank","type":"invalid_request_error","code":null,"param":"prompt","provider":"easel"}}
    400 {"error":{"message":"prompt must not contain the character NUL","type":"invalid_request_error","code":null,"param":"prompt","provider":"easel"}}
    400 {"error":{"message":"prompt must be a string","type":"invalid_request_error","code":null,"param":"prompt","provider":"easel"}}
    400 {"error":{"message":"prompt has 32001 characters, allowed are 32000","type":"invalid_request_error","code":null,"param":"prompt","provider":"easel"}}
    400 {"error":{"message":"prompt must have at most 32000 characters","type":"invalid_request_error","code":null,"param":"prompt","provider":"easel"}}
    400 {"error":{"message":"n must be an integer from 1 to 10","type":"invalid_request_error","code":null,"param":"n","provider":"easel"}}
    400 {"error":{"message":"size must be auto, one of 1:1, 3:2, 2:3, 4:3, 3:4, 5:4, 4:5, 16:9, 9:16, 2:1, 1:2, 21:9, 9:21, or pixels like 1536x1024 within 3 % of one of these ratios","type":"invalid_request_error","code":null,"param":"size","provider":"easel"}}
    400 {"error":{"message":"size must be below 5767168 pixels in all","type":"invalid_request_error","code":null,"param":"size","provider":"easel"}}
    400 {"error":{"message":"size must have at most 4096 bytes","type":"invalid_request_error","code":null,"param":"size","provider":"easel"}}
    400 {"error":{"message":"resolution must be 1k or 2k","type":"invalid_request_error","code":null,"param":"resolution","provider":"easel"}}
    400 {"error":{"message":"quality must be low, medium, high or auto","type":"invalid_request_error","code":null,"param":"quality","provider":"easel"}}
    400 {"error":{"message":"response_format must be url or b64_json","type":"invalid_request_error","code":null,"param":"response_format","provider":"easel"}}
    400 {"error":{"message":"the model gpt-image-2 takes no mask","type":"invalid_request_error","code":null,"param":"mask","provider":"easel"}}
    400 {"error":{"message":"mask must be one image","type":"invalid_request_error","code":null,"param":"mask","provider":"easel"}}
    "#);
    assert_eq!(caller.balance().await["balance"], 9.0);
    app.finish().await;
}

#[tokio::test]
async fn absent_fields_have_their_defaults() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("9").await;
    for fields in [
        json!({}),
        json!({"n": null, "size": null, "resolution": null, "quality": null, "image": null}),
        json!({"n": 1, "size": "auto", "quality": "auto", "response_format": "url"}),
    ] {
        let request = accepted(&app, &caller, fields).await;
        assert_eq!(request["n"], 1);
        assert_eq!(request["ratio"], "1:1");
        assert_eq!(request["resolution"], "1k");
        assert_eq!(request["quality"], "medium");
        assert_eq!(request["size"], json!({"width": 1024, "height": 1024}));
    }
    app.finish().await;
}

#[tokio::test]
async fn sizes_are_generated_as_the_table_says() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("99").await;
    for (ratio, one_k, two_k) in [
        ("1:1", "1024x1024", "2048x2048"),
        ("3:2", "1536x1024", "2048x1360"),
        ("2:3", "1024x1536", "1360x2048"),
        ("4:3", "1024x768", "2048x1536"),
        ("3:4", "768x1024", "1536x2048"),
        ("5:4", "1280x1024", "2560x2048"),
        ("4:5", "1024x1280", "2048x2560"),
        ("16:9", "1536x864", "2048x1152"),
        ("9:16", "864x1536", "1152x2048"),
        ("2:1", "2048x1024", "2688x1344"),
        ("1:2", "1024x2048", "1344x2688"),
        ("21:9", "2016x864", "2688x1152"),
        ("9:21", "864x2016", "1152x2688"),
    ] {
        for (resolution, pixels) in [("1k", one_k), ("2K", two_k)] {
            let asked = json!({"size": ratio, "resolution": resolution});
            let request = accepted(&app, &caller, asked).await;
            let size = &request["size"];
            assert_eq!(format!("{}x{}", size["width"], size["height"]), pixels);
            assert_eq!(request["ratio"], ratio);
        }
    }
    app.finish().await;
}

#[tokio::test]
async fn pixels_are_the_nearest_ratio_and_decide_the_resolution() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("99").await;
    for (asked, ratio, resolution) in [
        (json!({"size": "1024x1024"}), "1:1", "1k"),
        (json!({"size": "1792x1024"}), "16:9", "1k"),
        (json!({"size": "1054x1024"}), "1:1", "1k"),
        (json!({"size": "1536x1536"}), "1:1", "2k"),
        (json!({"size": "1535x1536"}), "1:1", "1k"),
        (json!({"size": "2048x2048"}), "1:1", "2k"),
        (
            json!({"size": "2048x2048", "resolution": "1K"}),
            "1:1",
            "1k",
        ),
        (json!({"size": "512x512", "resolution": "2k"}), "1:1", "2k"),
    ] {
        let request = accepted(&app, &caller, asked.clone()).await;
        assert_eq!(request["ratio"], ratio, "{asked}");
        assert_eq!(request["resolution"], resolution, "{asked}");
    }
    app.finish().await;
}

#[tokio::test]
async fn quality_sets_the_price() {
    let app = TestApp::with("[backends.demo]\nkind = 'demo'\ndelay_ms = 60000").await;
    for (quality, held) in [
        ("low", 0.1),
        ("medium", 0.2),
        ("auto", 0.2),
        ("standard", 0.2),
        ("high", 0.4),
        ("hd", 0.4),
    ] {
        let caller = app.caller("9").await;
        caller.submit(&body(json!({ "quality": quality }))).await;
        assert_eq!(caller.balance().await["held"], held, "{quality}");
    }
    app.kill();
}

#[tokio::test]
async fn fields_that_no_backend_reads_are_ignored_and_not_stored() {
    let app = TestApp::with(READING).await;
    let caller = app.caller("9").await;
    let fields = json!({"background": "transparent", "moderation": "low", "output_format": "webp",
        "output_compression": 80, "input_fidelity": "high", "style": "vivid", "user": "u-1",
        "stream": false, "x": {"y": [1, null]}, "z": "z".repeat(10_000)});
    let request = accepted(&app, &caller, fields).await;
    let read = json!({"background": "transparent", "output_compression": 80, "user": "u-1",
        "x": {"y": [1, null]}});
    assert_eq!(request["options"], read);

    let odd = json!({"user": "a\0b", "a\0b": {"c": ["d\0"]}, "x": [{"a\0": 1}], "seed": 1e300});
    let request = accepted(&app, &caller, odd).await;
    assert_eq!(request["options"], json!({"seed": 1e300}));
    app.finish().await;
}

#[tokio::test]
async fn fields_that_a_backend_reads_have_a_length() {
    let app = TestApp::with(READING).await;
    let caller = app.caller("9").await;
    let mut bodies = Vec::new();
    let long = "u".repeat(4095);
    let asked = body(json!({ "user": long }));
    let answer = caller.post("/v1/images/generations", &asked).await;
    bodies.push(answer.refusal());
    let form = Form::new()
        .text("user", format!("{long}uu"))
        .text("model", "gpt-image-2")
        .text("prompt", "a cat");
    let answer = caller.post_form("/v1/images/generations", form).await;
    bodies.push(answer.refusal());

    let most = accepted(&app, &caller, json!({ "user": &long[1..] })).await;
    assert_eq!(most["options"]["user"], &long[1..]);
    // The last value of a repeated name counts, but each was read.
    let many = vec![format!("\"user\":\"{}\"", &long[1..]); 17].join(",");
    let asked = format!("{{\"model\":\"gpt-image-2\",\"prompt\":\"a cat\",{many}}}");
    let request = caller.request(Method::POST, "/v1/images/generations");
    let answer = Answer::of(request.body(asked)).await;
    bodies.push(answer.refusal());
    assert_snapshot!(bodies.join("\n"), @r#"
    400 {"error":{"message":"user must have at most 4096 bytes","type":"invalid_request_error","code":null,"param":"user","provider":"easel"}}
    400 {"error":{"message":"user must have at most 4096 bytes","type":"invalid_request_error","code":null,"param":"user","provider":"easel"}}
    400 {"error":{"message":"the fields beside prompt and references must have at most 65536 bytes in all","type":"invalid_request_error","code":null,"param":"user","provider":"easel"}}
    "#);
    app.finish().await;
}

#[tokio::test]
async fn streaming_is_refused_before_anything_is_held() {
    let app = TestApp::start().await;
    let caller = app.caller("9").await;
    let mut bodies = Vec::new();
    for fields in [
        json!({"stream": true}),
        json!({"stream": "true", "partial_images": 2}),
    ] {
        let answer = caller.post("/v1/images/generations", &body(fields)).await;
        bodies.push(answer.refusal());
    }
    for text in ["true", "1"] {
        let form = Form::new()
            .text("model", "gpt-image-2")
            .text("prompt", "a cat")
            .text("stream", text);
        let answer = caller.post_form("/v1/images/edits", form).await;
        bodies.push(answer.refusal());
    }
    bodies.dedup();
    assert_snapshot!(bodies.join("\n"), @r#"400 {"error":{"message":"stream is not available yet: leave it out, or send false","type":"invalid_request_error","code":null,"param":"stream","provider":"easel"}}"#);
    for fields in [json!({"stream": false}), json!({"stream": null})] {
        let answer = caller.post("/v1/images/generations", &body(fields)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    app.finish().await;
}

#[tokio::test]
async fn a_number_of_images_may_be_spelt_as_clients_spell_it() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("9").await;
    for n in [json!(2), json!(2.0), json!("2"), json!("2.0")] {
        let request = accepted(&app, &caller, json!({ "n": n })).await;
        assert_eq!(request["n"], 2, "{n}");
    }
    app.finish().await;
}

#[tokio::test]
async fn the_longest_prompt_is_kept_complete() {
    let app = TestApp::with(FAILING).await;
    let caller = app.caller("9").await;
    let prompt = format!(" {}\u{1F408}\n", "猫".repeat(31_997));
    let request = accepted(&app, &caller, json!({ "prompt": prompt })).await;
    assert_eq!(request["prompt"], prompt);
    app.finish().await;
}

#[tokio::test]
async fn options_that_no_single_route_supports_are_refused_before_the_hold() {
    let routes = "[backends]\ndemo = { kind = 'demo' }\nmasks = { kind = 'sdapi' }\n\
                  [models.gpt-image-2]\nroutes = ['demo', 'masks']\n";
    let app = TestApp::with(routes).await;
    let caller = app.caller("9").await;
    let image = "data:image/png;base64,AAAA";
    let both = body(json!({"image_urls": [image, image], "mask": image}));
    let answer = caller.post("/v1/images/generations", &both).await;
    assert_json_snapshot!(answer.refused(400), @r#"
    {
      "error": {
        "code": null,
        "message": "2 reference images given, the model gpt-image-2 takes 1 at most beside a mask",
        "param": "image_urls",
        "provider": "easel",
        "type": "invalid_request_error"
      }
    }
    "#);
    app.finish().await;
}
