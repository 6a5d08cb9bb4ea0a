//! A fake server with the web UI's API: as strict as the web UI about its input, and as verbose as sd-server, which
//! repeats the whole input.

use base64_simd::STANDARD;
use serde_json::{Value, json};

use crate::{
    backends::contract::{FakeUpstream, Scenario},
    harness::{
        fake_server::{Call, FakeServer, Protocol, Reply},
        images,
    },
};

/// The credentials it was started with.
const KEY: &str = "heron:nest:7f3a9c";

/// A fake that listens on loopback until it is dropped.
pub(super) type WebUi = FakeServer<Server>;

/// The state of the fake.
#[derive(Default)]
pub(super) struct Server {
    scenario: Scenario,
    /// How many images to withhold from the answer.
    pub(super) withheld: u64,
}

impl WebUi {
    pub(super) async fn start() -> Self {
        Self::serving(|_| Server::default()).await
    }

    /// The settings of a backend for it; `more` is added to its address and key.
    pub(super) fn settings_with(&self, more: &str) -> String {
        let url = &self.url;
        format!(
            "kind = \"sdapi\"\nbase_url = \"{url}\"\napi_key = \"{KEY}\"\nnative_side_px = 64\n\
             side_step_px = 8\nupscale = \"hires\"\nbatch_max = 4\n{more}"
        )
    }

    /// Every request so far, without the checks.
    pub(super) fn requests(&self) -> Vec<Call> {
        self.calls_by("POST")
    }
}

impl FakeUpstream for WebUi {
    fn settings(&self) -> String {
        self.settings_with("")
    }

    fn model(&self) -> String {
        "herons_v2".to_owned()
    }

    fn play(&self, scenario: Scenario) {
        self.state().scenario = scenario;
    }

    fn plays(&self, scenario: Scenario) -> bool {
        !matches!(scenario, Scenario::Refuses | Scenario::LimitsRate)
    }

    fn asked(&self) -> usize {
        self.requests().len()
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        let body = self.requests().pop().unwrap().json();
        let images = body["init_images"].as_array().into_iter().flatten();
        let texts = images.chain([&body["mask"]]).filter_map(Value::as_str);
        texts
            .map(|text| STANDARD.decode_to_vec(text).unwrap())
            .collect()
    }

    /// White exactly where the given mask is transparent.
    fn is_mask(&self, given: &[u8], came: &[u8]) -> bool {
        let given = image::load_from_memory(given).unwrap().into_rgba8();
        let came = image::load_from_memory(came).unwrap();
        assert_eq!(came.color(), image::ColorType::L8);
        let came = came.into_luma8();
        given.dimensions() == came.dimensions()
            && given
                .pixels()
                .zip(came.pixels())
                .all(|(given, came)| (given.0[3] == 0) == (came.0[0] == 255))
    }
}

impl Protocol for Server {
    fn answer(&mut self, call: &Call) -> Reply {
        let (method, line) = call.line();
        let credentials = format!("Basic {}", STANDARD.encode_to_string(KEY));
        let has_key = call.header("authorization") == Some(&credentials);
        match (method, line.as_slice()) {
            ("POST", ["sdapi", "v1", "txt2img" | "img2img"]) => self.generate(call, has_key),
            ("GET", ["sdapi", "v1", "sd-models"]) if has_key => {
                let model = json!({"title": "herons_v2", "model_name": "herons_v2"});
                Reply::json(200, &json!([model]))
            }
            ("GET", ["sdapi", "v1", "sd-models"]) => wrong_key(),
            _ => Reply::empty(404),
        }
    }
}

impl Server {
    fn generate(&self, call: &Call, has_key: bool) -> Reply {
        let body = call.json();
        match self.scenario {
            Scenario::KnowsNoKey => return wrong_key(),
            Scenario::FindsInvalid => return error(404, "HTTPException", "Sampler not found"),
            Scenario::Fails => return error(500, "OutOfMemoryError", ""),
            Scenario::Hangs => return Reply::never(),
            Scenario::GeneratesNothing => return answer(&[], &body),
            Scenario::GeneratesNoImage => return answer(&[b"<html>It works!".to_vec()], &body),
            Scenario::BreaksOff => return answer(&[vec![7; 100_000]], &json!({})).cut_in_half(),
            Scenario::Generates | Scenario::Refuses | Scenario::LimitsRate => {}
        }
        if !has_key {
            return wrong_key();
        }
        for image in body["init_images"].as_array().into_iter().flatten() {
            let decoded = STANDARD.decode_to_vec(image.as_str().unwrap());
            if !decoded.is_ok_and(|bytes| image::guess_format(&bytes).is_ok()) {
                return error(500, "HTTPException", "Invalid encoded image");
            }
        }
        let names = match body["enable_hr"].as_bool() {
            Some(true) => ["hr_resize_x", "hr_resize_y"],
            _ => ["width", "height"],
        };
        let [width, height] =
            names.map(|name| u32::try_from(body[name].as_u64().unwrap()).unwrap());
        if width % 8 != 0 || height % 8 != 0 {
            let detail = json!([{"msg": "sides must be a multiple of 8"}]);
            return Reply::json(422, &json!({"detail": detail}));
        }
        let count = body["batch_size"].as_u64().unwrap() - self.withheld;
        let result =
            (0..count).map(|index| images::grey(width, height, u8::try_from(index).unwrap()));
        answer(&result.collect::<Vec<_>>(), &body)
    }
}

fn wrong_key() -> Reply {
    Reply::json(401, &json!({"detail": "Incorrect username or password"}))
}

fn error(status: u16, kind: &str, detail: &str) -> Reply {
    let body = json!({"error": kind, "detail": detail, "body": "", "errors": ""});
    Reply::json(status, &body)
}

fn answer(images: &[Vec<u8>], parameters: &Value) -> Reply {
    let images: Vec<String> = images
        .iter()
        .map(|image| STANDARD.encode_to_string(image))
        .collect();
    let body = json!({"images": images, "info": "", "parameters": parameters});
    Reply::json(200, &body)
}
