//! The `async_job` backend, each built-in profile against a fake of its service.

mod judged;
mod quirks;
mod server;
mod services;

use super::contract::keeps_its_promises;
use server::{Counter, Service};

async fn keeps(service: Service) {
    keeps_its_promises(&Counter::open(service).await).await;
}

#[tokio::test]
async fn easel_keeps_its_promises() {
    keeps(services::EASEL).await;
}

#[tokio::test]
async fn icodeeasy_keeps_its_promises() {
    keeps(services::ICODEEASY).await;
}

#[tokio::test]
async fn apimart_keeps_its_promises() {
    keeps(services::APIMART).await;
}

#[tokio::test]
async fn bfl_keeps_its_promises() {
    keeps(services::BFL).await;
}

#[tokio::test]
async fn dashscope_keeps_its_promises() {
    keeps(services::DASHSCOPE).await;
}

#[tokio::test]
async fn dashscope_wan25_keeps_its_promises() {
    keeps(services::DASHSCOPE_WAN25).await;
}

#[tokio::test]
async fn fal_keeps_its_promises() {
    keeps(services::FAL).await;
}

#[tokio::test]
async fn replicate_keeps_its_promises() {
    keeps(services::REPLICATE).await;
}

#[tokio::test]
async fn sdcpp_keeps_its_promises() {
    keeps(services::SDCPP).await;
}
