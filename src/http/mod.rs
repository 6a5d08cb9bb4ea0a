//! The HTTP API: one list of all routes, and the middleware that every request passes.

mod address;
mod balance;
mod body;
mod content;
mod error;
mod extract;
mod failures;
mod form;
mod health;
mod images;
mod models;
mod page;
mod range;
mod request;
pub mod server;
mod uploads;
mod usage;

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::{DefaultBodyLimit, FromRef},
    middleware,
    routing::{get, post},
};

use crate::{app::App, images::Images};

/// Builds the router with all routes and middleware. The server and the tests both use it.
pub fn router(images: Images) -> Router {
    let mut routes = Router::new()
        .route("/healthz", get(health::live))
        .route(
            "/readyz",
            get(health::ready).layer(Extension(health::Probe::default())),
        )
        .route("/f/image/{name}", get(content::upload))
        .route("/f/object/{*path}", get(content::local_object))
        .route("/v1/images/files/{*path}", get(content::file))
        .route("/v1/images/tasks", get(images::list))
        .route("/v1/images/tasks/{id}", get(images::get))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*name}", get(models::get))
        .route("/v1/balance", get(balance::get))
        .route("/v1/usage", get(usage::list));
    for prefix in ["/v1", ""] {
        let path = |path: &str| format!("{prefix}{path}");
        routes = routes
            .route(&path("/uploads/images"), post(uploads::upload))
            .route(&path("/images/generations"), post(images::generate))
            .route(
                &path("/images/generations/async"),
                post(images::generate_async),
            )
            .route(&path("/images/generations/{id}"), get(images::get))
            .route(&path("/images/edits"), post(images::generate))
            .route(&path("/images/edits/async"), post(images::generate_async));
    }
    let failures = Arc::new(failures::Failures::new(&images.config.server));
    routes
        // Each handler enforces its own body size limit.
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn(request::admit))
        .layer(middleware::from_fn_with_state(failures, failures::limit))
        .layer(middleware::from_fn_with_state(
            images.app.clone(),
            error::render,
        ))
        .layer(middleware::from_fn(request::drain))
        .layer(middleware::from_fn_with_state(
            images.app.clone(),
            request::trace,
        ))
        .with_state(images)
}

impl FromRef<Images> for App {
    fn from_ref(images: &Images) -> Self {
        images.app.clone()
    }
}
