//! A workflow in ComfyUI's API format, with bindings for a request's values.
//!
//! `{"6": {"class_type": "CLIPTextEncode", "inputs": {"text": "…", "clip": ["4", 1]}}, …}`: nodes by id;
//! each input is a value or a link to another node's output.

use std::{fs::File, io::Read};

use serde_json::{Map, Value};

use super::binding::{BindingError, NodeBinding, Role, Target};

const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

const BUILT_IN: [(&str, &str); 3] = [
    (
        "builtin:text-to-image",
        include_str!("../../../config/comfyui/text-to-image.json"),
    ),
    (
        "builtin:image-to-image",
        include_str!("../../../config/comfyui/image-to-image.json"),
    ),
    (
        "builtin:inpaint",
        include_str!("../../../config/comfyui/inpaint.json"),
    ),
];

/// What a workflow generates from; decides which bindings it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A prompt only.
    Text,
    /// References.
    Images,
    /// A reference and a mask.
    Mask,
}

/// Why a workflow cannot be used. Each message begins with the setting at fault.
#[derive(Debug, thiserror::Error)]
pub enum WorkflowError {
    /// The file cannot be read.
    #[error("{key}: cannot read {file}: {error}")]
    Unreadable {
        /// The setting.
        key: String,
        /// The file, as set.
        file: String,
        /// The system's error.
        error: std::io::Error,
    },
    /// No built-in workflow has this name.
    #[error(
        "{key}: unknown workflow {file}, known: builtin:text-to-image, builtin:image-to-image, builtin:inpaint"
    )]
    NotBuiltIn {
        /// The setting.
        key: String,
        /// The name, as set.
        file: String,
    },
    /// The file is not a workflow in the API format.
    #[error(
        "{key}: {file} is not a workflow in ComfyUI's API format (save it with Export (API)): {reason}"
    )]
    Format {
        /// The setting.
        key: String,
        /// The file, as set.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Bindings are invalid or missing.
    #[error("{key}: {}", .faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Bindings {
        /// The setting.
        key: String,
        /// Every fault, not only the first.
        faults: Vec<BindingError>,
    },
}

/// A workflow with all bindings that it needs.
#[derive(Debug)]
pub(super) struct Workflow {
    nodes: Map<String, Value>,
    bindings: Vec<NodeBinding>,
}

/// The values of one request. References and mask are names of files on ComfyUI's disk.
#[derive(Debug)]
pub(super) struct Values<'a> {
    /// The name of the checkpoint.
    pub(super) model: &'a str,
    /// The client's prompt.
    pub(super) prompt: &'a str,
    /// What the image must not show; `None`: the client sent none.
    pub(super) negative: Option<&'a str>,
    /// In pixels.
    pub(super) width: u32,
    /// In pixels.
    pub(super) height: u32,
    /// The number of images.
    pub(super) batch: u8,
    /// Determines the noise.
    pub(super) seed: u32,
    /// File names, in the request's order.
    pub(super) references: &'a [String],
    /// A file name; `None`: the request has no mask.
    pub(super) mask: Option<&'a str>,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Images => "image",
            Self::Mask => "mask",
        }
    }

    fn needs(self, role: Role) -> bool {
        match role {
            Role::Prompt | Role::Seed | Role::Output => true,
            Role::Reference => self != Self::Text,
            Role::Mask => self == Self::Mask,
            _ => false,
        }
    }

    fn takes(self, role: Role) -> bool {
        self.needs(role) || !matches!(role, Role::Reference | Role::Mask)
    }
}

impl Workflow {
    /// Reads `file`, a path or the name of a built-in workflow. `None` if `file` is empty.
    pub(super) fn open(
        source: Source,
        file: &str,
        bindings: &[String],
    ) -> Result<Option<Self>, WorkflowError> {
        if file.is_empty() {
            return Ok(None);
        }
        let key = format!("{}_workflow", source.name());
        let nodes = parse(&read(&key, file)?).map_err(|reason| WorkflowError::Format {
            key,
            file: file.to_owned(),
            reason,
        })?;
        let (bindings, mut faults) = read_bindings(&nodes, source, bindings);
        let lacks = |role: &Role| source.needs(*role) && !bindings.iter().any(|p| p.role == *role);
        // An invalid binding may be the missing one.
        if faults.is_empty() {
            let missing = Role::ALL.into_iter().filter(lacks);
            faults.extend(missing.map(|role| BindingError::Missing(role.name())));
        }
        if !faults.is_empty() {
            let key = format!("{}_bindings", source.name());
            return Err(WorkflowError::Bindings { key, faults });
        }
        Ok(Some(Self { nodes, bindings }))
    }

    /// How many bindings have this role.
    pub(super) fn count(&self, role: Role) -> usize {
        self.bindings
            .iter()
            .filter(|binding| binding.role == role)
            .count()
    }

    /// The nodes whose images are the results.
    pub(super) fn outputs(&self) -> impl Iterator<Item = &str> {
        let outputs = self
            .bindings
            .iter()
            .filter(|binding| binding.role == Role::Output);
        outputs.map(|binding| binding.target.node.as_str())
    }

    /// Whether the node, of this class, loads an input from a client.
    pub(super) fn loads_inputs(&self, node: &str, class: &str) -> bool {
        let mut bindings = self.bindings.iter();
        class.starts_with("LoadImage")
            || bindings.any(|binding| {
                matches!(binding.role, Role::Reference | Role::Mask) && binding.target.node == node
            })
    }

    /// Fills in the values. The operator's `extra` values override all others. The error names an extra value
    /// that fits no input.
    pub(super) fn fill(
        &self,
        values: &Values<'_>,
        extra: &Map<String, Value>,
    ) -> Result<Map<String, Value>, String> {
        let mut nodes = self.nodes.clone();
        // If there are more bindings than references, the last reference fills the remaining ones.
        let mut references = values.references.iter();
        let mut reference = None;
        for NodeBinding { role, target } in &self.bindings {
            let value = match role {
                Role::Model => Value::from(values.model),
                Role::Prompt => Value::from(values.prompt),
                Role::Negative => match values.negative {
                    Some(negative) => Value::from(negative),
                    None => continue,
                },
                Role::Width => Value::from(values.width),
                Role::Height => Value::from(values.height),
                Role::Batch => Value::from(values.batch),
                Role::Seed => Value::from(values.seed),
                Role::Reference => {
                    reference = references.next().or(reference);
                    Value::from(reference.map_or("", String::as_str))
                }
                Role::Mask => Value::from(values.mask.ok_or("the request has no mask to fill in")?),
                Role::Output => continue,
            };
            set(&mut nodes, target, value);
        }
        for (key, value) in extra {
            let target = Target::parse(key);
            let there = target.is_some_and(|target| set(&mut nodes, &target, value.clone()));
            if !there {
                return Err(format!(
                    "extra {key:?} is not an input of a node, such as \"3.steps\""
                ));
            }
        }
        Ok(nodes)
    }
}

fn read(key: &str, file: &str) -> Result<String, WorkflowError> {
    if file.starts_with("builtin:") {
        let found = BUILT_IN.iter().find(|(name, _)| *name == file);
        return found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| {
            WorkflowError::NotBuiltIn {
                key: key.to_owned(),
                file: file.to_owned(),
            }
        });
    }
    let mut text = String::new();
    let read =
        File::open(file).and_then(|open| open.take(FILE_BYTES_MAX).read_to_string(&mut text));
    match read {
        Ok(_) => Ok(text),
        Err(error) => Err(WorkflowError::Unreadable {
            key: key.to_owned(),
            file: file.to_owned(),
            error,
        }),
    }
}

/// Parses the nodes. The error says what is wrong with them.
fn parse(text: &str) -> Result<Map<String, Value>, String> {
    let nodes: Map<String, Value> =
        serde_json::from_str(text).map_err(|error| error.to_string())?;
    for (id, node) in &nodes {
        if !node["class_type"].is_string() || !node["inputs"].is_object() {
            return Err(format!("{id:?} is not a node with class_type and inputs"));
        }
    }
    Ok(nodes)
}

fn read_bindings(
    nodes: &Map<String, Value>,
    source: Source,
    bindings: &[String],
) -> (Vec<NodeBinding>, Vec<BindingError>) {
    let mut sound = Vec::new();
    let mut faults = Vec::new();
    for text in bindings {
        match NodeBinding::parse(text, nodes) {
            Ok(binding) if source.takes(binding.role) => sound.push(binding),
            Ok(binding) => faults.push(BindingError::NotHere(binding.role.name())),
            Err(fault) => faults.push(fault),
        }
    }
    (sound, faults)
}

/// Sets an input. Returns whether the node exists.
fn set(nodes: &mut Map<String, Value>, target: &Target, value: Value) -> bool {
    let inputs = nodes
        .get_mut(&target.node)
        .and_then(|node| node.get_mut("inputs"))
        .and_then(Value::as_object_mut);
    match inputs {
        Some(inputs) => {
            inputs.insert(target.input.clone(), value);
            true
        }
        None => false,
    }
}
