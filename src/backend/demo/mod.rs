//! A backend without an upstream: it renders an abstract image that depends on the prompt alone, for trying
//! out the gateway and for testing the code around backends.

mod chance;
mod paint;
mod palette;
mod reference;
mod scene;

use std::{
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use image::{
    ExtendedColorType, ImageEncoder, RgbImage,
    codecs::png::{CompressionType, FilterType, PngEncoder},
};
use tokio::sync::Semaphore;

use super::{Backend, BackendError, Capabilities, GenerateRequest, ImageSink, whole_input};
use crate::{config::DemoBackend, image::ImageSize};
use chance::Chance;
use scene::{Scene, Strength};

const PIECE_BYTES: usize = 64 * 1024;
/// References that are read or decoded at the same time, per core.
const INPUTS_PER_CORE: usize = 2;

/// A backend without an upstream.
pub struct Demo {
    delay: Duration,
    failure_percent: u8,
    /// The number of images started; decides which ones fail.
    begun: AtomicU64,
    /// One permit per core, because generating uses a full core.
    cores: Arc<Semaphore>,
    /// One permit per reference held in memory. They are separate from the cores' permits, so that a slow
    /// reference does not delay other requests.
    inputs: Semaphore,
}

impl Demo {
    /// A backend with these settings.
    pub fn new(settings: &DemoBackend) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            delay: Duration::from_millis(settings.delay_ms),
            failure_percent: settings.failure_percent,
            begun: AtomicU64::new(0),
            cores: Arc::new(Semaphore::new(cores)),
            inputs: Semaphore::new(INPUTS_PER_CORE * cores),
        }
    }

    /// Whether the next image fails; the same ones fail in every run of the program.
    fn next_fails(&self) -> bool {
        let begun = self.begun.fetch_add(1, Ordering::Relaxed);
        Chance::of_number(begun).below(100) < self.failure_percent
    }

    /// Runs `work`, which uses a full core, once a core is free.
    async fn on_core<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        let permit = self.cores.clone().acquire_owned().await.map_err(failed)?;
        let work = move || {
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(failed)?
    }
}

#[async_trait]
impl Backend for Demo {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            n_max: 10,
            references_max: 16,
            mask: false,
        }
    }

    async fn generate(
        &self,
        request: &GenerateRequest,
        images: &mut dyn ImageSink,
    ) -> Result<(), BackendError> {
        let size = request.size;
        let start = match request.references.first() {
            None => None,
            Some(input) => {
                let _permit = self.inputs.acquire().await.map_err(failed)?;
                let bytes = whole_input::read(input, reference::NAME).await?;
                let fitted = self.on_core(move || reference::fit(&bytes, size)).await?;
                Some(Arc::new(fitted))
            }
        };
        for index in 0..request.n {
            tokio::time::sleep(self.delay).await;
            if self.next_fails() {
                return Err(BackendError::Failed {
                    detail: "failed on purpose, because of failure_percent".to_owned(),
                });
            }
            let chance = Chance::of_prompt(&request.prompt, index);
            let start = start.clone();
            let mut png = self
                .on_core(move || render_png(chance, size, start.as_deref()))
                .await?;
            while !png.is_empty() {
                let piece = png.split_to(png.len().min(PIECE_BYTES));
                images.write(piece).await?;
            }
            images.finish().await?;
        }
        Ok(())
    }

    async fn check(&self) -> Result<(), BackendError> {
        Ok(())
    }
}

fn render_png(
    chance: Chance,
    size: ImageSize,
    start: Option<&RgbImage>,
) -> Result<Bytes, BackendError> {
    let strength = match start {
        None => Strength::ALONE,
        Some(_) => Strength::OVER_REFERENCE,
    };
    let scene = Scene::new(chance, size, strength);
    let pixels = paint::paint(&scene, size, start);
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Fast, FilterType::Sub)
        .write_image(&pixels, size.width, size.height, ExtendedColorType::Rgb8)
        .map_err(failed)?;
    Ok(png.into())
}

fn failed(error: impl std::fmt::Display) -> BackendError {
    BackendError::Failed {
        detail: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
