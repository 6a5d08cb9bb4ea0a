//! The `async_job` backend, each built-in profile against a fake of its service.

mod protocol_file;
mod quirks;
mod sdks;
mod server;
mod services;

use super::contract::fulfils_the_contract;
use server::{FakeService, Service};

async fn check_contract(service: Service) {
    fulfils_the_contract(&FakeService::start(service).await).await;
}

#[tokio::test]
async fn easel_fulfils_the_contract() {
    check_contract(services::EASEL).await;
}

#[tokio::test]
async fn icodeeasy_fulfils_the_contract() {
    check_contract(services::ICODEEASY).await;
}

#[tokio::test]
async fn apimart_fulfils_the_contract() {
    check_contract(services::APIMART).await;
}

#[tokio::test]
async fn bfl_fulfils_the_contract() {
    check_contract(services::BFL).await;
}

#[tokio::test]
async fn dashscope_fulfils_the_contract() {
    check_contract(services::DASHSCOPE).await;
}

#[tokio::test]
async fn dashscope_wan25_fulfils_the_contract() {
    check_contract(services::DASHSCOPE_WAN25).await;
}

#[tokio::test]
async fn fal_fulfils_the_contract() {
    check_contract(services::FAL).await;
}

#[tokio::test]
async fn replicate_fulfils_the_contract() {
    check_contract(services::REPLICATE).await;
}

#[tokio::test]
async fn sdcpp_fulfils_the_contract() {
    check_contract(services::SDCPP).await;
}
