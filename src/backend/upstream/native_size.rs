//! The size that a model generates well: the pixel count it was trained on, in the requested proportions.

use crate::image::ImageSize;

/// The sizes of a model.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend) struct NativeSize {
    /// The side of the square it was trained on; 0 if it generates any size.
    pub(in crate::backend) side_px: u32,
    /// Both sides must be a multiple of this.
    pub(in crate::backend) step_px: u32,
}

impl NativeSize {
    /// The size to generate for `wanted`.
    pub(in crate::backend) fn fit(self, wanted: ImageSize) -> ImageSize {
        if self.side_px == 0 {
            return wanted;
        }
        ImageSize {
            width: self.side(wanted.width, wanted.height),
            height: self.side(wanted.height, wanted.width),
        }
    }

    /// The side whose ratio to the other side is `long` to `across`.
    fn side(self, long: u32, across: u32) -> u32 {
        let [side, step] = [self.side_px, self.step_px.max(1)].map(u64::from);
        let exact = (side * side * u64::from(long) / u64::from(across.max(1))).isqrt();
        let steps = ((exact + step / 2) / step).max(1);
        u32::try_from(steps * step).unwrap_or(self.side_px)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_has_the_pixels_of_the_square_and_the_requested_proportions() {
        let fit = |side_px, step_px, width, height| {
            let fitted = NativeSize { side_px, step_px }.fit(ImageSize { width, height });
            (fitted.width, fitted.height)
        };
        assert_eq!(fit(0, 64, 2048, 1152), (2048, 1152));
        assert_eq!(fit(512, 64, 1024, 1024), (512, 512));
        assert_eq!(fit(512, 8, 1536, 864), (680, 384));
        assert_eq!(fit(1024, 64, 864, 2016), (640, 1536));
        assert_eq!(fit(1024, 64, 2688, 1152), (1536, 640));
        assert_eq!(fit(64, 64, 2048, 1024), (64, 64));
        assert_eq!(fit(64, 256, 1, u32::MAX), (256, 4_194_304));
    }
}
