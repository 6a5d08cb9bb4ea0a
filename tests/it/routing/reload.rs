//! Models that are added, repriced, renamed and removed while the gateway serves.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::harness::{
    caller::{Answer, Caller},
    database::TestDatabase,
    fault_proxy::{FaultProxy, Target},
    process::Setup,
    upstream::{KEY, Reply, Upstream},
};

fn model(name: &str, price: &str) -> String {
    format!("[models.{name}]\nroutes = ['up']\naliases = ['best']\nprice_medium = '{price}'\n")
}

/// A sync request beside the test.
fn request(caller: &Caller, model: &str) -> JoinHandle<Answer> {
    caller.waiting_for(json!({"model": model, "prompt": "a bridge"}))
}

async fn price(caller: &Caller, name: &str) -> Value {
    let answer = caller.get(&format!("/v1/models/{name}")).await;
    answer.json()["pricing"]["medium"].clone()
}

#[tokio::test]
async fn models_change_without_a_request_being_dropped() {
    let database = TestDatabase::create().await;
    let upstream = Upstream::start().await;
    let up = format!("[backends.up]\n{}", upstream.settings(""));
    let setup = Setup::on(&database, &format!("{up}{}", model("old", "0.20")));
    let gateway = setup.serve();
    let caller = database.caller(&gateway.url(), "10").await;
    let gate = upstream.hold(1);
    let under_way = request(&caller, "old");
    upstream.wait_for(1).await;

    let setup = setup.with(&format!("{up}{}", model("new", "0.50")));
    setup.run(&["config", "reload"]).good();
    gateway.wait_logged("reloaded the configuration");
    assert_eq!(price(&caller, "new").await, json!(0.5));
    assert_eq!(price(&caller, "best").await, json!(0.5));
    let gone = request(&caller, "old").await.unwrap();
    gone.assert_refused_field(404, "model", "no such model: old, allowed: new");
    let answer = request(&caller, "best").await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(
        answer.json()["data"][0]["url"]
            .as_str()
            .unwrap()
            .contains("/files/new/")
    );

    gate.add_permits(1);
    assert_eq!(under_way.await.unwrap().status, 200);
    assert_eq!(caller.balance().await["balance"], 9.3);

    // Written without a check: the gateway itself finds the fault.
    let setup = setup.with("[models.new]\nroutes = ['nobody']\n");
    setup.run(&["config", "check"]).bad();
    gateway.signal("HUP");
    gateway.wait_logged("could not reload the configuration, keeping the current one");
    assert_eq!(price(&caller, "new").await, json!(0.5));
    gateway.end();
    database.assert_invariants().await;
}

// The fake has to answer while the command runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn doctor_reports_an_open_circuit_of_a_running_gateway() {
    let database = TestDatabase::create().await;
    let upstream = Upstream::start().await;
    let up = format!("[backends.up]\n{}", upstream.settings(""));
    let setup = Setup::on(&database, &format!("{up}{}", model("it", "0.20")));
    let gateway = setup.serve();
    let address = gateway.url().replace("http://", "");
    let doctor = setup.clone().env("EASEL_SERVER__LISTEN", &address);
    let healthy = doctor.run(&["doctor"]).good();
    assert!(
        healthy.contains("ok    gateway, backend up: in use"),
        "{healthy}"
    );

    let caller = database.caller(&gateway.url(), "1").await;
    upstream.next(Reply::error(401, "invalid_api_key", "Who?"));
    assert_eq!(request(&caller, "it").await.unwrap().status, 502);
    let said = doctor.run(&["doctor"]);
    assert_eq!(said.code, Some(1));
    let circuit_open = "FAIL  gateway, backend up: circuit open";
    assert!(said.stdout.contains(circuit_open), "{}", said.stdout);
    gateway.end();
    database.assert_invariants().await;
}

// The fake has to answer while the command runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_circuit_stays_open_through_a_reload_unless_its_backend_changes() {
    let database = TestDatabase::create().await;
    let upstream = Upstream::start().await;
    let up = format!("[backends.up]\n{}", upstream.settings(""));
    let bad = up.replace(KEY, "sk-wrong");
    let more = "[routing]\nopen_ms = 60000\n";
    let setup = Setup::on(&database, &format!("{more}{bad}{}", model("it", "0.20")));
    let gateway = setup.serve();
    let caller = database.caller(&gateway.url(), "10").await;
    let circuit = async || caller.get("/readyz?verbose").await.json()["backends"]["up"].clone();
    assert_eq!(request(&caller, "it").await.unwrap().status, 502);
    assert_eq!(circuit().await, "open");

    let setup = setup.with(&format!("{more}{bad}{}", model("it", "0.50")));
    setup.run(&["config", "reload"]).good();
    gateway.wait_logged("reloaded the configuration");
    assert_eq!(price(&caller, "it").await, json!(0.5));
    assert_eq!(circuit().await, "open");

    let setup = setup.with(&format!("{more}{up}{}", model("it", "0.60")));
    setup.run(&["config", "reload"]).good();
    let deadline = Instant::now() + Duration::from_secs(10);
    while circuit().await == "open" {
        assert!(Instant::now() < deadline, "the new key changed nothing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(request(&caller, "it").await.unwrap().status, 200);
    gateway.end();
    database.assert_invariants().await;
}

#[tokio::test]
async fn a_backend_keeps_its_connections_through_a_reload_unless_it_changes() {
    let database = TestDatabase::create().await;
    let upstream = Upstream::start().await;
    let address = upstream.url.trim_start_matches("http://").parse().unwrap();
    let same = FaultProxy::start(Target::Tcp(address)).await;
    let changed = FaultProxy::start(Target::Tcp(address)).await;
    let backend = |name: &str, proxy: &FaultProxy, more: &str| {
        let url = format!("http://{}", proxy.address());
        let settings = upstream.settings(more).replace(&upstream.url, &url);
        format!("[backends.{name}]\n{settings}[models.{name}]\nroutes = ['{name}']\n")
    };
    let settings = |price: &str, forward: &str, routing: &str| {
        let changed = backend("changed", &changed, &format!("forward = [{forward}]"));
        let same = backend("same", &same, "");
        format!("{routing}{changed}{same}price_medium = '{price}'\n")
    };
    let setup = Setup::on(&database, &settings("0.20", "", ""));
    let gateway = setup.serve();
    let caller = database.caller(&gateway.url(), "10").await;
    let opened = async || {
        for model in ["same", "changed"] {
            assert_eq!(request(&caller, model).await.unwrap().status, 200);
        }
        (same.opened(), changed.opened())
    };
    let reload = async |settings: &str, new_price: Value| {
        setup.with(settings).run(&["config", "reload"]).good();
        let deadline = Instant::now() + Duration::from_secs(10);
        while price(&caller, "same").await != new_price {
            assert!(Instant::now() < deadline, "the reload changed nothing");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert_eq!(opened().await, (1, 1));
    assert_eq!(opened().await, (1, 1));

    reload(&settings("0.30", "'user'", ""), json!(0.3)).await;
    assert_eq!(opened().await, (1, 2));
    let routing = "[routing]\nfailures_max = 9\n";
    reload(&settings("0.40", "'user'", routing), json!(0.4)).await;
    assert_eq!(opened().await, (1, 2));
    gateway.end();
    database.assert_invariants().await;
}
