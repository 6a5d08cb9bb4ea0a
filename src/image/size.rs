//! Sizes as clients request them (an aspect ratio or pixels, a resolution, a quality), and the pixels requested
//! upstream for them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The pixel counts at which a size in pixels is no longer 1k, and no longer offered at all.
const PIXELS_OF_2K: u64 = 2_359_296;
const PIXELS_OF_4K: u64 = 5_767_168;

/// The ratios offered, each with its pixels at 1k and at 2k.
const OFFERS: [(AspectRatio, ImageSize, ImageSize); 13] = [
    offer((1, 1), (1024, 1024), (2048, 2048)),
    offer((3, 2), (1536, 1024), (2048, 1360)),
    offer((2, 3), (1024, 1536), (1360, 2048)),
    offer((4, 3), (1024, 768), (2048, 1536)),
    offer((3, 4), (768, 1024), (1536, 2048)),
    offer((5, 4), (1280, 1024), (2560, 2048)),
    offer((4, 5), (1024, 1280), (2048, 2560)),
    offer((16, 9), (1536, 864), (2048, 1152)),
    offer((9, 16), (864, 1536), (1152, 2048)),
    offer((2, 1), (2048, 1024), (2688, 1344)),
    offer((1, 2), (1024, 2048), (1344, 2688)),
    offer((21, 9), (2016, 864), (2688, 1152)),
    offer((9, 21), (864, 2016), (1152, 2688)),
];

/// Width and height in pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageSize {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
}

/// One of the thirteen ratios of the wire contract; serialized as `16:9`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct AspectRatio {
    width: u8,
    height: u8,
}

/// Serialized as `1k` and `2k`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[sqlx(type_name = "text")]
pub enum Resolution {
    /// The smaller of the two sizes of each ratio, from 0.8 to 2.1 megapixels.
    #[default]
    #[serde(rename = "1k")]
    #[sqlx(rename = "1k")]
    OneK,
    /// The larger one, from 2.4 to 5.2 megapixels.
    #[serde(rename = "2k")]
    #[sqlx(rename = "2k")]
    TwoK,
}

/// Determines the price; serialized as `low`, `medium` and `high`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
pub enum Quality {
    /// Costs the model's `price_low`.
    Low,
    /// Costs the model's `price_medium`.
    #[default]
    Medium,
    /// Costs the model's `price_high`.
    High,
}

/// Why a size, resolution or quality is rejected. The message names the field and what is allowed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct SizeError {
    /// The name of the request field.
    pub field: &'static str,
    /// The message that clients see.
    pub message: String,
}

/// Resolves the fields `size` and `resolution` of a request to pixels.
///
/// `size` is `auto`, a ratio, or pixels such as `1536x1024`. A given `resolution` takes precedence. Otherwise the
/// number of pixels determines it, and a ratio means 1k.
pub fn resolve_size(
    size: Option<&str>,
    resolution: Option<&str>,
) -> Result<(AspectRatio, Resolution, ImageSize), SizeError> {
    let asked = resolution.map(str::parse).transpose()?;
    let (ratio, implied) = match size {
        None | Some("auto") => (AspectRatio::SQUARE, Resolution::OneK),
        Some(text) => match ImageSize::parse(text) {
            Some(pixels) => (pixels.nearest_ratio()?, pixels.implied_resolution(asked)?),
            None => (text.parse()?, Resolution::OneK),
        },
    };
    let resolution = asked.unwrap_or(implied);
    Ok((ratio, resolution, ratio.pixels(resolution)))
}

impl AspectRatio {
    /// 1:1, the default.
    pub const SQUARE: Self = Self {
        width: 1,
        height: 1,
    };

    /// All thirteen, in the order of the wire contract.
    pub fn all() -> impl Iterator<Item = Self> {
        OFFERS.iter().map(|(ratio, ..)| *ratio)
    }

    /// The pixels to request upstream.
    pub fn pixels(self, resolution: Resolution) -> ImageSize {
        let (_, one_k, two_k) = OFFERS
            .iter()
            .find(|(ratio, ..)| *ratio == self)
            .unwrap_or(&OFFERS[0]);
        match resolution {
            Resolution::OneK => *one_k,
            Resolution::TwoK => *two_k,
        }
    }
}

impl Default for AspectRatio {
    fn default() -> Self {
        Self::SQUARE
    }
}

impl FromStr for AspectRatio {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        Self::all()
            .find(|ratio| ratio.to_string() == text)
            .ok_or_else(unknown_size)
    }
}

impl TryFrom<String> for AspectRatio {
    type Error = SizeError;

    fn try_from(text: String) -> Result<Self, SizeError> {
        text.parse()
    }
}

impl From<AspectRatio> for String {
    fn from(ratio: AspectRatio) -> Self {
        ratio.to_string()
    }
}

impl fmt::Display for AspectRatio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.width, self.height)
    }
}

impl ImageSize {
    /// Parses `1536x1024`: plain decimal numbers above zero and nothing else.
    fn parse(text: &str) -> Option<Self> {
        let (width, height) = text.split_once('x')?;
        Some(Self {
            width: parse_side(width)?,
            height: parse_side(height)?,
        })
    }

    /// The nearest ratio, by proportion: 103:100 is as far from 1:1 as 100:103.
    fn nearest_ratio(self) -> Result<AspectRatio, SizeError> {
        AspectRatio::all()
            .map(|ratio| (ratio, self.distance(ratio)))
            .min_by(|(_, (a, a_base)), (_, (b, b_base))| (a * b_base).cmp(&(b * a_base)))
            .filter(|(_, (side, base))| side * 100 <= base * 103)
            .map(|(ratio, _)| ratio)
            .ok_or_else(unknown_size)
    }

    /// How many times wider or taller than the ratio this is, as a fraction of 1 or more. Uses integers, so that
    /// exactly 3 % is within 3 % for every ratio.
    fn distance(self, ratio: AspectRatio) -> (u128, u128) {
        let across = u128::from(self.width) * u128::from(ratio.height);
        let down = u128::from(self.height) * u128::from(ratio.width);
        (across.max(down), across.min(down))
    }

    /// The requested resolution, or else the one for this many pixels.
    fn implied_resolution(self, asked: Option<Resolution>) -> Result<Resolution, SizeError> {
        let pixels = u64::from(self.width) * u64::from(self.height);
        if pixels >= PIXELS_OF_4K {
            return Err(SizeError {
                field: "size",
                message: format!("size must be below {PIXELS_OF_4K} pixels in all"),
            });
        }
        Ok(asked.unwrap_or(if pixels < PIXELS_OF_2K {
            Resolution::OneK
        } else {
            Resolution::TwoK
        }))
    }
}

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.width, self.height)
    }
}

impl Resolution {
    /// The wire value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OneK => "1k",
            Self::TwoK => "2k",
        }
    }
}

impl FromStr for Resolution {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        [Self::OneK, Self::TwoK]
            .into_iter()
            .find(|resolution| resolution.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| SizeError {
                field: "resolution",
                message: "resolution must be 1k or 2k".to_owned(),
            })
    }
}

impl fmt::Display for Resolution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Quality {
    /// Parses the field `quality`. `auto` is priced as `medium`. Older clients send `standard` and `hd`, newer ones
    /// `xhigh` and `max`.
    pub fn parse(text: Option<&str>) -> Result<Self, SizeError> {
        match text {
            None | Some("medium" | "auto" | "standard") => Ok(Self::Medium),
            Some("low") => Ok(Self::Low),
            Some("high" | "hd" | "xhigh" | "max") => Ok(Self::High),
            Some(_) => Err(SizeError {
                field: "quality",
                message: "quality must be low, medium, high or auto".to_owned(),
            }),
        }
    }

    /// The wire value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

impl fmt::Display for Quality {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

const fn offer(
    ratio: (u8, u8),
    one_k: (u32, u32),
    two_k: (u32, u32),
) -> (AspectRatio, ImageSize, ImageSize) {
    let ratio = AspectRatio {
        width: ratio.0,
        height: ratio.1,
    };
    let one_k = ImageSize {
        width: one_k.0,
        height: one_k.1,
    };
    let two_k = ImageSize {
        width: two_k.0,
        height: two_k.1,
    };
    (ratio, one_k, two_k)
}

/// `u32::from_str` alone would accept a plus sign and leading zeros.
fn parse_side(text: &str) -> Option<u32> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| plain)
}

/// Never repeats the input: it may be long, and the message goes into responses and logs.
fn unknown_size() -> SizeError {
    let ratios: Vec<String> = AspectRatio::all().map(String::from).collect();
    SizeError {
        field: "size",
        message: format!(
            "size must be auto, one of {}, or pixels like 1536x1024 within 3 % of one of these ratios",
            ratios.join(", ")
        ),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The result for a size and resolution, as one readable line.
    fn resolved(size: Option<&str>, resolution: Option<&str>) -> String {
        match resolve_size(size, resolution) {
            Ok((ratio, resolution, pixels)) => format!("{ratio} {resolution} {pixels}"),
            Err(error) => format!("{}: {error}", error.field),
        }
    }

    const SIZE_REFUSED: &str = "size: size must be auto, one of 1:1, 3:2, 2:3, 4:3, 3:4, 5:4, 4:5, 16:9, \
        9:16, 2:1, 1:2, 21:9, 9:21, or pixels like 1536x1024 within 3 % of one of these ratios";

    #[test]
    fn absent_and_auto_are_square() {
        assert_eq!(resolved(None, None), "1:1 1k 1024x1024");
        assert_eq!(resolved(Some("auto"), None), "1:1 1k 1024x1024");
        assert_eq!(resolved(Some("auto"), Some("2K")), "1:1 2k 2048x2048");
        assert_eq!(resolved(None, Some("1K")), "1:1 1k 1024x1024");
    }

    #[test]
    fn every_ratio_has_its_pixels() {
        let table: Vec<String> = AspectRatio::all()
            .map(|ratio| {
                let [one_k, two_k] = [Resolution::OneK, Resolution::TwoK].map(|r| ratio.pixels(r));
                format!("{ratio} {one_k} {two_k}")
            })
            .collect();
        insta::assert_snapshot!(table.join("\n"), @r"
        1:1 1024x1024 2048x2048
        3:2 1536x1024 2048x1360
        2:3 1024x1536 1360x2048
        4:3 1024x768 2048x1536
        3:4 768x1024 1536x2048
        5:4 1280x1024 2560x2048
        4:5 1024x1280 2048x2560
        16:9 1536x864 2048x1152
        9:16 864x1536 1152x2048
        2:1 2048x1024 2688x1344
        1:2 1024x2048 1344x2688
        21:9 2016x864 2688x1152
        9:21 864x2016 1152x2688
        ");
    }

    #[test]
    fn the_pixels_of_an_offer_ask_for_that_offer() {
        for ratio in AspectRatio::all() {
            for resolution in [Resolution::OneK, Resolution::TwoK] {
                let pixels = ratio.pixels(resolution);
                let expected = format!("{ratio} {resolution} {pixels}");
                assert_eq!(resolved(Some(&pixels.to_string()), None), expected);
                assert_eq!(
                    resolved(Some(&ratio.to_string()), Some(resolution.as_str())),
                    expected
                );
            }
        }
    }

    #[test]
    fn pixels_of_other_sizes_become_the_nearest_offer() {
        for (size, expected) in [
            ("256x256", "1:1 1k 1024x1024"),
            ("1x1", "1:1 1k 1024x1024"),
            ("1792x1024", "16:9 1k 1536x864"),
            ("1024x1792", "9:16 1k 864x1536"),
            ("1920x1080", "16:9 1k 1536x864"),
            ("1535x1536", "1:1 1k 1024x1024"),
            ("1536x1536", "1:1 2k 2048x2048"),
            ("2401x2401", "1:1 2k 2048x2048"),
        ] {
            assert_eq!(resolved(Some(size), None), expected, "{size}");
        }
    }

    #[test]
    fn three_percent_is_the_limit_on_both_sides() {
        assert_eq!(resolved(Some("1030x1000"), None), "1:1 1k 1024x1024");
        assert_eq!(resolved(Some("1000x1030"), None), "1:1 1k 1024x1024");
        assert_eq!(resolved(Some("1031x1000"), None), SIZE_REFUSED);
        assert_eq!(resolved(Some("1000x1031"), None), SIZE_REFUSED);
        assert_eq!(resolved(Some("3000x1000"), None), SIZE_REFUSED);
    }

    #[test]
    fn the_pixel_count_decides_only_where_no_resolution_is_given() {
        let refused = "size: size must be below 5767168 pixels in all";
        assert_eq!(resolved(Some("2402x2402"), None), refused);
        assert_eq!(resolved(Some("4096x1408"), Some("2k")), SIZE_REFUSED);
        assert_eq!(resolved(Some("4096x4096"), Some("2k")), refused);
        assert_eq!(resolved(Some("2048x2048"), Some("1k")), "1:1 1k 1024x1024");
        assert_eq!(resolved(Some("4294967295x4294967295"), None), refused);
    }

    #[test]
    fn anything_else_is_refused() {
        for size in [
            "",
            " ",
            "1:1 ",
            " 16:9",
            "16:09",
            "016:9",
            "32:18",
            "16/9",
            "AUTO",
            "1k",
            "x",
            "0x0",
            "0x5",
            "5x0",
            "1024x",
            "x1024",
            "1024X1024",
            "1e3x4",
            "+1024x1024",
            "-1x1",
            "01024x1024",
            "1024x1024x1024",
            "1024 x 1024",
            "1024x1024\n",
            "1024.0x1024",
            "4294967296x4294967296",
            "99999999999999999999999x99999999999999999999999",
            "١٠٢٤x١٠٢٤",
            "1024×1024",
            "\0",
        ] {
            assert_eq!(resolved(Some(size), None), SIZE_REFUSED, "{size:?}");
        }
        for resolution in ["", "4k", "1", "1k ", "2K\0", "auto", "1024"] {
            assert_eq!(
                resolved(None, Some(resolution)),
                "resolution: resolution must be 1k or 2k",
                "{resolution:?}"
            );
        }
    }

    #[test]
    fn qualities_and_their_older_names() {
        for (text, expected) in [
            (None, Quality::Medium),
            (Some("low"), Quality::Low),
            (Some("medium"), Quality::Medium),
            (Some("auto"), Quality::Medium),
            (Some("standard"), Quality::Medium),
            (Some("high"), Quality::High),
            (Some("hd"), Quality::High),
            (Some("xhigh"), Quality::High),
            (Some("max"), Quality::High),
        ] {
            assert_eq!(Quality::parse(text).unwrap(), expected, "{text:?}");
        }
        for text in ["", "HIGH", "ultra", " low"] {
            let error = Quality::parse(Some(text)).unwrap_err();
            assert_eq!(error.field, "quality");
            assert_eq!(
                error.to_string(),
                "quality must be low, medium, high or auto"
            );
        }
    }

    #[test]
    fn stored_forms_stay_as_they_are() {
        let stored = r#"["16:9","2k","high",{"width":2048,"height":1152}]"#;
        let value: (AspectRatio, Resolution, Quality, ImageSize) =
            serde_json::from_str(stored).unwrap();
        assert_eq!(serde_json::to_string(&value).unwrap(), stored);
        assert!(serde_json::from_str::<AspectRatio>(r#""7:5""#).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(size in ".*", resolution in ".*") {
            let _ = resolve_size(Some(&size), Some(&resolution));
            let _ = resolve_size(Some(&size), None);
        }

        #[test]
        fn pixels_resolve_to_a_ratio_within_three_percent(width in 1_u32.., height in 1_u32..) {
            let size = format!("{width}x{height}");
            if let Ok((_, resolution, pixels)) = resolve_size(Some(&size), Some("1k")) {
                prop_assert_eq!(resolution, Resolution::OneK);
                let change = (f64::from(width) / f64::from(height)).ln()
                    - (f64::from(pixels.width) / f64::from(pixels.height)).ln();
                prop_assert!(change.abs() < 0.04, "{} became {}", size, pixels);
            }
        }
    }
}
