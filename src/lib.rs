//! Easel: a self-hosted gateway for image generation.

pub mod accounts;
pub mod backend;
pub mod batch;
pub mod billing;
pub mod clock;
pub mod config;
pub mod db;
pub mod ids;
pub mod image;
pub mod money;
pub mod shutdown;
pub mod storage;
pub mod tasks;
pub mod uploads;
