//! The image endpoints: generations, edits and their tasks.

mod answer;
mod generate;
mod inline;
mod read;
mod render;
mod sources;
mod tasks;
mod wire;

pub(super) use generate::{generate, generate_async};
pub(super) use tasks::{get, list};
