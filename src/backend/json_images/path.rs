//! Paths to the images in an answer.

use crate::backend::json_path::{JsonPath, Step};

/// A path to strings that may be images: `/data/*/b64_json`, `/images/*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImagePath {
    path: JsonPath,
    /// How to read the strings there.
    pub(super) holds: Holds,
}

/// What kind of strings are at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    /// Images, as base64 or as data URLs.
    Base64,
    /// Images if they are data URLs; other strings are kept.
    DataUrls,
    /// Repetitions of the request: not images, and not kept.
    Echo,
}

impl ImagePath {
    /// A path whose strings are all images, as base64 or as data URLs.
    pub fn of_base64(path: impl Into<JsonPath>) -> Self {
        Self {
            path: path.into(),
            holds: Holds::Base64,
        }
    }

    /// A path whose data URLs are images; other strings are kept.
    pub fn of_data_urls(path: impl Into<JsonPath>) -> Self {
        Self {
            path: path.into(),
            holds: Holds::DataUrls,
        }
    }

    /// A path whose strings repeat the request: none is an image, and none is kept.
    pub fn of_echo(path: impl Into<JsonPath>) -> Self {
        Self {
            path: path.into(),
            holds: Holds::Echo,
        }
    }

    /// The step that follows inside `depth` arrays and objects; `None` if the path ends there.
    pub(super) fn step(&self, depth: usize) -> Option<&Step> {
        self.path.step(depth)
    }
}
