//! Paths to the images in an answer.

/// A path to strings that may be images: `data[].b64_json`, `images[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPath {
    steps: Vec<Step>,
    pub(super) holds: Holds,
}

/// What kind of strings are at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Base64,
    /// Images if they are data URLs; other strings are kept.
    DataUrls,
    Echo,
}

/// One level deeper into an array or object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Field(String),
    /// Every item of an array.
    Each,
}

impl JsonPath {
    /// A path whose strings are all images, as base64 or as data URLs.
    pub fn of_base64(path: &str) -> Self {
        Self {
            steps: steps(path),
            holds: Holds::Base64,
        }
    }

    /// A path whose data URLs are images; other strings are kept.
    pub fn of_data_urls(path: &str) -> Self {
        Self {
            steps: steps(path),
            holds: Holds::DataUrls,
        }
    }

    /// A path whose strings repeat the request: none is an image, and none is kept.
    pub fn of_echo(path: &str) -> Self {
        Self {
            steps: steps(path),
            holds: Holds::Echo,
        }
    }

    /// The step that follows inside `depth` arrays and objects; `None` if the path ends there.
    pub(super) fn step(&self, depth: usize) -> Option<&Step> {
        self.steps.get(depth)
    }
}

fn steps(path: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in path.split('.') {
        let name = part.trim_end_matches("[]");
        if !name.is_empty() {
            steps.push(Step::Field(name.to_owned()));
        }
        let arrays = (part.len() - name.len()) / 2;
        steps.extend(std::iter::repeat_n(Step::Each, arrays));
    }
    steps
}
