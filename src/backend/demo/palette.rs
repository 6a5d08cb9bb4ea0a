//! Colours that match.

use super::chance::Chance;

/// Red, green and blue, each from 0 to 255.
pub(super) type Colour = [f32; 3];

/// Four colours from the darkest to the lightest, and an accent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    /// The darkest.
    pub(super) deep: Colour,
    /// Between the darkest and the warm one.
    pub(super) middle: Colour,
    /// Between the middle one and the lightest.
    pub(super) warm: Colour,
    /// The lightest.
    pub(super) light: Colour,
    /// For the sun and some bubbles.
    pub(super) accent: Colour,
}

const PALETTE_COUNT: u8 = 12;
const PALETTES: [[u32; 5]; PALETTE_COUNT as usize] = [
    [0x14_21_3d, 0x3d_5a_80, 0xee_9b_72, 0xff_e8_d6, 0xe5_60_3f],
    [0x1b_1b_3a, 0x69_36_68, 0xd1_56_8d, 0xff_d9_c7, 0xf9_a0_3f],
    [0x0b_3c_49, 0x16_69_7a, 0x82_c0_a6, 0xf4_f1_de, 0xff_a6_2b],
    [0x2b_2d_42, 0x6d_6a_9c, 0xe0_ae_c9, 0xfd_f0_f3, 0xef_47_6f],
    [0x10_30_2b, 0x2f_6f_57, 0xa7_c9_57, 0xf7_f5_d7, 0xe7_6f_51],
    [0x03_04_5e, 0x00_77_b6, 0x62_c6_dd, 0xe3_f8_fb, 0xff_b7_03],
    [0x2d_1e_2f, 0x7f_3b_5a, 0xe8_84_5c, 0xff_e5_b4, 0xf4_d3_5e],
    [0x1d_2d_44, 0x5a_7d_9a, 0xc9_b7_9c, 0xf7_ed_e2, 0xf2_84_82],
    [0x24_00_46, 0x65_22_a8, 0xc7_7d_ff, 0xf5_e4_ff, 0x4c_c9_f0],
    [0x33_26_1d, 0x8c_5a_3c, 0xd9_a0_66, 0xfb_f0_dc, 0x3a_8f_85],
    [0x0f_20_27, 0x2c_53_68, 0x7f_b3_a7, 0xea_f6_e9, 0xf2_6a_8d],
    [0x3a_0c_a3, 0x43_61_ee, 0xf7_8f_b3, 0xff_f0_e5, 0xff_d1_66],
];

impl Palette {
    /// One of the palettes.
    pub(super) fn pick(chance: &mut Chance) -> Self {
        let picked = usize::from(chance.below(PALETTE_COUNT));
        let [deep, middle, warm, light, accent] = PALETTES[picked].map(colour);
        Self {
            deep,
            middle,
            warm,
            light,
            accent,
        }
    }
}

/// Mixes two colours: `part` is the share of `to`; values outside 0 to 1 are not clamped.
pub(super) fn mix(from: Colour, to: Colour, part: f32) -> Colour {
    [
        from[0] + (to[0] - from[0]) * part,
        from[1] + (to[1] - from[1]) * part,
        from[2] + (to[2] - from[2]) * part,
    ]
}

fn colour(rgb: u32) -> Colour {
    let [_, red, green, blue] = rgb.to_be_bytes();
    [red, green, blue].map(f32::from)
}
