//! The table of measurements and required minimums.

/// The requirement for a figure.
#[derive(Clone, Copy)]
pub(super) enum Floor {
    AtLeast(f64),
    AtMost(f64),
    /// For comparison only.
    None,
}

/// One figure.
pub(super) struct Figure {
    /// The label of the row.
    pub(super) what: String,
    pub(super) measured: f64,
    pub(super) unit: &'static str,
    pub(super) floor: Floor,
    /// Other useful facts.
    pub(super) note: String,
}

impl Figure {
    pub(super) fn new(what: &str, measured: f64, unit: &'static str, floor: Floor) -> Self {
        Self {
            what: what.to_owned(),
            measured,
            unit,
            floor,
            note: String::new(),
        }
    }

    /// Adds a note.
    pub(super) fn note(mut self, note: &str) -> Self {
        if !self.note.is_empty() {
            self.note += ", ";
        }
        self.note += note;
        self
    }

    /// Whether it meets its requirement.
    pub(super) fn holds(&self) -> bool {
        match self.floor {
            Floor::AtLeast(floor) => self.measured >= floor,
            Floor::AtMost(floor) => self.measured <= floor,
            Floor::None => true,
        }
    }

    /// Prints the row of this figure.
    pub(super) fn print(&self) {
        let (floor, mark) = match self.floor {
            Floor::AtLeast(floor) => (format!(">= {}", number(floor)), mark(self.holds())),
            Floor::AtMost(floor) => (format!("<= {}", number(floor)), mark(self.holds())),
            Floor::None => (String::new(), ""),
        };
        println!(
            "{:<46} {:>9} {:<6} {floor:>8} {mark:<5} {}",
            self.what,
            number(self.measured),
            self.unit,
            self.note
        );
    }
}

/// Prints the head of the table.
pub(super) fn print_head() {
    println!(
        "{:<46} {:>9} {:<6} {:>8} {:<5} beside it",
        "what", "measured", "", "wanted", ""
    );
}

fn mark(passed: bool) -> &'static str {
    if passed { "ok" } else { "MISS" }
}

/// Three significant digits are enough.
pub(super) fn number(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}
