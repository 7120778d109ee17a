//! What is in a CSV file: its rows, and for each column its type and range. No HTTP.
//!
//! - The first line is the header; its names are reported as they are, even twice.
//!   Blank lines are skipped, a byte order mark is too.
//! - The delimiter is the comma, semicolon or tab that the header has most of.
//! - Cells are trimmed. One with nothing in it is counted as `empty`, and is no value:
//!   it has no say in the column's type, `distinct`, `min`, `max` and `mean`.
//! - `distinct` compares text: `1` and `1.0` are two.
//! - A column has the narrowest type that holds for all its values. Numbers are
//!   written with a point; `NaN` and `inf` are text.
//! - What is no well-formed CSV is refused with the line, rather than half read.

mod file;
mod value;

use std::collections::HashSet;

use serde::Serialize;

use file::CsvFile;
pub(crate) use file::NotCsv;
use value::{Number, Type};

/// What a CSV file contains.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    rows: u64,
    columns: Vec<Column>,
}

#[derive(Debug, Serialize)]
struct Column {
    name: String,
    #[serde(rename = "type")]
    kind: Type,
    distinct: usize,
    empty: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<Number>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<Number>,
    /// Absent too where the values' sum is more than a float holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    mean: Option<f64>,
}

impl Report {
    /// Reads a whole file. This is CPU work, seconds of it for a large one.
    pub(crate) fn of(file: &[u8]) -> Result<Self, NotCsv> {
        let file = CsvFile::open(file)?;
        let mut reader = file.reader();
        let refused = |error| file.refusal(&error);

        let header = reader.headers().map_err(refused)?;
        let mut tallies: Vec<Tally> = header.iter().map(Tally::new).collect();
        let mut rows = 0;
        let mut record = csv::StringRecord::new();
        while reader.read_record(&mut record).map_err(refused)? {
            rows += 1;
            for (tally, cell) in tallies.iter_mut().zip(&record) {
                tally.add(cell.trim());
            }
        }

        let columns = tallies.into_iter().map(Column::from).collect();
        Ok(Self { rows, columns })
    }
}

/// What is known of a column so far.
struct Tally {
    name: String,
    kind: Type,
    values: HashSet<Box<str>>,
    empty: u64,
    numbers: u64,
    sum: f64,
    min: Option<Number>,
    max: Option<Number>,
}

impl Tally {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            kind: Type::Empty,
            values: HashSet::new(),
            empty: 0,
            numbers: 0,
            sum: 0.0,
            min: None,
            max: None,
        }
    }

    fn add(&mut self, cell: &str) {
        if cell.is_empty() {
            self.empty += 1;
            return;
        }
        if !self.values.contains(cell) {
            self.values.insert(cell.into());
        }
        let number = Number::parse(cell);
        self.kind = self.kind.and(Type::of(cell, number));
        if let Some(number) = number {
            self.numbers += 1;
            self.sum += number.as_f64();
            self.min = Some(self.min.map_or(number, |min| min.smaller(number)));
            self.max = Some(self.max.map_or(number, |max| max.larger(number)));
        }
    }
}

impl From<Tally> for Column {
    fn from(tally: Tally) -> Self {
        let numeric = matches!(tally.kind, Type::Integer | Type::Number);
        let mean = tally.sum / tally.numbers as f64;
        Self {
            name: tally.name,
            kind: tally.kind,
            distinct: tally.values.len(),
            empty: tally.empty,
            min: tally.min.filter(|_| numeric),
            max: tally.max.filter(|_| numeric),
            mean: Some(mean).filter(|mean| numeric && mean.is_finite()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn report(file: &str) -> Report {
        Report::of(file.as_bytes()).expect("a CSV file")
    }

    fn refused(file: &str) -> String {
        Report::of(file.as_bytes()).expect_err("no CSV file").to_string()
    }

    /// A column of these cells.
    fn column(cells: &[&str]) -> Column {
        // With a second column, so that an empty cell is no blank line.
        let lines: String = cells.iter().map(|cell| format!("{cell},\n")).collect();
        report(&format!("a,b\n{lines}")).columns.swap_remove(0)
    }

    fn names(report: &Report) -> Vec<&str> {
        report.columns.iter().map(|c| c.name.as_str()).collect()
    }

    #[test]
    fn tells_rows_types_and_ranges() {
        let file = "id,price,paid,on,note,spare\n\
                    1,2.5,true,2024-02-29,x,\n\
                    2,4,FALSE,2025-01-01,x,\n\
                    9,,true,2025-01-01,,\n";
        assert_eq!(
            serde_json::to_value(report(file)).expect("JSON"),
            json!({ "rows": 3, "columns": [
                { "name": "id", "type": "integer", "distinct": 3, "empty": 0,
                  "min": 1, "max": 9, "mean": 4.0 },
                { "name": "price", "type": "number", "distinct": 2, "empty": 1,
                  "min": 2.5, "max": 4, "mean": 3.25 },
                { "name": "paid", "type": "boolean", "distinct": 2, "empty": 0 },
                { "name": "on", "type": "date", "distinct": 2, "empty": 0 },
                { "name": "note", "type": "text", "distinct": 1, "empty": 1 },
                { "name": "spare", "type": "empty", "distinct": 0, "empty": 3 },
            ]})
        );
    }

    #[test]
    fn header_only_has_no_rows() {
        for file in ["a,b", "a,b\n", "a,b\r\n", "\n\na,b\n\n"] {
            let report = report(file);
            assert_eq!((report.rows, names(&report)), (0, vec!["a", "b"]));
            assert_eq!(report.columns[0].kind, Type::Empty);
        }
    }

    #[test]
    fn byte_order_mark_is_no_part_of_a_name() {
        assert_eq!(names(&report("\u{feff}a,b\n1,2\n")), ["a", "b"]);
        assert_eq!(names(&report("\u{feff}\"a\",b\n1,2\n")), ["a", "b"]);
    }

    #[test]
    fn names_are_reported_as_they_are() {
        assert_eq!(names(&report("a,a,, b \n")), ["a", "a", "", " b "]);
    }

    #[test]
    fn quoted_cells_hold_anything() {
        let report = report("a,b\r\n\"1,\r\n2\",\"say \"\"hi\"\"\"\r\n\"\",x\r\n");
        assert_eq!(report.rows, 2);
        assert_eq!(report.columns[0].empty, 1);
        assert_eq!(report.columns[0].kind, Type::Text);
        assert_eq!(report.columns[1].distinct, 2);
    }

    #[test]
    fn delimiter_is_the_headers() {
        assert_eq!(names(&report("a;b\n1,5;2\n")), ["a", "b"]);
        assert_eq!(names(&report("a\tb\n1\t2\n")), ["a", "b"]);
        assert_eq!(names(&report("\"x, y, z\";b;c\n1;2;3\n")), ["x, y, z", "b", "c"]);
        assert_eq!(names(&report("single\n1\n")), ["single"]);
    }

    #[test]
    fn line_ends_of_every_kind() {
        for file in ["a,b\n1,2\n3,4", "a,b\r\n1,2\r\n3,4", "a,b\r1,2\r3,4\r"] {
            assert_eq!(report(file).rows, 2, "{file:?}");
        }
    }

    #[test]
    fn a_column_that_is_not_all_numbers_has_no_range() {
        let mixed = column(&["1", "NaN"]);
        assert_eq!(mixed.kind, Type::Text);
        assert!(mixed.min.is_none() && mixed.max.is_none() && mixed.mean.is_none());
        assert_eq!(column(&["1", "", " 4 "]).mean, Some(2.5));
    }

    #[test]
    fn integers_past_a_floats_precision_stay_exact() {
        let exact = column(&["9007199254740993", "9007199254740992"]);
        assert_eq!(exact.min, Some(Number::Whole(9_007_199_254_740_992)));
        assert_eq!(serde_json::to_string(&exact.max).expect("JSON"), "9007199254740993");
        let long = column(&[&"9".repeat(60)]);
        assert_eq!(long.kind, Type::Integer);
        assert_eq!(long.max, Some(Number::Float(1e60)));
    }

    #[test]
    fn every_answer_is_valid_json() {
        let column = column(&["1e308", "1e308"]);
        assert_eq!(column.mean, None);
        let json = serde_json::to_string(&column).expect("JSON");
        assert_eq!(serde_json::from_str::<Value>(&json).expect("JSON")["max"], json!(1e308));
    }

    #[test]
    fn ragged_rows_are_refused_with_their_line() {
        for file in [
            "a,b\n1,2\n3\n",
            "a,b\r\n1,2\r\n3\r\n",
            "a,b\r1,2\r3",
            "\u{feff}a,b\n\n3\n",
            "a,b\n\n3\n\n",
        ] {
            let reason = "line 3: 1 field(s), where the header has 2";
            assert_eq!(refused(file), reason, "{file:?}");
        }
        let reason = "line 4: 3 field(s), where the header has 2";
        assert_eq!(refused("a,b\n\"1\n1\",2\n1,2,3\n"), reason);
    }
}
