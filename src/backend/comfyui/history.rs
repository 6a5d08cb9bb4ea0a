//! Reads ComfyUI's history of a prompt that has ended.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::workflow::Workflow;
use crate::backend::{BackendError, upstream::message};

/// A file that exists but cannot be loaded is the client's fault; a missing file is not.
const MISSING_FILE: &str = "FileNotFoundError";

/// One entry of `/history`, unparsed: as parsed values it would take many times its size.
#[derive(Debug)]
pub(super) struct Ended(Box<RawValue>);

#[derive(Debug, Deserialize)]
struct Entry<'a> {
    #[serde(borrow, default)]
    outputs: BTreeMap<String, &'a RawValue>,
    #[serde(borrow, default)]
    status: Option<Status<'a>>,
}

#[derive(Debug, Deserialize)]
struct Status<'a> {
    #[serde(default)]
    status_str: String,
    /// Pairs of an event's name and its data.
    #[serde(borrow, default)]
    messages: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Output<'a> {
    #[serde(borrow, default)]
    images: Vec<&'a RawValue>,
}

/// The data of the event `execution_error`.
#[derive(Deserialize)]
struct Failed<'a> {
    #[serde(borrow)]
    node_id: Option<&'a RawValue>,
    #[serde(borrow)]
    node_type: Option<&'a RawValue>,
    #[serde(borrow)]
    exception_type: Option<&'a RawValue>,
    #[serde(borrow)]
    exception_message: Option<&'a RawValue>,
}

/// An image on ComfyUI's disk. Its names are only ever sent back to ComfyUI.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(super) struct Image {
    /// Its name within the subfolder.
    pub(super) filename: String,
    /// Below the folder; empty: directly in it.
    #[serde(default)]
    pub(super) subfolder: String,
    /// Such as `output` or `temp`; empty: ComfyUI's default.
    #[serde(default, rename = "type")]
    pub(super) folder: String,
}

impl Ended {
    /// Reads the answer to `/history/{id}`; `None` if the prompt has not ended or is unknown.
    pub(super) fn of(answer: &[u8], id: &str) -> Result<Option<Self>, BackendError> {
        let entries: BTreeMap<String, &RawValue> =
            serde_json::from_slice(answer).map_err(|error| invalid_history(&error))?;
        let Some(entry) = entries.get(id) else {
            return Ok(None);
        };
        let ended = Self((*entry).to_owned());
        ended.entry()?;
        Ok(Some(ended))
    }

    fn entry(&self) -> Result<Entry<'_>, BackendError> {
        serde_json::from_str(self.0.get()).map_err(|error| invalid_history(&error))
    }

    /// The images of the workflow's results, unless it has failed.
    pub(super) fn images(
        &self,
        workflow: &Workflow,
        api_key: &str,
    ) -> Result<Vec<Image>, BackendError> {
        let entry = self.entry()?;
        if let Some(failure) = entry.failure(workflow, api_key) {
            return Err(failure);
        }
        let outputs = workflow.outputs().filter_map(|node| {
            let output = entry.outputs.get(node)?.get();
            serde_json::from_str::<Output<'_>>(output).ok()
        });
        // Entries that are not images, such as latents, are skipped.
        Ok(outputs
            .flat_map(|output| output.images)
            .filter_map(|image| serde_json::from_str(image.get()).ok())
            .collect())
    }
}

impl Entry<'_> {
    fn failure(&self, workflow: &Workflow, api_key: &str) -> Option<BackendError> {
        let status = self.status.as_ref().filter(|s| s.status_str == "error")?;
        let event = |name: &str| {
            let pairs = status.messages.iter().rev();
            let mut pairs = pairs
                .filter_map(|pair| serde_json::from_str::<(String, &RawValue)>(pair.get()).ok());
            pairs.find(|(event, _)| event == name).map(|(_, said)| said)
        };
        if let Some(said) = event("execution_error") {
            return Some(match serde_json::from_str(said.get()) {
                Ok(failed) => judge(&failed, workflow, api_key),
                // The reason may quote the prompt.
                Err(_unreadable) => BackendError::Failed {
                    detail: "an execution_error that cannot be read".to_owned(),
                },
            });
        }
        let interrupted = event("execution_interrupted").is_some();
        let reason = if interrupted { "interrupted" } else { "error" };
        Some(BackendError::Failed {
            detail: reason.to_owned(),
        })
    }
}

/// Classifies a node's error. A node that could not load a client's input fails on every attempt, and
/// ComfyUI is not at fault.
fn judge(failed: &Failed<'_>, workflow: &Workflow, api_key: &str) -> BackendError {
    let (node, class) = (text(failed.node_id), text(failed.node_type));
    let exception = text(failed.exception_type);
    if workflow.loads_inputs(&node, &class) && !exception.ends_with(MISSING_FILE) {
        return BackendError::Invalid {
            message: "a reference image could not be loaded".to_owned(),
        };
    }
    let said = [node, class, exception, text(failed.exception_message)];
    let [node, class, exception, said] = said.map(|text| message::clean(&text, api_key));
    BackendError::Failed {
        detail: format!("node {node} ({class}): {exception}: {said}"),
    }
}

/// The text, or an empty one if it is not a string.
fn text(said: Option<&RawValue>) -> String {
    said.and_then(|said| serde_json::from_str(said.get()).ok())
        .unwrap_or_default()
}

fn invalid_history(error: &serde_json::Error) -> BackendError {
    BackendError::Failed {
        detail: format!("the history is not from ComfyUI: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::workflow::Source, *};
    use crate::failure::Class;

    fn of(answer: &Value) -> Result<Option<Ended>, BackendError> {
        Ended::of(answer.to_string().as_bytes(), "id-1")
    }

    fn images(entry: &Value) -> Result<Vec<Image>, BackendError> {
        let bindings = [
            "prompt=6.text",
            "seed=3.seed",
            "output=9",
            "reference=10.image",
        ];
        let bindings = bindings.map(str::to_owned);
        let workflow = Workflow::open(Source::Images, "builtin:image-to-image", &bindings);
        let ended = of(&json!({"id-1": entry})).unwrap().unwrap();
        ended.images(&workflow.unwrap().unwrap(), "")
    }

    #[test]
    fn a_prompt_outside_the_history_has_not_ended() {
        assert!(of(&json!({})).unwrap().is_none());
        assert!(of(&json!({"id-2": {}})).unwrap().is_none());
        assert!(of(&json!([])).is_err());
        assert!(of(&json!({"id-1": 3})).is_err());
    }

    #[test]
    fn only_images_of_the_named_nodes_count() {
        let image = |name: &str| json!({"filename": name, "subfolder": "", "type": "output"});
        let entry = json!({
            "outputs": {"9": {"images": [image("a"), {"latent": 1}, 7]}, "10": {"text": ["x"]},
                "11": {"images": [image("b")]}},
            "status": {"status_str": "success", "completed": true, "messages": []}});
        let found = images(&entry).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].filename, "a");
        // Old servers report no status.
        assert_eq!(images(&json!({"outputs": {}, "status": null})).unwrap(), []);
    }

    #[test]
    fn failures_name_the_node_and_nothing_else() {
        let entry = json!({"outputs": {}, "status": {"status_str": "error", "completed": false,
        "messages": [["execution_start", {"prompt_id": "id-1"}],
            ["execution_error", {"node_id": "3", "node_type": "KSampler",
                "exception_type": "torch.OutOfMemoryError",
                "exception_message": "Allocation on device \nsee https://x.example/",
                "current_inputs": {"text": ["the prompt"]}, "traceback": ["File x"]}]]}});
        let Err(BackendError::Failed { detail }) = images(&entry) else {
            panic!("it did not fail");
        };
        assert_eq!(
            detail,
            "node 3 (KSampler): torch.OutOfMemoryError: Allocation on device see [link]"
        );
        let entry = json!({"status": {"status_str": "error",
            "messages": [["execution_interrupted", {"node_id": "3"}], "odd"]}});
        let failed = images(&entry);
        assert!(matches!(failed, Err(BackendError::Failed { detail }) if detail == "interrupted"));
    }

    #[test]
    fn an_unreadable_input_is_the_clients_fault_and_a_missing_one_is_not() {
        let failed = |node: &str, class: &str, exception: &str| {
            let said = json!({"node_id": node, "node_type": class, "exception_type": exception,
                "exception_message": "cannot identify image file '/comfy/temp/x.png'"});
            let status = json!({"status_str": "error", "messages": [["execution_error", said]]});
            images(&json!({"status": status})).unwrap_err().class()
        };
        let unreadable = "PIL.UnidentifiedImageError";
        assert_eq!(failed("10", "LoadImage", unreadable), Class::Invalid);
        // Recognised by its binding, whatever its class, or by its class, without a binding.
        assert_eq!(failed("10", "LoadFromAnywhere", unreadable), Class::Invalid);
        assert_eq!(failed("77", "LoadImageMask", "OSError"), Class::Invalid);
        assert_eq!(failed("3", "KSampler", "ValueError"), Class::Failed);
        assert_eq!(
            failed("10", "LoadImage", "FileNotFoundError"),
            Class::Failed
        );
    }
}
