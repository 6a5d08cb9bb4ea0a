//! The contents of an image: a sky with a sun, bubbles, and layered waves.

#![expect(
    clippy::cast_precision_loss,
    reason = "pixels are counted in thousands"
)]

use std::f32::consts::TAU;

use super::{
    chance::Chance,
    palette::{Colour, Palette, mix},
};
use crate::image::ImageSize;

/// The number of steps in the sky's gradient.
pub(super) const SKY_STEPS: usize = 2048;

/// An image before it is rendered. Lengths are in pixels.
pub(super) struct Scene {
    /// The colours from one end of the sky to the other.
    pub(super) sky: Vec<Colour>,
    /// The sky's step at a pixel is `x * across + y * down + offset`.
    pub(super) across: f32,
    /// See `across`.
    pub(super) down: f32,
    /// See `across`.
    pub(super) offset: f32,
    /// The sun and the bubbles, in front of the sky.
    pub(super) discs: Vec<Disc>,
    /// Ordered from far to near.
    pub(super) waves: Vec<Wave>,
}

/// A disc whose opacity changes from its center to its edge.
pub(super) struct Disc {
    /// The center, from the left.
    pub(super) x: f32,
    /// The center, from the top.
    pub(super) y: f32,
    /// From the center to the edge.
    pub(super) radius: f32,
    /// The same everywhere.
    pub(super) colour: Colour,
    /// The opacity in the center and at the edge, from 0 to 1.
    pub(super) inner: f32,
    /// See `inner`.
    pub(super) outer: f32,
}

/// A wave, which covers everything below its crest.
pub(super) struct Wave {
    /// The top of the wave in each column.
    pub(super) crest: Vec<f32>,
    /// The smallest value in `crest`.
    pub(super) top: f32,
    /// The height over which the colours change.
    pub(super) depth: f32,
    /// The colour at the crest.
    pub(super) upper: Colour,
    /// The colour `depth` below the crest and further down.
    pub(super) lower: Colour,
    /// From 0 to 1.
    pub(super) opacity: f32,
}

/// The opacity of each layer, from 0 to 1.
#[derive(Clone, Copy)]
pub(super) struct Strength {
    discs: f32,
    waves: f32,
}

impl Strength {
    /// For an image without a reference.
    pub(super) const ALONE: Self = Self {
        discs: 1.0,
        waves: 1.0,
    };
    /// Low enough to show the reference underneath.
    pub(super) const OVER_REFERENCE: Self = Self {
        discs: 0.55,
        waves: 0.16,
    };
}

impl Scene {
    /// The scene of an image of this size, the same for the same choices.
    pub(super) fn new(mut chance: Chance, size: ImageSize, strength: Strength) -> Self {
        let palette = Palette::pick(&mut chance);
        let (width, height) = (size.width as f32, size.height as f32);
        let slant = chance.within(-0.5..0.5);
        let reach = height + width * slant.abs();
        let step = (SKY_STEPS - 1) as f32 / reach;
        let mut discs = sun(&mut chance, &palette, width, height);
        discs.extend(bubbles(&mut chance, &palette, width, height));
        for disc in &mut discs {
            disc.inner *= strength.discs;
            disc.outer *= strength.discs;
        }
        Self {
            sky: sky(&palette),
            across: slant * step,
            down: step,
            offset: (-slant).max(0.0) * width * step,
            discs,
            waves: waves(&mut chance, &palette, size, strength.waves),
        }
    }
}

fn sky(palette: &Palette) -> Vec<Colour> {
    let stops = [
        mix(palette.deep, palette.middle, 0.35),
        palette.middle,
        palette.warm,
        palette.light,
        mix(palette.light, palette.warm, 0.4),
    ];
    let spans = (stops.len() - 1) as f32;
    (0..SKY_STEPS)
        .map(|step| {
            // The lightest part is at the horizon, a little below the middle.
            let position = (step as f32 / (SKY_STEPS - 1) as f32 * 1.3).min(1.0) * spans;
            let span = (0..stops.len() - 1)
                .rev()
                .find(|&span| position >= span as f32)
                .unwrap_or(0);
            let part = position - span as f32;
            let eased = part * part * (3.0 - 2.0 * part);
            mix(stops[span], stops[span + 1], part * 0.5 + eased * 0.5)
        })
        .collect()
}

/// A disc with a halo around it.
fn sun(chance: &mut Chance, palette: &Palette, width: f32, height: f32) -> Vec<Disc> {
    let side = width.min(height);
    let x = width * chance.within(0.2..0.8);
    let y = height * chance.within(0.22..0.48);
    let radius = side * chance.within(0.07..0.13);
    let glow = mix(palette.light, palette.accent, 0.25);
    let halo = |times: f32, inner: f32| Disc {
        x,
        y,
        radius: radius * times,
        colour: glow,
        inner,
        outer: 0.0,
    };
    let core = Disc {
        x,
        y,
        radius,
        colour: mix(palette.light, palette.accent, chance.within(0.0..0.7)),
        inner: 0.98,
        outer: 0.94,
    };
    vec![halo(6.5, 0.3), halo(3.0, 0.4), core]
}

/// Thin circles, more transparent in the middle.
fn bubbles(chance: &mut Chance, palette: &Palette, width: f32, height: f32) -> Vec<Disc> {
    let side = width.min(height);
    let colours = [palette.light, palette.warm, palette.accent, palette.middle];
    let count = 6 + chance.below(6);
    (0..count)
        .map(|number| {
            let big = chance.within(0.0..1.0).powi(2);
            Disc {
                x: width * chance.within(-0.05..1.05),
                y: height * chance.within(-0.05..0.75),
                radius: side * (0.025 + 0.2 * big),
                colour: colours[usize::from(number) % colours.len()],
                inner: chance.within(0.02..0.08),
                outer: chance.within(0.18..0.42),
            }
        })
        .collect()
}

fn waves(chance: &mut Chance, palette: &Palette, size: ImageSize, opacity: f32) -> Vec<Wave> {
    let (width, height) = (size.width as f32, size.height as f32);
    let horizon = chance.within(0.5..0.62);
    let count = 5 + chance.below(3);
    (0..count)
        .map(|number| {
            let near = f32::from(number) / f32::from(count - 1);
            let base = height * (horizon + (0.95 - horizon) * near.powf(1.2));
            let swell = height * chance.within(0.02..0.045) * (0.6 + near);
            let lengths = [
                chance.within(0.6..1.2),
                chance.within(1.6..2.8),
                chance.within(3.5..6.0),
            ];
            let shifts = lengths.map(|_| chance.within(0.0..TAU));
            let crest: Vec<f32> = (0..size.width)
                .map(|x| {
                    let along = x as f32 / width * TAU;
                    let rise = [1.0, 0.5, 0.16]
                        .into_iter()
                        .zip(lengths.into_iter().zip(shifts))
                        .map(|(share, (length, shift))| share * (along * length + shift).sin());
                    base + swell * rise.sum::<f32>()
                })
                .collect();
            let far = mix(palette.warm, palette.middle, 0.35);
            let body = match near {
                far_half if far_half < 0.5 => mix(far, palette.middle, near * 2.0),
                _ => mix(palette.middle, palette.deep, near * 2.0 - 1.0),
            };
            Wave {
                top: crest.iter().copied().fold(f32::INFINITY, f32::min),
                crest,
                depth: height * 0.22,
                upper: mix(body, palette.light, 0.28 * (1.0 - near) + 0.06),
                lower: mix(body, palette.deep, 0.3),
                opacity: opacity * (0.86 + 0.14 * near),
            }
        })
        .collect()
}
