//! The node classes that the fake knows. It validates links, types and ranges as ComfyUI does, and computes the size of
//! the images that a graph generates.

use serde_json::{Map, Value, json};

/// What an input accepts.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Takes {
    /// The output of another node, of this type.
    Link(&'static str),
    Int(i64, i64),
    Float,
    Text,
    OneOf(&'static [&'static str]),
    /// An uploaded file.
    Image,
}

struct Class {
    name: &'static str,
    inputs: &'static [(&'static str, Takes)],
    outputs: &'static [&'static str],
    is_output: bool,
}

const SIDE: Takes = Takes::Int(16, 16_384);

/// The only checkpoint it has.
pub const CHECKPOINT: &str = "tiny.safetensors";

const CLASSES: [Class; 14] = [
    class(
        "CheckpointLoaderSimple",
        &[("ckpt_name", Takes::OneOf(&[CHECKPOINT]))],
        &["MODEL", "CLIP", "VAE"],
    ),
    class(
        "CLIPTextEncode",
        &[("clip", Takes::Link("CLIP")), ("text", Takes::Text)],
        &["CONDITIONING"],
    ),
    class(
        "EmptyLatentImage",
        &[
            ("width", SIDE),
            ("height", SIDE),
            ("batch_size", Takes::Int(1, 4096)),
        ],
        &["LATENT"],
    ),
    class(
        "KSampler",
        &[
            ("model", Takes::Link("MODEL")),
            ("positive", Takes::Link("CONDITIONING")),
            ("negative", Takes::Link("CONDITIONING")),
            ("latent_image", Takes::Link("LATENT")),
            ("seed", Takes::Int(0, i64::MAX)),
            ("steps", Takes::Int(1, 10_000)),
            ("cfg", Takes::Float),
            ("sampler_name", Takes::OneOf(&["euler", "dpmpp_2m"])),
            ("scheduler", Takes::OneOf(&["normal", "karras"])),
            ("denoise", Takes::Float),
        ],
        &["LATENT"],
    ),
    class(
        "VAEDecode",
        &[
            ("samples", Takes::Link("LATENT")),
            ("vae", Takes::Link("VAE")),
        ],
        &["IMAGE"],
    ),
    class(
        "VAEEncode",
        &[
            ("pixels", Takes::Link("IMAGE")),
            ("vae", Takes::Link("VAE")),
        ],
        &["LATENT"],
    ),
    class("LoadImage", &[("image", Takes::Image)], &["IMAGE", "MASK"]),
    class(
        "ImageScale",
        &[
            ("image", Takes::Link("IMAGE")),
            (
                "upscale_method",
                Takes::OneOf(&["nearest-exact", "bilinear", "area", "bicubic", "lanczos"]),
            ),
            ("width", Takes::Int(0, 16_384)),
            ("height", Takes::Int(0, 16_384)),
            ("crop", Takes::OneOf(&["disabled", "center"])),
        ],
        &["IMAGE"],
    ),
    class(
        "RepeatLatentBatch",
        &[
            ("samples", Takes::Link("LATENT")),
            ("amount", Takes::Int(1, 64)),
        ],
        &["LATENT"],
    ),
    class(
        "SetLatentNoiseMask",
        &[
            ("samples", Takes::Link("LATENT")),
            ("mask", Takes::Link("MASK")),
        ],
        &["LATENT"],
    ),
    class("MaskToImage", &[("mask", Takes::Link("MASK"))], &["IMAGE"]),
    class(
        "ImageToMask",
        &[
            ("image", Takes::Link("IMAGE")),
            ("channel", Takes::OneOf(&["red", "green", "blue", "alpha"])),
        ],
        &["MASK"],
    ),
    saves("PreviewImage", &[("images", Takes::Link("IMAGE"))]),
    saves(
        "SaveImage",
        &[
            ("images", Takes::Link("IMAGE")),
            ("filename_prefix", Takes::Text),
        ],
    ),
];

const fn class(
    name: &'static str,
    inputs: &'static [(&'static str, Takes)],
    outputs: &'static [&'static str],
) -> Class {
    Class {
        name,
        inputs,
        outputs,
        is_output: false,
    }
}

const fn saves(name: &'static str, inputs: &'static [(&'static str, Takes)]) -> Class {
    Class {
        is_output: true,
        ..class(name, inputs, &[])
    }
}

/// A submitted graph.
pub struct Graph<'a> {
    pub nodes: &'a Map<String, Value>,
    /// Whether an uploaded file of this name exists.
    pub has_file: &'a dyn Fn(&str) -> bool,
}

/// The size of a batch of images.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    pub width: u64,
    pub height: u64,
    pub count: u64,
}

impl Graph<'_> {
    /// Returns the body of a 400 if ComfyUI would refuse the graph.
    pub fn validate(&self) -> Result<(), Value> {
        let error = |kind: &str, message: String| {
            let error = json!({"type": kind, "message": message, "details": "", "extra_info": {}});
            json!({"error": error, "node_errors": {}})
        };
        for (id, node) in self.nodes {
            let name = node["class_type"].as_str().unwrap_or_default();
            if find(name).is_none() {
                let message =
                    format!("Node '{name}' not found. The custom node may not be installed.");
                return Err(error("invalid_prompt", format!("{message} (#{id})")));
            }
        }
        if self.output_nodes().next().is_none() {
            return Err(error(
                "prompt_no_outputs",
                "Prompt has no outputs".to_owned(),
            ));
        }
        let mut faulty = Map::new();
        for (id, node) in self.nodes {
            let errors: Vec<Value> = self.faults(node).collect();
            if !errors.is_empty() {
                let outputs: Vec<&str> = self.output_nodes().collect();
                let fault = json!({"errors": errors, "dependent_outputs": outputs,
                    "class_type": node["class_type"]});
                faulty.insert(id.clone(), fault);
            }
        }
        if faulty.is_empty() {
            return Ok(());
        }
        let message = "Prompt outputs failed validation".to_owned();
        let mut body = error("prompt_outputs_failed_validation", message);
        body["node_errors"] = Value::Object(faulty);
        Err(body)
    }

    /// The nodes whose images are saved, in order.
    pub fn output_nodes(&self) -> impl Iterator<Item = &str> {
        let saves = |node: &Value| class_of(node).is_output;
        self.nodes
            .iter()
            .filter(move |(_, node)| saves(node))
            .map(|(id, _)| id.as_str())
    }

    /// The files it loads, ordered by node number.
    pub fn files(&self) -> Vec<&str> {
        let loads = self
            .nodes
            .iter()
            .filter(|(_, node)| node["class_type"] == "LoadImage");
        let mut loads: Vec<(u32, &str)> = loads
            .map(|(id, node)| {
                (
                    id.parse().unwrap(),
                    node["inputs"]["image"].as_str().unwrap(),
                )
            })
            .collect();
        loads.sort_unstable();
        loads.into_iter().map(|(_, file)| file).collect()
    }

    /// The output of a node that returns images or latents.
    pub fn batch(&self, id: &str) -> Batch {
        let inputs = &self.nodes[id]["inputs"];
        let of = |name: &str| self.batch(inputs[name][0].as_str().unwrap());
        let number = |name: &str| inputs[name].as_u64().unwrap();
        let sized = |count| Batch {
            width: number("width"),
            height: number("height"),
            count,
        };
        match class_of(&self.nodes[id]).name {
            "EmptyLatentImage" => sized(number("batch_size")),
            "ImageScale" => sized(of("image").count),
            "KSampler" => of("latent_image"),
            "VAEDecode" | "SetLatentNoiseMask" => of("samples"),
            "VAEEncode" => of("pixels"),
            "RepeatLatentBatch" => Batch {
                count: number("amount"),
                ..of("samples")
            },
            "PreviewImage" | "SaveImage" => of("images"),
            // Its real size does not matter: the image is scaled.
            "LoadImage" => Batch {
                width: 8,
                height: 6,
                count: 1,
            },
            other => panic!("{other} gives no images"),
        }
    }

    fn faults(&self, node: &Value) -> impl Iterator<Item = Value> {
        class_of(node).inputs.iter().filter_map(|(name, takes)| {
            let value = node["inputs"].get(name);
            let (kind, message) = self.fault(value, *takes)?;
            Some(json!({"type": kind, "message": message, "details": name,
                "extra_info": {"input_name": name, "received_value": value}}))
        })
    }

    fn fault(&self, value: Option<&Value>, takes: Takes) -> Option<(&str, String)> {
        let fault = |kind, message: &str| Some((kind, message.to_owned()));
        let Some(value) = value else {
            return fault("required_input_missing", "Required input is missing");
        };
        match (takes, value) {
            (Takes::Link(wanted), Value::Array(link)) => {
                let from = link[0].as_str().and_then(|id| self.nodes.get(id));
                let slot = link[1].as_u64().and_then(|slot| usize::try_from(slot).ok());
                let given = from
                    .zip(slot)
                    .and_then(|(node, slot)| class_of(node).outputs.get(slot));
                if given == Some(&wanted) {
                    return None;
                }
                fault(
                    "return_type_mismatch",
                    "Return type mismatch between linked nodes",
                )
            }
            (Takes::Link(_), _) | (_, Value::Array(_)) => fault(
                "bad_linked_input",
                "Bad linked input, must be a length-2 list of [node_id, slot_index]",
            ),
            (Takes::Int(min, max), _) => match value.as_i64() {
                None => fault(
                    "invalid_input_type",
                    "Failed to convert an input value to a INT value",
                ),
                Some(n) if n < min => Some((
                    "value_smaller_than_min",
                    format!("Value {n} smaller than min of {min}"),
                )),
                Some(n) if n > max => Some((
                    "value_bigger_than_max",
                    format!("Value {n} bigger than max of {max}"),
                )),
                Some(_) => None,
            },
            (Takes::Float, _) if !value.is_number() => fault(
                "invalid_input_type",
                "Failed to convert an input value to a FLOAT value",
            ),
            (Takes::OneOf(all), _) if !value.as_str().is_some_and(|one| all.contains(&one)) => {
                fault("value_not_in_list", "Value not in list")
            }
            (Takes::Image, _) if !value.as_str().is_some_and(|file| (self.has_file)(file)) => {
                fault(
                    "custom_validation_failed",
                    "Custom validation failed for node",
                )
            }
            (Takes::Text, _) if !value.is_string() => fault(
                "invalid_input_type",
                "Failed to convert an input value to a STRING value",
            ),
            _ => None,
        }
    }
}

fn find(name: &str) -> Option<&'static Class> {
    static ALL: &[Class] = &CLASSES;
    ALL.iter().find(|class| class.name == name)
}

fn class_of(node: &Value) -> &'static Class {
    find(node["class_type"].as_str().unwrap()).unwrap()
}
