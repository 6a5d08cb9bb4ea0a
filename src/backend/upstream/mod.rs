//! What all backends share that speak HTTP to an upstream: what its errors mean, how inputs go
//! along, how its images are handed on and fetched, and what of its words may be shown.

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
