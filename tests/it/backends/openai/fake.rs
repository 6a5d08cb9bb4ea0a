//! The fake of OpenAI's API and its copies, as an upstream of the contract.

use base64_simd::STANDARD;
use serde_json::json;

use crate::{
    backends::contract::{FakeUpstream, Scenario, fulfils_the_contract},
    harness::upstream::{Call, Dialect, Reply, Upstream},
};

fn requests(upstream: &Upstream) -> Vec<Call> {
    let mut calls = upstream.calls();
    calls.retain(|call| call.path.contains("/images/"));
    calls
}

fn refuses(dialect: Dialect) -> Reply {
    let message = "Your task failed as a result of our safety system.";
    match dialect {
        Dialect::AzureDeployments | Dialect::AzureV1 => {
            let error = json!({"code": "contentFilter", "message": message});
            Reply::json(400, &json!({"created": 1_781_599_773, "error": error}))
        }
        Dialect::Generic => Reply::bytes("text/html", "<html>").status(451),
        _ => dialect.error(400, "moderation_blocked", "No."),
    }
}

fn finds_invalid(dialect: Dialect) -> Reply {
    match dialect {
        Dialect::SdServer => Reply::json(
            500,
            &json!({"error": "server_error",
                "message": "[json.exception.type_error.302] type must be number, but is string"}),
        ),
        other => other.error(400, "invalid_value", "Invalid size."),
    }
}

impl FakeUpstream for Upstream {
    fn settings(&self) -> String {
        self.settings("")
    }

    fn model(&self) -> String {
        "gpt-image-2".to_owned()
    }

    fn play(&self, scenario: Scenario) {
        let dialect = self.state().dialect;
        let error = |status, code| dialect.error(status, code, "It is so.");
        let reply = match scenario {
            Scenario::Generates => None,
            Scenario::Refuses => Some(refuses(dialect)),
            Scenario::FindsInvalid => Some(finds_invalid(dialect)),
            Scenario::KnowsNoKey => Some(error(401, "invalid_api_key")),
            Scenario::LimitsRate => {
                Some(error(429, "rate_limit_exceeded").header("retry-after", "7"))
            }
            Scenario::Fails => Some(error(500, "server_error")),
            Scenario::Hangs => Some(Reply::never()),
            Scenario::BreaksOff => Some(Reply::images(&[vec![7; 100_000]]).cut_in_half()),
            Scenario::GeneratesNothing => Some(Reply::images(&[])),
            Scenario::GeneratesNoImage => Some(Reply::images(&[b"<html>It works!".to_vec()])),
        };
        self.always(reply);
    }

    fn plays(&self, scenario: Scenario) -> bool {
        match self.state().dialect {
            Dialect::SdServer => !matches!(
                scenario,
                Scenario::Refuses | Scenario::KnowsNoKey | Scenario::LimitsRate
            ),
            Dialect::Localai => scenario != Scenario::Refuses,
            _ => true,
        }
    }

    fn asked(&self) -> usize {
        requests(self).len()
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        let last = requests(self).pop().unwrap();
        let file = last.fields.get("file").and_then(|file| file.as_str());
        let files = last.files.iter().map(|file| file.bytes.to_vec());
        file.map(|file| STANDARD.decode_to_vec(file).unwrap())
            .into_iter()
            .chain(files)
            .collect()
    }
}

#[tokio::test]
async fn every_profile_fulfils_the_contract_of_a_backend() {
    for dialect in Dialect::ALL {
        fulfils_the_contract(&Upstream::speaking(dialect).await).await;
    }
}
