//! The fake of OpenAI's API and its copies, as an upstream of the contract.

use std::sync::Arc;

use base64_simd::STANDARD;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::{
    backends::contract::{FakeUpstream, Scenario, fulfils_the_contract},
    harness::upstream::{Dialect, Received, Reply, Upstream},
};

struct Copy {
    upstream: Upstream,
    dialect: Dialect,
}

impl Copy {
    fn requests(&self) -> Vec<Received> {
        let mut received = self.upstream.received();
        received.retain(|call| call.path.contains("/images/"));
        received
    }

    fn refuses(&self) -> Reply {
        let message = "Your task failed as a result of our safety system.";
        match self.dialect {
            Dialect::AzureDeployments | Dialect::AzureV1 => {
                let error = json!({"code": "contentFilter", "message": message});
                Reply::json(400, &json!({"created": 1_781_599_773, "error": error}))
            }
            Dialect::Generic => Reply::bytes("text/html", b"<html>".to_vec()).status(451),
            _ => self.dialect.error(400, "moderation_blocked", "No."),
        }
    }

    fn finds_invalid(&self) -> Reply {
        match self.dialect {
            Dialect::SdServer => Reply::json(
                500,
                &json!({"error": "server_error",
                    "message": "[json.exception.type_error.302] type must be number, but is string"}),
            ),
            other => other.error(400, "invalid_value", "Invalid size."),
        }
    }
}

impl FakeUpstream for Copy {
    fn settings(&self) -> String {
        self.upstream.settings("")
    }

    fn model(&self) -> String {
        "gpt-image-2".to_owned()
    }

    fn play(&self, scenario: Scenario) {
        let error = |status, code| self.dialect.error(status, code, "It is so.");
        let reply = match scenario {
            Scenario::Generates => None,
            Scenario::Refuses => Some(self.refuses()),
            Scenario::FindsInvalid => Some(self.finds_invalid()),
            Scenario::KnowsNoKey => Some(error(401, "invalid_api_key")),
            Scenario::LimitsRate => {
                Some(error(429, "rate_limit_exceeded").header("retry-after", "7"))
            }
            Scenario::Fails => Some(error(500, "server_error")),
            Scenario::Hangs => Some(Reply::images(&[]).held_by(&Arc::new(Semaphore::new(0)))),
            Scenario::BreaksOff => {
                let whole = Reply::images(&[vec![7; 100_000]]);
                let half = whole.length() / 2;
                Some(whole.cut_at(half))
            }
            Scenario::GeneratesNothing => Some(Reply::images(&[])),
            Scenario::GeneratesNoImage => Some(Reply::images(&[b"<html>It works!".to_vec()])),
        };
        self.upstream.always(reply);
    }

    fn plays(&self, scenario: Scenario) -> bool {
        match self.dialect {
            Dialect::SdServer => !matches!(
                scenario,
                Scenario::Refuses | Scenario::KnowsNoKey | Scenario::LimitsRate
            ),
            Dialect::Localai => scenario != Scenario::Refuses,
            _ => true,
        }
    }

    fn asked(&self) -> usize {
        self.requests().len()
    }

    fn inputs(&self) -> Vec<Vec<u8>> {
        let last = self.requests().pop().unwrap();
        let file = last.fields.get("file").and_then(|file| file.as_str());
        let files = last.files.iter().map(|file| file.bytes.to_vec());
        file.map(|file| STANDARD.decode_to_vec(file).unwrap())
            .into_iter()
            .chain(files)
            .collect()
    }

    fn cancelled(&self) -> Vec<String> {
        Vec::new()
    }
}

#[tokio::test]
async fn every_profile_fulfils_the_contract_of_a_backend() {
    for dialect in Dialect::ALL {
        let upstream = Upstream::speaking(dialect).await;
        fulfils_the_contract(&Copy { upstream, dialect }).await;
    }
}
