//! What ComfyUI's history says of a prompt that has ended.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::backend::{BackendError, upstream::message};

/// One entry of `/history`.
#[derive(Debug, Deserialize)]
pub(super) struct Ended {
    #[serde(default)]
    outputs: BTreeMap<String, Value>,
    #[serde(default)]
    status: Option<Status>,
}

#[derive(Debug, Deserialize)]
struct Status {
    #[serde(default)]
    status_str: String,
    /// Pairs of an event and what it says.
    #[serde(default)]
    messages: Vec<Value>,
}

/// A picture on ComfyUI's disk. Its words are only ever handed back to it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Picture {
    pub(super) filename: String,
    #[serde(default)]
    pub(super) subfolder: String,
    #[serde(default, rename = "type")]
    pub(super) folder: String,
}

impl Ended {
    /// Reads the answer to `/history/{id}`; `None`: it has not ended, or is not known.
    pub(super) fn of(mut answer: Value, id: &str) -> Result<Option<Self>, BackendError> {
        match answer.get_mut(id).map(Value::take) {
            None => Ok(None),
            Some(entry) => {
                serde_json::from_value(entry)
                    .map(Some)
                    .map_err(|error| BackendError::Failed {
                        detail: format!("the history is not ComfyUI's: {error}"),
                    })
            }
        }
    }

    /// The pictures of these nodes, unless it has failed.
    pub(super) fn pictures<'a>(
        &self,
        nodes: impl Iterator<Item = &'a str>,
        api_key: &str,
    ) -> Result<Vec<Picture>, BackendError> {
        if let Some(detail) = self.failure(api_key) {
            return Err(BackendError::Failed { detail });
        }
        let images = nodes
            .filter_map(|node| self.outputs.get(node)?.get("images")?.as_array())
            .flatten();
        // What is no picture, such as a latent, is passed over.
        Ok(images
            .filter_map(|image| Picture::deserialize(image).ok())
            .collect())
    }

    fn failure(&self, api_key: &str) -> Option<String> {
        let status = self.status.as_ref().filter(|s| s.status_str == "error")?;
        let event = |name: &str| {
            let mut pairs = status.messages.iter().rev();
            pairs.find(|pair| pair[0] == name).map(|pair| &pair[1])
        };
        let text = |said: &Value, name: &str| {
            let text = said[name].as_str().unwrap_or_default();
            message::clean(text, api_key)
        };
        if let Some(said) = event("execution_error") {
            return Some(format!(
                "node {} ({}): {}: {}",
                text(said, "node_id"),
                text(said, "node_type"),
                text(said, "exception_type"),
                text(said, "exception_message"),
            ));
        }
        let interrupted = event("execution_interrupted").is_some();
        let reason = if interrupted { "interrupted" } else { "error" };
        Some(reason.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pictures(entry: &Value) -> Result<Vec<Picture>, BackendError> {
        let ended = Ended::of(json!({"id-1": entry}), "id-1").unwrap().unwrap();
        ended.pictures(["9", "10"].into_iter(), "")
    }

    #[test]
    fn what_is_not_in_the_history_has_not_ended() {
        assert!(Ended::of(json!({}), "id-1").unwrap().is_none());
        assert!(Ended::of(json!({"id-2": {}}), "id-1").unwrap().is_none());
        assert!(Ended::of(json!([]), "id-1").unwrap().is_none());
        assert!(Ended::of(json!({"id-1": 3}), "id-1").is_err());
    }

    #[test]
    fn only_pictures_of_the_named_nodes_count() {
        let image = |name: &str| json!({"filename": name, "subfolder": "", "type": "output"});
        let entry = json!({
            "outputs": {"9": {"images": [image("a"), {"latent": 1}, 7]}, "10": {"text": ["x"]},
                "11": {"images": [image("b")]}},
            "status": {"status_str": "success", "completed": true, "messages": []}});
        let found = pictures(&entry).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].filename, "a");
        // Old servers say no status.
        assert_eq!(
            pictures(&json!({"outputs": {}, "status": null})).unwrap(),
            []
        );
    }

    #[test]
    fn failures_say_which_node_and_nothing_else() {
        let entry = json!({"outputs": {}, "status": {"status_str": "error", "completed": false,
        "messages": [["execution_start", {"prompt_id": "id-1"}],
            ["execution_error", {"node_id": "3", "node_type": "KSampler",
                "exception_type": "torch.OutOfMemoryError",
                "exception_message": "Allocation on device \nsee https://x.example/",
                "current_inputs": {"text": ["the prompt"]}, "traceback": ["File x"]}]]}});
        let Err(BackendError::Failed { detail }) = pictures(&entry) else {
            panic!("it did not fail");
        };
        assert_eq!(
            detail,
            "node 3 (KSampler): torch.OutOfMemoryError: Allocation on device see [link]"
        );
        let entry = json!({"status": {"status_str": "error",
            "messages": [["execution_interrupted", {"node_id": "3"}], "odd"]}});
        let failed = pictures(&entry);
        assert!(matches!(failed, Err(BackendError::Failed { detail }) if detail == "interrupted"));
    }
}
