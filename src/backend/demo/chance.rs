//! Deterministic choices: the same for the same prompt, on every machine and in every run.

use std::ops::Range;

use sha2::{Digest, Sha256};

/// A pseudorandom sequence (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    /// The choices for the image with this index of a prompt.
    pub(super) fn of_prompt(prompt: &str, index: u8) -> Self {
        let hash = Sha256::new()
            .chain_update([index])
            .chain_update(prompt)
            .finalize();
        let seed = hash.iter().take(8);
        Self(seed.fold(0, |seed, &byte| seed << 8 | u64::from(byte)))
    }

    /// The choices for a number.
    pub(super) fn of_number(number: u64) -> Self {
        Self(number)
    }

    /// The next 64 bits, by the generator `SplitMix64`.
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// An integer from 0 to `end` - 1.
    pub(super) fn below(&mut self, end: u8) -> u8 {
        let [below, ..] = (self.next() % u64::from(end)).to_le_bytes();
        below
    }

    /// A number from the range, without its end.
    pub(super) fn within(&mut self, range: Range<f32>) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "24 bits fit a f32")]
        let part = (self.next() >> 40) as f32 / (1_u32 << 24) as f32;
        range.start + part * (range.end - range.start)
    }
}
