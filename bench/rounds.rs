//! Several rounds of the same rows: their medians, and how the gateway compares with its peers.

use super::report::Figure;

/// Rows of the gateway, and the row of a peer that does a part of the same.
const PEERS: [(&str, &str); 5] = [
    ("sync, 70-byte image", "nginx, 70-byte image"),
    ("sync, 1.5 MB image", "nginx, 1.5 MB image"),
    ("sync, 1.5 MB image as b64_json", "nginx, 1.5 MB image"),
    (
        "1,000 images of 1.5 MB at once",
        "nginx, 1,000 images of 1.5 MB at once",
    ),
    (
        "uploads of 20 MB by 4 clients",
        "nginx, uploads of 20 MB by 4 clients",
    ),
];

/// The median of each row, in the order of the rows.
pub(super) fn medians(rounds: Vec<Vec<Figure>>) -> Vec<Figure> {
    let mut rows: Vec<Vec<Figure>> = Vec::new();
    for figure in rounds.into_iter().flatten() {
        match rows.iter_mut().find(|row| row[0].what == figure.what) {
            Some(row) => row.push(figure),
            None => rows.push(vec![figure]),
        }
    }
    let median = |mut row: Vec<Figure>| {
        row.sort_by(|a, b| a.measured.total_cmp(&b.measured));
        row.swap_remove(row.len() / 2)
    };
    rows.into_iter().map(median).collect()
}

/// Notes how figures compare with those of peers that were measured, too.
pub(super) fn compare(figures: &mut [Figure]) {
    for (row, peer) in PEERS {
        let measured = |what: &str| figures.iter().position(|figure| figure.what == what);
        if let (Some(row), Some(theirs)) = (measured(row), measured(peer)) {
            let ratio = figures[row].measured / figures[theirs].measured;
            let note = format!("{ratio:.2} of nginx, {}", figures[row].note);
            figures[row].note = note;
        }
    }
}

/// All figures as JSON.
pub(super) fn json(figures: &[Figure]) -> String {
    let rows = figures.iter().map(|figure| {
        serde_json::json!({
            "what": figure.what,
            "measured": figure.measured,
            "unit": figure.unit,
            "holds": figure.holds(),
            "note": figure.note,
        })
    });
    rows.collect::<serde_json::Value>().to_string()
}
