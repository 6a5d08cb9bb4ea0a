//! Shared by all backends that speak HTTP to an upstream: what errors mean, how inputs are sent, how
//! images are fetched and passed on, and which parts of an upstream's messages may be shown.

pub(super) mod answer;
pub(super) mod delivery;
pub(super) mod download;
pub(super) mod endpoint;
pub(super) mod error;
pub(super) mod extra;
mod google;
pub(super) mod inputs;
mod mask;
pub(super) mod message;
pub(super) mod native_size;
pub(super) mod prompt;

pub(super) use endpoint::InvalidSetting;

use super::{BackendError, ImageSink};
