//! Easel: a self-hosted gateway for image generation.

pub mod backend;
pub mod clock;
pub mod config;
pub mod ids;
pub mod image;
pub mod money;
pub mod storage;
pub mod tls;
