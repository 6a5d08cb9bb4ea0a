//! Gateways with OpenAI's fields: this one, icodeeasy, apimart.

use serde_json::{Map, Value, json};

use super::{
    super::server::{KEY, Look, Server, Service, all_decoded, decoded},
    n, unknown,
};
use crate::{
    backends::contract::Scenario,
    harness::fake_server::{Call, Reply},
};

pub const EASEL: Service = Service {
    profile: "easel",
    base: "/v1",
    model: "gpt-image-2",
    answer: easel,
};

pub const ICODEEASY: Service = Service {
    profile: "icodeeasy",
    base: "/v1",
    model: "gpt-image-2",
    answer: icodeeasy,
};

pub const APIMART: Service = Service {
    profile: "apimart",
    base: "/v1",
    model: "gpt-image-2",
    answer: apimart,
};

fn error(status: u16, kind: &str, code: &str, message: &str) -> Reply {
    let error = json!({"message": message, "type": kind, "code": code, "param": null,
        "provider": "fake"});
    Reply::json(status, &json!({"error": error}))
}

/// The scenario's immediate answer to a submit, in the shape that all three share.
fn refused_at_once(server: &Server) -> Option<Reply> {
    Some(match server.scenario {
        Scenario::KnowsNoKey => error(
            401,
            "authentication_error",
            "invalid_api_key",
            "No such key.",
        ),
        Scenario::LimitsRate => {
            error(429, "rate_limit_error", "rate_limited", "Slower.").header("retry-after", "7")
        }
        Scenario::FindsInvalid => error(400, "invalid_request_error", "invalid_value", "No."),
        _ => return None,
    })
}

fn images(fields: &Value) -> Vec<Vec<u8>> {
    let mut images = all_decoded(&fields["image_urls"]);
    images.extend(fields["mask"].as_str().and_then(decoded));
    images
}

fn is_acceptable(fields: &Value, known: &[&str], n_max: u64) -> Result<usize, Reply> {
    let invalid = |message: &str| Err(error(400, "invalid_request_error", "invalid", message));
    if let Some(name) = unknown(fields, known) {
        return invalid(&format!("unknown {name}"));
    }
    if !fields["prompt"].is_string() || fields["model"] != "gpt-image-2" {
        return invalid("prompt and model are wanted");
    }
    if fields["size"] != "2:1" || fields["resolution"] != "1k" {
        return invalid("size is a ratio, resolution is 1k or 2k");
    }
    match n(fields, "n", n_max) {
        Some(n) => Ok(n),
        None => invalid("n is out of range"),
    }
}

/// The fields that all three know.
const FIELDS: [&str; 7] = [
    "model",
    "prompt",
    "n",
    "size",
    "resolution",
    "quality",
    "image_urls",
];

/// Begins the job of an asynchronous request, which may have one more field.
fn submit(server: &mut Server, call: &Call, more: &[&str]) -> Result<String, Reply> {
    let fields = call.json();
    let asked = server.ask(images(&fields));
    if let Some(reply) = asked.or_else(|| refused_at_once(server)) {
        return Err(reply);
    }
    assert!(call.has_bearer(KEY) && call.query == "async=1", "{call:?}");
    let n = is_acceptable(&fields, &[&FIELDS[..], more].concat(), 10)?;
    Ok(server.begin(n))
}

fn easel(server: &mut Server, call: &Call) -> Reply {
    match call.line() {
        ("GET", line) if line == ["v1", "models"] && call.has_bearer(KEY) => {
            Reply::json(200, &json!({"object": "list", "data": []}))
        }
        ("POST", line) if line == ["v1", "images", "generations"] => {
            let key = call.header("idempotency-key").unwrap();
            let fields = call.json();
            match server.repeated(key, &fields) {
                Some((id, true)) => return ticket(&id),
                Some((_, false)) => {
                    return error(422, "invalid_request_error", "reused", "Another body.");
                }
                None => {}
            }
            match submit(server, call, &["mask"]) {
                Ok(id) => {
                    server.remember(key, &id, fields);
                    ticket(&id)
                }
                Err(reply) => reply,
            }
        }
        ("GET", line) if line[..3] == ["v1", "images", "tasks"] => task(server, line[3], |links| {
            let data: Vec<Value> = links.iter().map(|link| json!({"url": link})).collect();
            json!({"data": data, "result_url": links.first(), "url": links.first()})
        }),
        _ => error(404, "not_found_error", "not_found", "No such route."),
    }
}

fn ticket(id: &str) -> Reply {
    let ticket = json!({"status": "pending", "task_id": id, "id": id,
        "poll_url": format!("https://elsewhere.example/v1/images/tasks/{id}")});
    Reply::json(202, &ticket)
}

fn task(server: &mut Server, id: &str, result: fn(&[String]) -> Value) -> Reply {
    let look = match server.look(id) {
        None => return error(404, "not_found_error", "not_found", "No such task."),
        Some(Err(reply)) => return reply,
        Some(Ok(look)) => look,
    };
    let mut task = Map::from_iter([
        ("task_id".to_owned(), json!(id)),
        ("model".to_owned(), json!("gpt-image-2")),
    ]);
    let more = match look {
        Look::Queued | Look::Running => json!({"status": "pending"}),
        Look::Done => {
            task.extend([("status".to_owned(), json!("completed"))]);
            task.extend([("cost".to_owned(), json!(0.2))]);
            result(&server.links(id))
        }
        Look::Refused => {
            json!({"status": "failed", "cost": 0, "fail_reason": "Rejected by the safety system.",
            "error": {"type": "invalid_request_error", "code": "moderation_blocked",
                "message": "Rejected by the safety system."}})
        }
        Look::Failed => json!({"status": "failed", "cost": 0, "fail_reason": "the upstream failed",
            "error": {"type": "server_error", "code": null, "message": "the upstream failed"}}),
    };
    task.extend(more.as_object().unwrap().clone());
    Reply::json(200, &Value::Object(task))
}

/// Its results are one lasting link, which redirects.
fn icodeeasy(server: &mut Server, call: &Call) -> Reply {
    match call.line() {
        ("GET", line) if line.len() < 4 => {
            error(404, "not_found_error", "not_found", "No such route.")
        }
        ("POST", line) if line == ["v1", "images", "generations"] => {
            match submit(server, call, &[]) {
                Ok(id) => Reply::json(202, &json!({"status": "pending", "task_id": id})),
                Err(reply) => reply,
            }
        }
        ("GET", line) if line[..3] == ["v1", "images", "tasks"] => task(server, line[3], |links| {
            let lasting = |link: &String| link.replace("/images/", "/images/lasting-");
            let links: Vec<String> = links.iter().map(lasting).collect();
            let data: Vec<Value> = links.iter().map(|link| json!({"url": link})).collect();
            match links.as_slice() {
                [one] => json!({"result_url": one}),
                _ => json!({"data": data}),
            }
        }),
        _ => error(404, "not_found_error", "not_found", "No such route."),
    }
}

fn apimart(server: &mut Server, call: &Call) -> Reply {
    match call.line() {
        ("POST", line) if line == ["v1", "uploads", "images"] => upload(server, call),
        ("POST", line) if line == ["v1", "images", "generations"] => {
            let fields = call.json();
            let urls = fields["image_urls"].as_array().into_iter().flatten();
            let urls = urls.chain(fields.get("mask_url")).filter_map(Value::as_str);
            let inputs: Option<Vec<_>> = urls.map(|url| server.kept(url)).collect();
            let asked = server.ask(inputs.clone().unwrap_or_default());
            if let Some(reply) = asked.or_else(|| refused_at_once(server)) {
                return reply;
            }
            assert!(call.has_bearer(KEY), "{call:?}");
            if inputs.is_none() {
                return error(400, "invalid_request_error", "400", "Upload images first.");
            }
            match is_acceptable(&fields, &[&FIELDS[..], &["mask_url"]].concat(), 4) {
                Ok(n) => {
                    let entry = json!({"status": "submitted", "task_id": server.begin(n)});
                    Reply::json(200, &json!({"code": 200, "data": [entry]}))
                }
                Err(reply) => reply,
            }
        }
        ("GET", line) if line[..2] == ["v1", "tasks"] => apimart_task(server, line[2]),
        _ => error(404, "not_found_error", "404", "No such route."),
    }
}

fn apimart_task(server: &mut Server, id: &str) -> Reply {
    let look = match server.look(id) {
        None => return error(404, "invalid_request_error", "404", "task not found"),
        Some(Err(reply)) => return reply,
        Some(Ok(look)) => look,
    };
    let failed = |code: &str, message: &str| json!({"status": "failed", "error": {"code": code, "message": message, "type": "upstream"}});
    let mut data = match look {
        Look::Queued => json!({"status": "pending", "progress": 0}),
        Look::Running => json!({"status": "in_progress", "progress": 40}),
        Look::Refused => failed("content_policy_violation", "It is not allowed."),
        Look::Failed => failed("500", "generation failed"),
        Look::Done => {
            // Older answers have a string, newer ones a list.
            let links = server.links(id);
            let images: Vec<Value> = match links.as_slice() {
                [one] => vec![json!({"url": one, "expires_at": 1_781_686_173})],
                several => vec![json!({"url": several, "expires_at": 1_781_686_173})],
            };
            json!({"status": "completed", "progress": 100, "result": {"images": images},
                "cost": 0.05})
        }
    };
    data["id"] = json!(id);
    Reply::json(200, &json!({"code": 200, "data": data}))
}

/// The only file of a form.
fn upload(server: &mut Server, call: &Call) -> Reply {
    assert!(call.has_bearer(KEY), "{call:?}");
    match &call.files[..] {
        [file] if file.name == "file" => {
            let url = server.keep(file.bytes.to_vec());
            let body = json!({"url": url, "filename": "photo.png", "content_type": "image/png",
                "bytes": file.bytes.len(), "created_at": 1_743_436_800});
            Reply::json(200, &body)
        }
        _ => {
            let message = "missing or invalid file field: http: no such file";
            error(400, "invalid_request_error", "400", message)
        }
    }
}
