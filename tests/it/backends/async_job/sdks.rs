//! Checks the fakes against the official SDKs of the services: what the SDKs accept, our backend accepts.

use serde_json::Value;

use super::{
    server::{FakeService, KEY, Service},
    services,
};
use crate::{
    backends::contract::{FakeUpstream, Scenario},
    end_to_end::clients,
};

const SCENARIOS: [(Scenario, &str); 6] = [
    (Scenario::Generates, "generates"),
    (Scenario::Refuses, "refuses"),
    (Scenario::KnowsNoKey, "knows_no_key"),
    (Scenario::LimitsRate, "limits_rate"),
    (Scenario::FindsInvalid, "finds_invalid"),
    (Scenario::Hangs, "hangs"),
];

async fn check_with_sdk(service: Service, judge: &str) {
    let fake = FakeService::start(service).await;
    for (scenario, name) in SCENARIOS {
        fake.play(scenario);
        let asked = fake.asked();
        let arguments = [fake.url.as_str(), KEY, name];
        let Some(facts) = clients::run(judge, &arguments).await else {
            return;
        };
        assert!(fake.asked() > asked, "{name}");
        if scenario == Scenario::Hangs {
            let cancelled: Vec<Value> = fake.cancelled().into_iter().map(Value::from).collect();
            assert_eq!(cancelled, [facts[0]["cancelled"].clone()]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicates_sdk_accepts_the_fake() {
    check_with_sdk(services::REPLICATE, "replicate_judge.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dashscopes_sdk_accepts_the_fake() {
    check_with_sdk(services::DASHSCOPE, "dashscope_judge.py").await;
}
