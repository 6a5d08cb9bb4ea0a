//! The wire formats of the services with built-in profiles. They are as strict as the real services where that matters,
//! so that a profile which sends too much or too little fails.

mod gateways;
mod labs;
mod queues;

pub use gateways::{APIMART, EASEL, ICODEEASY};
pub use labs::{BFL, DASHSCOPE, DASHSCOPE_WAN25};
pub use queues::{FAL, REPLICATE, SDCPP};

use serde_json::Value;

/// A name in `fields` that the service does not know.
fn unknown<'a>(fields: &'a Value, known: &[&str]) -> Option<&'a str> {
    let names = fields.as_object()?.keys();
    names.map(String::as_str).find(|name| !known.contains(name))
}

fn n(fields: &Value, name: &str, max: u64) -> Option<usize> {
    match fields.get(name) {
        None => Some(1),
        Some(n) => {
            let n = n.as_u64().filter(|n| (1..=max).contains(n))?;
            usize::try_from(n).ok()
        }
    }
}
