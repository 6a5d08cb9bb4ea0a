//! The fakes, judged by the official SDKs of the services: what these read, our backend reads.

use serde_json::Value;

use super::{
    server::{Counter, KEY, Service},
    services,
};
use crate::{
    backends::contract::{FakeUpstream, Scene},
    clients,
};

const SCENES: [(Scene, &str); 6] = [
    (Scene::Generates, "generates"),
    (Scene::Refuses, "refuses"),
    (Scene::KnowsNoKey, "knows_no_key"),
    (Scene::LimitsRate, "limits_rate"),
    (Scene::FindsInvalid, "finds_invalid"),
    (Scene::Hangs, "hangs"),
];

async fn judged(service: Service, judge: &str) {
    let counter = Counter::open(service).await;
    for (scene, name) in SCENES {
        counter.play(scene);
        let asked = counter.asked();
        let arguments = [counter.server.url.as_str(), KEY, name];
        let Some(facts) = clients::run(judge, &arguments).await else {
            return;
        };
        assert!(counter.asked() > asked, "{name}");
        if scene == Scene::Hangs {
            let cancelled: Vec<Value> = counter.cancelled().into_iter().map(Value::from).collect();
            assert_eq!(cancelled, [facts[0]["cancelled"].clone()]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicates_sdk_takes_the_fake_replicate() {
    judged(services::REPLICATE, "replicate_judge.py").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dashscopes_sdk_takes_the_fake_dashscope() {
    judged(services::DASHSCOPE, "dashscope_judge.py").await;
}
