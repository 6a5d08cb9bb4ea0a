//! Routes: what may be omitted, and what is refused.

use super::Given;

fn given(routes: &str) -> Given {
    Given::file(&format!("[models.m]\nroutes = {routes}\n"))
}

#[test]
fn a_route_needs_only_its_backend() {
    let routes = |routes| given(routes).config().models["m"].routes.clone();
    let all = routes(
        "[{ backend = 'demo', upstream_model = '', weight = 1, priority = 0, max_concurrency = 0, \
           timeout_ms = 600_000, forward_quality = false, extra = {} }]",
    );
    assert_eq!(routes("[{ backend = 'demo' }]"), all);
    assert_eq!(routes("['demo']"), all);
    let named = given("[]").env("EASEL_MODELS__M__ROUTES", "demo").config();
    assert_eq!(named.models["m"].routes, all);
    let printed = given("['demo']").config().to_toml();
    assert_eq!(Given::file(&printed).config().models["m"].routes, all);
}

#[test]
fn what_a_route_cannot_be_is_refused() {
    let issues = |routes| given(routes).issues().join("; ");
    insta::assert_snapshot!(issues("[3]"), @"models.m.routes: invalid type: integer `3`, expected the name of a backend, or a table with it");
    insta::assert_snapshot!(issues("[{ weight = 1 }]"), @"models.m.routes: missing field `backend`");
    insta::assert_snapshot!(issues("[{ backend = 'demo', wieght = 1 }]"), @"models.m.routes: unknown field `wieght`, expected one of `backend`, `upstream_model`, `weight`, `priority`, `max_concurrency`, `timeout_ms`, `forward_quality`, `extra`");
    insta::assert_snapshot!(issues("[{ backend = 'demo', weight = 0, timeout_ms = 86_400_001 }, 'x']"), @r#"models.m.routes: weight must be from 1 to 1000000, is 0; models.m.routes: timeout_ms must be from 1 to 86400000, is 86400001; models.m.routes: there is no backend "x", configured are: async_job, comfyui, demo, gemini, openai, sdapi"#);
}
