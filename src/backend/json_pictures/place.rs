//! Where in an answer pictures may be.

/// The way to strings that may be pictures: `data[].b64_json`, `images[]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    steps: Vec<Step>,
    /// Whether only data URLs are pictures there; other strings are kept.
    pub(super) data_url_only: bool,
}

/// One array or object deeper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Field(String),
    /// Every item of an array.
    Each,
}

impl Place {
    /// Every string there is a picture, as base64 or as a data URL.
    pub fn of_base64(path: &str) -> Self {
        Self {
            steps: steps(path),
            data_url_only: false,
        }
    }

    /// The data URLs there are pictures.
    pub fn of_data_urls(path: &str) -> Self {
        Self {
            steps: steps(path),
            data_url_only: true,
        }
    }

    /// The one that leads on from inside of `depth` arrays and objects; `None`: this is the place.
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
