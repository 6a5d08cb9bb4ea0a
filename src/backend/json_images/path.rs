//! Where in an answer images may be.

/// The way to strings that may be images: `data[].b64_json`, `images[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPath {
    steps: Vec<Step>,
    pub(super) holds: Holds,
}

/// What the strings at a path are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holds {
    Base64,
    /// Images if they are data URLs, else kept.
    DataUrls,
    Echo,
}

/// One array or object deeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Field(String),
    /// Every item of an array.
    Each,
}

impl JsonPath {
    /// Every string there is an image, as base64 or as a data URL.
    pub fn of_base64(path: &str) -> Self {
        Self {
            steps: steps(path),
            holds: Holds::Base64,
        }
    }

    /// The data URLs there are images.
    pub fn of_data_urls(path: &str) -> Self {
        Self {
            steps: steps(path),
            holds: Holds::DataUrls,
        }
    }

    /// The strings there repeat what was sent: none is an image, and none is kept.
    pub fn of_echo(path: &str) -> Self {
        Self {
            steps: steps(path),
            holds: Holds::Echo,
        }
    }

    /// The one that leads on from inside of `depth` arrays and objects; `None`: this is the path.
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
