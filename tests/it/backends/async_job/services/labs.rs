//! Black Forest Labs, and the models of Alibaba.

use serde_json::{Value, json};

use super::{
    super::server::{KEY, Look, Server, Service, decoded},
    n, unknown,
};
use crate::{
    backends::contract::Scenario,
    harness::fake_server::{Call, Reply},
};

pub const BFL: Service = Service {
    profile: "bfl",
    base: "/v1",
    model: "flux-2-pro",
    answer: bfl,
};

pub const DASHSCOPE: Service = Service {
    profile: "dashscope",
    base: "/api/v1",
    model: "wan2.6-image",
    answer: dashscope,
};

pub const DASHSCOPE_WAN25: Service = Service {
    profile: "dashscope-wan25",
    model: "wan2.5-i2i-preview",
    ..DASHSCOPE
};

fn bfl(server: &mut Server, call: &Call) -> Reply {
    let detail = |status, text: &str| Reply::json(status, &json!({"detail": text}));
    match call.line() {
        ("GET", line) if line == ["v1", "credits"] => Reply::json(200, &json!({"credits": 1.5})),
        ("POST", line) if line == ["v1", "flux-2-pro"] => {
            let fields = call.json();
            let inputs = (1..=8).map_while(|number| {
                let name = match number {
                    1 => "input_image".to_owned(),
                    _ => format!("input_image_{number}"),
                };
                fields[name].as_str().and_then(decoded)
            });
            if let Some(reply) = server.ask(inputs.collect()) {
                return reply;
            }
            match server.scenario {
                Scenario::KnowsNoKey => {
                    return detail(403, "Not authenticated - Invalid Authentication");
                }
                Scenario::LimitsRate => {
                    return detail(429, "Too many tasks").header("retry-after", "7");
                }
                Scenario::FindsInvalid => return bfl_invalid("prompt"),
                _ => assert_eq!(call.header("x-key"), Some(KEY)),
            }
            assert_eq!(call.header("authorization"), None);
            let known = [
                "prompt",
                "width",
                "height",
                "seed",
                "output_format",
                "safety_tolerance",
                "input_image",
                "input_image_2",
                "input_image_3",
            ];
            let sixteenth = |name: &str| fields[name].as_u64().is_some_and(|px| px % 16 == 0);
            match unknown(&fields, &known) {
                Some(name) => bfl_invalid(name),
                None if !sixteenth("width") || !sixteenth("height") => bfl_invalid("width"),
                None => {
                    let id = server.begin(1);
                    let polling_url = format!("{}/v1/get_result?id={id}", server.url);
                    Reply::json(200, &json!({"id": id, "polling_url": polling_url}))
                }
            }
        }
        ("GET", line) if line == ["v1", "get_result"] => {
            assert_eq!(call.header("x-key"), Some(KEY));
            let id = call.query.strip_prefix("id=").unwrap();
            let (status, result) = match server.look(id) {
                None => ("Task not found", Value::Null),
                Some(Err(reply)) => return reply,
                Some(Ok(Look::Queued | Look::Running)) => ("Pending", Value::Null),
                Some(Ok(Look::Refused)) => ("Content Moderated", Value::Null),
                Some(Ok(Look::Failed)) => ("Error", Value::Null),
                Some(Ok(Look::Done)) => {
                    let sample = server.links(id).into_iter().next();
                    ("Ready", json!({"sample": sample, "seed": 1, "prompt": "…"}))
                }
            };
            let body = json!({"id": id, "status": status, "result": result, "progress": null,
                "details": null});
            Reply::json(200, &body)
        }
        _ => detail(404, "Not Found"),
    }
}

fn bfl_invalid(name: &str) -> Reply {
    let fault = json!({"loc": ["body", name], "msg": "Field not allowed", "type": "value_error"});
    Reply::json(422, &json!({"detail": [fault]}))
}

/// Both of its APIs: messages, and prompts with a size.
fn dashscope(server: &mut Server, call: &Call) -> Reply {
    match call.line() {
        ("POST", line) if line[..4] == ["api", "v1", "services", "aigc"] => {
            dashscope_submit(server, call, line[4])
        }
        ("POST", line) if line.len() == 5 && line[4] == "cancel" => {
            server.cancel(line[3]);
            Reply::json(200, &json!({"request_id": "r-2"}))
        }
        ("GET", line) if line == ["api", "v1", "tasks"] => Reply::json(200, &json!({"data": []})),
        ("GET", line) if line[..3] == ["api", "v1", "tasks"] => {
            assert!(call.has_bearer(KEY), "{call:?}");
            let status = match server.look(line[3]) {
                None => "UNKNOWN",
                Some(Err(reply)) => return reply,
                Some(Ok(look)) => match look {
                    Look::Queued => "PENDING",
                    Look::Running => "RUNNING",
                    Look::Done => "SUCCEEDED",
                    Look::Refused | Look::Failed => "FAILED",
                },
            };
            dashscope_task(server, line[3], status)
        }
        _ => dashscope_error(404, "InvalidParameter", "url error"),
    }
}

fn dashscope_error(status: u16, code: &str, message: &str) -> Reply {
    let body = json!({"code": code, "message": message, "request_id": "r-1"});
    Reply::json(status, &body)
}

fn dashscope_submit(server: &mut Server, call: &Call, kind: &str) -> Reply {
    let error = dashscope_error;
    let body = call.json();
    let (input, parameters) = (&body["input"], &body["parameters"]);
    let message = &input["messages"][0]["content"];
    let images = match kind {
        "image-generation" => message.as_array().into_iter().flatten().collect(),
        _ => input["images"]
            .as_array()
            .into_iter()
            .flatten()
            .collect::<Vec<_>>(),
    };
    let images = images.into_iter().filter_map(|image| {
        let text = image["image"].as_str().or(image.as_str())?;
        decoded(text)
    });
    if let Some(reply) = server.ask(images.collect()) {
        return reply;
    }
    match server.scenario {
        Scenario::KnowsNoKey => {
            return error(401, "InvalidApiKey", "Invalid API-key provided.");
        }
        Scenario::LimitsRate => {
            let reply = error(429, "Throttling.RateQuota", "Requests rate limit exceeded");
            return reply.header("retry-after", "7");
        }
        Scenario::FindsInvalid => return error(400, "InvalidParameter", "n must be in 1..4"),
        _ => assert!(call.has_bearer(KEY), "{call:?}"),
    }
    if call.header("x-dashscope-async") != Some("enable") {
        let message = "current user api does not support synchronous calls.";
        return error(403, "AccessDenied", message);
    }
    let size = parameters["size"].as_str();
    let sized = size.is_none_or(|size| size.split('*').count() == 2 && !size.contains('x'));
    let text = match kind {
        "image-generation" => message
            .as_array()
            .and_then(|all| all.last()?["text"].as_str()),
        _ => input["prompt"].as_str(),
    };
    match n(parameters, "n", 4) {
        Some(n) if sized && text.is_some() => {
            let output = json!({"task_id": server.begin(n), "task_status": "PENDING"});
            Reply::json(200, &json!({"output": output, "request_id": "r-1"}))
        }
        _ => error(400, "InvalidParameter", "size must be like 1024*1024"),
    }
}

fn dashscope_task(server: &Server, id: &str, status: &str) -> Reply {
    let mut output = json!({"task_id": id, "task_status": status});
    let mut usage = Value::Null;
    if status == "FAILED" {
        let (code, message) = match server.scenario {
            Scenario::Refuses => (
                "DataInspectionFailed",
                "Output data may contain inappropriate content.",
            ),
            _ => ("InternalError", "An internal error has occurred."),
        };
        output["code"] = json!(code);
        output["message"] = json!(message);
    } else if status == "SUCCEEDED" {
        let links = server.links(id);
        let choice = |link: &String| {
            let content = json!([{"type": "image", "image": link}]);
            json!({"finish_reason": "stop", "message": {"role": "assistant", "content": content}})
        };
        output["choices"] = links.iter().map(choice).collect();
        output["results"] = links.iter().map(|link| json!({"url": link})).collect();
        usage = json!({"image_count": links.len()});
    }
    Reply::json(
        200,
        &json!({"output": output, "usage": usage, "request_id": "r-1"}),
    )
}
