//! Rows of the kinds that promises have.

use super::report::{Figure, Floor};

/// A count as a figure.
#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
pub(super) fn count(what: &str, found: usize, floor: Floor) -> Figure {
    Figure::new(what, found as f64, "", floor)
}

/// None of this kind may be found; the first is shown.
pub(super) fn none<T: std::fmt::Debug>(what: &str, found: &[T]) -> Figure {
    let figure = count(what, found.len(), Floor::AtMost(0.0));
    match found.first() {
        Some(first) => figure.note(&format!("{first:?}")),
        None => figure,
    }
}

/// A share as a percentage.
#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^52")]
pub(super) fn percent(what: &str, part: usize, whole: usize, floor: Floor) -> Figure {
    Figure::new(what, 100.0 * part as f64 / whole.max(1) as f64, "%", floor)
}
