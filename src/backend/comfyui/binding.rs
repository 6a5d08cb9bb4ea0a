//! Bindings: the nodes' inputs that receive a request's values, as set by `prompt=6.text` or `output=9`.

use serde_json::{Map, Value};

/// The value that a binding receives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The name of a checkpoint.
    Model,
    /// The prompt.
    Prompt,
    /// The negative prompt.
    Negative,
    /// The width in pixels.
    Width,
    /// The height in pixels.
    Height,
    /// The number of images.
    Batch,
    /// The seed.
    Seed,
    /// The file name of a reference.
    Reference,
    /// The file name of the mask.
    Mask,
    /// Only a node: its images are the results.
    Output,
}

/// A node's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// The id of the node in the workflow.
    pub(super) node: String,
    /// Empty for an output.
    pub(super) input: String,
}

/// A role and the input that receives its value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NodeBinding {
    /// Which value.
    pub(super) role: Role,
    /// Which input.
    pub(super) target: Target,
}

/// Why a binding is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindingError {
    /// The text has the wrong form.
    #[error("{text:?} is not a binding such as prompt=6.text or output=9")]
    Form {
        /// The binding as set.
        text: String,
    },
    /// The name before `=` is unknown.
    #[error("{text}: unknown name {name:?}, known: {}", Role::ALL.map(Role::name).join(", "))]
    Role {
        /// The binding as set.
        text: String,
        /// The unknown name.
        name: String,
    },
    /// The node does not exist.
    #[error("{text}: the workflow has no node {node:?}")]
    Node {
        /// The binding as set.
        text: String,
        /// The id of the missing node.
        node: String,
    },
    /// The node has no such input.
    #[error("{text}: node {node} ({class}) has no input {input:?}, it has: {inputs}")]
    Input {
        /// The binding as set.
        text: String,
        /// The id of the node.
        node: String,
        /// Its class, such as `CLIPTextEncode`.
        class: String,
        /// The name of the missing input.
        input: String,
        /// The inputs that it has, separated by commas.
        inputs: String,
    },
    /// The input is a link, not a value.
    #[error("{text}: this input is linked to another node, it must hold a value")]
    Linked {
        /// The binding as set.
        text: String,
    },
    /// A binding that the workflow needs is missing.
    #[error("missing binding: {0}")]
    Missing(&'static str),
    /// This kind of workflow cannot have the binding.
    #[error("{0} cannot have a binding in this workflow")]
    NotHere(&'static str),
}

impl Role {
    /// Every role, in the order of the documentation.
    pub(super) const ALL: [Self; 10] = [
        Self::Model,
        Self::Prompt,
        Self::Negative,
        Self::Width,
        Self::Height,
        Self::Batch,
        Self::Seed,
        Self::Reference,
        Self::Mask,
        Self::Output,
    ];

    /// Its name in a binding.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Model => "model",
            Self::Prompt => "prompt",
            Self::Negative => "negative",
            Self::Width => "width",
            Self::Height => "height",
            Self::Batch => "batch",
            Self::Seed => "seed",
            Self::Reference => "reference",
            Self::Mask => "mask",
            Self::Output => "output",
        }
    }
}

impl Target {
    /// Parses `6.text`: ids of nodes contain no dot.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (node, input) = text.trim().split_once('.')?;
        Some(Self {
            node: node.to_owned(),
            input: input.to_owned(),
        })
    }
}

impl NodeBinding {
    /// Parses a binding and checks it against `nodes`.
    pub(super) fn parse(text: &str, nodes: &Map<String, Value>) -> Result<Self, BindingError> {
        let form = || BindingError::Form {
            text: text.to_owned(),
        };
        let (name, target) = text.split_once('=').ok_or_else(form)?;
        let (name, target) = (name.trim(), target.trim());
        let role = Role::ALL.into_iter().find(|role| role.name() == name);
        let role = role.ok_or_else(|| BindingError::Role {
            text: text.to_owned(),
            name: name.to_owned(),
        })?;
        let target = match role {
            Role::Output => Target {
                node: target.to_owned(),
                input: String::new(),
            },
            _ => Target::parse(target).ok_or_else(form)?,
        };
        check(text, role, &target, nodes)?;
        Ok(Self { role, target })
    }
}

fn check(
    text: &str,
    role: Role,
    target: &Target,
    nodes: &Map<String, Value>,
) -> Result<(), BindingError> {
    let text = text.to_owned();
    let Target { node, input } = target.clone();
    let Some(found) = nodes.get(&node) else {
        return Err(BindingError::Node { text, node });
    };
    match &found["inputs"][&input] {
        _ if role == Role::Output => Ok(()),
        Value::Null => {
            let inputs = found["inputs"].as_object().into_iter().flatten();
            let inputs: Vec<&str> = inputs.map(|(name, _)| name.as_str()).collect();
            Err(BindingError::Input {
                text,
                node,
                class: found["class_type"].as_str().unwrap_or_default().to_owned(),
                input,
                inputs: inputs.join(", "),
            })
        }
        Value::Array(_) => Err(BindingError::Linked { text }),
        _ => Ok(()),
    }
}
