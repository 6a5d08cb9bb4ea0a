//! Easel: a self-hosted gateway for image generation.

pub mod accounts;
pub mod app;
pub mod backend;
pub mod batch;
pub mod billing;
pub mod cli;
pub mod clock;
pub mod config;
pub mod db;
pub mod failure;
pub mod http;
pub mod ids;
pub mod image;
pub mod images;
pub mod money;
pub mod private_files;
pub mod private_postgres;
pub mod references;
pub mod shutdown;
pub mod storage;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod uploads;
pub mod worker;
