//! fal's queue, Replicate's predictions, sd-server's jobs.

use serde_json::{Value, json};

use super::{
    super::server::{KEY, Look, Server, Service, all_decoded, decoded},
    n, unknown,
};
use crate::{
    backends::contract::Scenario,
    harness::fake_server::{Call, Reply},
};

pub const FAL: Service = Service {
    profile: "fal",
    base: "",
    model: "openai/gpt-image-2",
    answer: fal,
};

pub const REPLICATE: Service = Service {
    profile: "replicate",
    base: "/v1",
    model: "black-forest-labs/flux-2-pro",
    answer: replicate,
};

pub const SDCPP: Service = Service {
    profile: "sdcpp",
    base: "",
    model: "sd-cpp-local",
    answer: sdcpp,
};

fn fal(server: &mut Server, call: &Call) -> Reply {
    let detail = |status: u16, detail: Value| Reply::json(status, &json!({"detail": detail}));
    let (method, line) = call.line();
    match (method, line.as_slice()) {
        ("POST", ["openai", "gpt-image-2", rest @ ..]) => {
            let fields = call.json();
            let mut inputs = all_decoded(&fields["image_urls"]);
            inputs.extend(fields["mask_url"].as_str().and_then(decoded));
            let edits = rest == ["edit"];
            let fault = |name: &str, text: &str| {
                let fault = json!({"loc": ["body", name], "msg": text, "type": "value_error"});
                detail(422, json!([fault]))
            };
            if let Some(reply) = server.ask(inputs.clone()) {
                return reply;
            }
            match server.scenario {
                Scenario::KnowsNoKey => return detail(401, json!("Invalid key")),
                Scenario::LimitsRate => {
                    return detail(429, json!("Too many requests")).header("retry-after", "7");
                }
                Scenario::FindsInvalid => return fault("prompt", "Field required"),
                _ => assert_eq!(call.header("authorization"), Some(&*format!("Key {KEY}"))),
            }
            let mut known = vec![
                "prompt",
                "image_size",
                "num_images",
                "quality",
                "seed",
                "output_format",
            ];
            if edits {
                known.extend(["image_urls", "mask_url"]);
            }
            if let Some(name) = unknown(&fields, &known) {
                return fault(name, "Extra inputs are not permitted");
            }
            if edits == inputs.is_empty() || !fields["image_size"]["width"].is_u64() {
                return fault("image_urls", "Field required");
            }
            let Some(n) = n(&fields, "num_images", 4) else {
                return fault("num_images", "Input should be less than or equal to 4");
            };
            let id = server.begin(n);
            // The path without what follows the owner and the name.
            let url = format!("{}/openai/gpt-image-2/requests/{id}", server.url);
            let body = json!({"request_id": id, "response_url": url, "queue_position": 0,
                "status_url": format!("{url}/status"), "cancel_url": format!("{url}/cancel")});
            Reply::json(200, &body)
        }
        (method, ["openai", "gpt-image-2", "requests", id, rest @ ..]) => {
            assert_eq!(call.header("authorization"), Some(&*format!("Key {KEY}")));
            match (method, rest) {
                ("PUT", ["cancel"]) => {
                    server.cancel(&format!(
                        "{}{}",
                        server.url,
                        call.path.trim_end_matches("/cancel")
                    ));
                    Reply::json(202, &json!({"status": "CANCELLATION_REQUESTED"}))
                }
                ("GET", ["status"]) => fal_status(server, id),
                ("GET", []) => fal_result(server, id),
                _ => detail(404, json!("Not Found")),
            }
        }
        _ => detail(404, json!("Not Found")),
    }
}

fn fal_status(server: &mut Server, id: &str) -> Reply {
    let status = match server.look(id) {
        None => return Reply::json(404, &json!({"detail": "Request not found"})),
        Some(Err(reply)) => return reply,
        Some(Ok(Look::Queued)) => json!({"status": "IN_QUEUE", "queue_position": 3}),
        Some(Ok(Look::Running)) => json!({"status": "IN_PROGRESS", "logs": null}),
        Some(Ok(Look::Failed)) => json!({"status": "COMPLETED", "error": "The runner has died.",
            "error_type": "runner_error"}),
        Some(Ok(Look::Done | Look::Refused)) => {
            json!({"status": "COMPLETED", "metrics": {"inference_time": 3.7}})
        }
    };
    Reply::json(202, &status).status(if status["status"] == "COMPLETED" {
        200
    } else {
        202
    })
}

fn fal_result(server: &mut Server, id: &str) -> Reply {
    if let Some(reply) = server.scripted_result() {
        return reply;
    }
    if server.scenario == Scenario::Refuses {
        let fault = json!({"loc": ["body", "prompt"], "msg": "The content could not be processed.",
            "type": "content_policy_violation"});
        return Reply::json(422, &json!({"detail": [fault]}));
    }
    let image = |link: String| json!({"url": link, "width": 64, "height": 32});
    let images: Vec<Value> = server.links(id).into_iter().map(image).collect();
    Reply::json(200, &json!({"images": images, "seed": 7}))
}

fn replicate(server: &mut Server, call: &Call) -> Reply {
    let unknown = || {
        problem(
            404,
            "Not found",
            "The requested resource could not be found.",
        )
    };
    let (method, line) = call.line();
    match (method, line.as_slice()) {
        ("GET", ["v1", "account"]) => Reply::json(200, &json!({"type": "user", "username": "u"})),
        ("POST", ["v1", "models", owner, name, "predictions"]) => {
            assert_eq!(format!("{owner}/{name}"), REPLICATE.model);
            replicate_submit(server, call)
        }
        ("POST", ["v1", "predictions", id, "cancel"]) => {
            server.cancel(id);
            Reply::json(200, &prediction(server, id, "canceled"))
        }
        ("GET", ["v1", "predictions", id]) => {
            assert!(call.has_bearer(KEY), "{call:?}");
            let status = match server.look(id) {
                None => return unknown(),
                Some(Err(reply)) => return reply,
                Some(Ok(Look::Queued)) => "starting",
                Some(Ok(Look::Running)) => "processing",
                Some(Ok(Look::Done)) => "succeeded",
                Some(Ok(Look::Refused | Look::Failed)) => "failed",
            };
            Reply::json(200, &prediction(server, id, status))
        }
        _ => unknown(),
    }
}

fn problem(status: u16, title: &str, detail: &str) -> Reply {
    let body = json!({"title": title, "detail": detail, "status": status});
    Reply::json(status, &body)
}

fn replicate_submit(server: &mut Server, call: &Call) -> Reply {
    let body = call.json();
    let input = &body["input"];
    if let Some(reply) = server.ask(all_decoded(&input["input_images"])) {
        return reply;
    }
    let invalid = |detail: &str| problem(422, "Input validation failed", detail);
    match server.scenario {
        Scenario::KnowsNoKey => return problem(401, "Unauthenticated", "You did not pass a token"),
        Scenario::LimitsRate => {
            let reply = problem(429, "Too many requests", "Request was throttled.");
            return reply.header("retry-after", "7");
        }
        Scenario::FindsInvalid => return invalid("- input: prompt is required\n"),
        _ => assert!(call.has_bearer(KEY), "{call:?}"),
    }
    let images = input["input_images"].as_array().into_iter().flatten();
    let mut images = images.filter_map(Value::as_str);
    let fits = |image: &str| {
        image.starts_with("https://") || (image.starts_with("data:") && image.len() <= 256 * 1024)
    };
    if !images.all(fits) {
        return invalid("- input_images: too large\n");
    }
    let known = ["prompt", "aspect_ratio", "seed", "input_images"];
    if unknown(&body, &["input"]).is_some() || unknown(input, &known).is_some() {
        return invalid("- input: unknown property\n");
    }
    let id = server.begin(1);
    Reply::json(201, &prediction(server, &id, "starting"))
}

fn prediction(server: &Server, id: &str, status: &str) -> Value {
    let url = |rest: &str| format!("{}/v1/predictions/{id}{rest}", server.url);
    let error = match (status, server.scenario) {
        ("failed", Scenario::Refuses) => json!(
            "The input or output was flagged as sensitive. Please try again with different inputs. (E005)"
        ),
        ("failed", _) => json!("CUDA out of memory"),
        _ => Value::Null,
    };
    // For one image, some models return a link, others a list.
    let output = match (status, server.links(id).as_slice()) {
        ("succeeded", [one]) if id.ends_with(['1', '3', '5']) => json!(one),
        ("succeeded", several) => json!(several),
        _ => Value::Null,
    };
    let metrics = match status {
        "succeeded" => json!({"predict_time": 4.2, "image_count": 1}),
        _ => json!({}),
    };
    json!({"id": id, "model": "black-forest-labs/flux-2-pro", "version": "hidden", "input": {},
        "logs": "", "output": output, "data_removed": false, "error": error, "source": "api",
        "status": status, "created_at": "2026-06-16T08:49:33.123Z", "metrics": metrics,
        "urls": {"get": url(""), "cancel": url("/cancel"), "stream": url("/stream")}})
}

/// It requires no key, but a proxy in front of it may.
fn sdcpp(server: &mut Server, call: &Call) -> Reply {
    let error = |status: u16, text: &str| Reply::json(status, &json!({"error": text}));
    let (method, line) = call.line();
    match (method, line.as_slice()) {
        ("GET", ["sdcpp", "v1", "capabilities"]) => Reply::json(200, &json!({"mode": "img_gen"})),
        ("POST", ["sdcpp", "v1", "img_gen"]) => {
            let fields = call.json();
            let mut inputs = all_decoded(&fields["ref_images"]);
            inputs.extend(fields["mask_image"].as_str().and_then(decoded));
            if let Some(reply) = server.ask(inputs) {
                return reply;
            }
            assert_eq!(call.header("authorization"), None);
            match server.scenario {
                Scenario::KnowsNoKey => return error(401, "who are you?"),
                Scenario::LimitsRate => return error(429, "job queue is full"),
                Scenario::FindsInvalid => return error(400, "prompt required"),
                _ => {}
            }
            let pixels = |name: &str| fields[name].as_u64().is_some_and(|px| px <= 4096);
            match n(&fields, "batch_count", 8) {
                Some(n) if pixels("width") && pixels("height") => {
                    let id = server.begin(n);
                    let body = json!({"id": id, "kind": "img_gen", "status": "queued", "created": 1,
                        "poll_url": format!("/sdcpp/v1/jobs/{id}")});
                    Reply::json(202, &body)
                }
                _ => error(400, "invalid dimensions"),
            }
        }
        ("POST", ["sdcpp", "v1", "jobs", id, "cancel"]) => {
            server.cancel(id);
            Reply::json(200, &json!({"id": id, "status": "cancelled"}))
        }
        ("GET", ["sdcpp", "v1", "jobs", id]) => {
            let (status, fault) = match server.look(id) {
                None => return error(404, "job not found"),
                Some(Err(reply)) => return reply,
                Some(Ok(Look::Queued)) => ("queued", Value::Null),
                Some(Ok(Look::Running)) => ("generating", Value::Null),
                Some(Ok(Look::Done)) => ("completed", Value::Null),
                Some(Ok(Look::Refused)) => ("failed", json!("rejected by the safety system")),
                Some(Ok(Look::Failed)) => ("failed", json!("out of memory")),
            };
            let mut body = json!({"id": id, "kind": "img_gen", "status": status, "created": 1});
            if !fault.is_null() {
                body["error"] = json!({"code": "generation_failed", "message": fault});
            }
            if status == "completed" {
                let images = server.base64(id).into_iter().enumerate();
                let images = images.map(|(i, b64)| json!({"index": i, "b64_json": b64}));
                let images: Vec<Value> = images.collect();
                body["result"] = json!({"output_format": "png", "images": images});
            }
            let reply = Reply::json(200, &body);
            if status == "completed" && server.scenario == Scenario::BreaksOff {
                let cut = reply.length() - 100;
                return reply.cut_at(cut);
            }
            reply
        }
        _ => Reply::empty(404),
    }
}
