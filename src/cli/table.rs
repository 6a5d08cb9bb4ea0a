//! Formats rows as a table for people or as CSV.

/// Columns as wide as their widest cell, two spaces apart.
pub(super) fn text(header: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.fold(header[column].len(), usize::max)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: Vec<&str>| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let head = line(header.to_vec());
    rows.iter().fold(head, |text, row| {
        text + &line(row.iter().map(String::as_str).collect())
    })
}

/// CSV as in RFC 4180.
pub(super) fn csv(header: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<String>| cells.join(",") + "\r\n";
    let head = line(header.iter().map(|cell| quoted(cell)).collect());
    rows.iter().fold(head, |text, row| {
        text + &line(row.iter().map(|cell| quoted(cell)).collect())
    })
}

fn quoted(cell: &str) -> String {
    if cell.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", cell.replace('"', "\"\""))
    } else {
        cell.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_line_up_and_csv_is_quoted() {
        let rows = vec![
            vec!["a".to_owned(), "1".to_owned()],
            vec!["b,\"c".to_owned(), "22".to_owned()],
        ];
        assert_eq!(text(&["name", "n"], &rows), "name  n\na     1\nb,\"c  22\n");
        assert_eq!(
            csv(&["name", "n"], &rows),
            "name,n\r\na,1\r\n\"b,\"\"c\",22\r\n"
        );
    }
}
