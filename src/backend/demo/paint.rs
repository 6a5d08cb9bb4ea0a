//! Renders a scene into pixels, row by row.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "coordinates are small and clamped before they are rounded"
)]

use image::RgbImage;

use super::{
    palette::{Colour, mix},
    scene::{Disc, SKY_STEPS, Scene, Wave},
};
use crate::image::ImageSize;

/// The share of the palette in a tinted reference.
const TINT: f32 = 0.34;

/// Red, green and blue of every pixel. `start`, if set, must have exactly this size.
pub(super) fn paint(scene: &Scene, size: ImageSize, start: Option<&RgbImage>) -> Vec<u8> {
    let width = size.width as usize;
    let mut row: Vec<Colour> = vec![[0.0; 3]; width];
    let mut pixels = Vec::with_capacity(width * size.height as usize * 3);
    for y in 0..size.height {
        match start {
            None => sky(scene, y as f32, &mut row),
            Some(start) => {
                let from = y as usize * width * 3;
                tint(scene, &start.as_raw()[from..from + width * 3], &mut row);
            }
        }
        let middle = y as f32 + 0.5;
        for disc in &scene.discs {
            lay_disc(disc, middle, &mut row);
        }
        for wave in &scene.waves {
            lay_wave(wave, middle, &mut row);
        }
        for colour in &row {
            pixels.extend(colour.map(|part| (part + 0.5) as u8));
        }
    }
    pixels
}

fn sky(scene: &Scene, y: f32, row: &mut [Colour]) {
    let mut step = y * scene.down + scene.offset;
    for pixel in row {
        *pixel = scene.sky[(step as usize).min(SKY_STEPS - 1)];
        step += scene.across;
    }
}

/// Fills a row with the reference, its shades shifted toward the palette.
fn tint(scene: &Scene, start: &[u8], row: &mut [Colour]) {
    for (pixel, rgb) in row.iter_mut().zip(start.as_chunks::<3>().0) {
        let colour = rgb.map(f32::from);
        let shade = (colour[0] * 0.3 + colour[1] * 0.59 + colour[2] * 0.11) / 255.0;
        let step = (shade * 0.75 * SKY_STEPS as f32) as usize;
        *pixel = mix(colour, scene.sky[step.min(SKY_STEPS - 1)], TINT);
    }
}

fn lay_disc(disc: &Disc, y: f32, row: &mut [Colour]) {
    let down = y - disc.y;
    let reach = disc.radius + 0.5;
    let left = reach * reach - down * down;
    if left <= 0.0 {
        return;
    }
    let half = left.sqrt();
    let from = (disc.x - half).max(0.0) as usize;
    let to = ((disc.x + half + 1.0).max(0.0) as usize).min(row.len());
    let per_area = 1.0 / (disc.radius * disc.radius);
    for (x, pixel) in row.iter_mut().enumerate().take(to).skip(from) {
        let across = x as f32 + 0.5 - disc.x;
        let distance_squared = across * across + down * down;
        let edge = (reach - distance_squared.sqrt()).clamp(0.0, 1.0);
        let out = (distance_squared * per_area).min(1.0);
        // A halo fades toward its edge; a bubble becomes denser.
        let opacity = match disc.outer {
            0.0 => disc.inner * (1.0 - out) * (1.0 - out),
            outer => disc.inner + (outer - disc.inner) * out * out,
        };
        *pixel = mix(*pixel, disc.colour, opacity * edge);
    }
}

fn lay_wave(wave: &Wave, y: f32, row: &mut [Colour]) {
    if y + 0.5 <= wave.top {
        return;
    }
    let per_depth = 1.0 / wave.depth;
    for (pixel, crest) in row.iter_mut().zip(&wave.crest) {
        let below = y - crest;
        let edge = (below + 0.5).clamp(0.0, 1.0);
        if edge > 0.0 {
            let colour = mix(wave.upper, wave.lower, (below * per_depth).clamp(0.0, 1.0));
            *pixel = mix(*pixel, colour, wave.opacity * edge);
        }
    }
}
