//! Where in a workflow a value goes, as the settings say it: `prompt=6.text`, `output=9`.

use serde_json::{Map, Value};

/// What goes into a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Model,
    Prompt,
    Negative,
    Width,
    Height,
    Batch,
    Seed,
    Reference,
    Mask,
    /// A node alone: its pictures are the results.
    Output,
}

/// An input of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) node: String,
    /// Empty for an output.
    pub(super) input: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) role: Role,
    pub(super) target: Target,
}

/// What is wrong with a place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlaceFault {
    #[error("{text:?} is no place, one is like prompt=6.text or output=9")]
    Form { text: String },
    #[error("{text}: there is no {name:?}, there are: {}", Role::ALL.map(Role::name).join(", "))]
    Role { text: String, name: String },
    #[error("{text}: the workflow has no node {node:?}")]
    Node { text: String, node: String },
    #[error("{text}: node {node} ({class}) has no input {input:?}, it has: {inputs}")]
    Input {
        text: String,
        node: String,
        class: String,
        input: String,
        inputs: String,
    },
    #[error("{text}: this input is linked to another node, it must hold a value")]
    Linked { text: String },
    #[error("there is no place for: {0}")]
    Missing(&'static str),
    #[error("{0} has no place in this workflow")]
    NotHere(&'static str),
}

impl Role {
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
    /// Reads `6.text`: the ids of nodes hold no dot.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (node, input) = text.trim().split_once('.')?;
        Some(Self {
            node: node.to_owned(),
            input: input.to_owned(),
        })
    }
}

impl Place {
    /// Reads a place that `nodes` has.
    pub(super) fn parse(text: &str, nodes: &Map<String, Value>) -> Result<Self, PlaceFault> {
        let form = || PlaceFault::Form {
            text: text.to_owned(),
        };
        let (name, target) = text.split_once('=').ok_or_else(form)?;
        let (name, target) = (name.trim(), target.trim());
        let role = Role::ALL.into_iter().find(|role| role.name() == name);
        let role = role.ok_or_else(|| PlaceFault::Role {
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
) -> Result<(), PlaceFault> {
    let text = text.to_owned();
    let Target { node, input } = target.clone();
    let Some(found) = nodes.get(&node) else {
        return Err(PlaceFault::Node { text, node });
    };
    match &found["inputs"][&input] {
        _ if role == Role::Output => Ok(()),
        Value::Null => {
            let inputs = found["inputs"].as_object().into_iter().flatten();
            let inputs: Vec<&str> = inputs.map(|(name, _)| name.as_str()).collect();
            Err(PlaceFault::Input {
                text,
                node,
                class: found["class_type"].as_str().unwrap_or_default().to_owned(),
                input,
                inputs: inputs.join(", "),
            })
        }
        Value::Array(_) => Err(PlaceFault::Linked { text }),
        _ => Ok(()),
    }
}
