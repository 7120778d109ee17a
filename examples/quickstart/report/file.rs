//! Whether a file is a well-formed CSV at all, and if not, in which line.

use std::fmt;

/// As many columns as a spreadsheet has. Each costs memory before its first value, so
/// 64 MiB of commas must not be a row.
const MOST_COLUMNS: usize = 16_384;

/// A file that is text and has its quotes in order.
pub(super) struct CsvFile<'a> {
    text: &'a str,
    delimiter: u8,
}

impl<'a> CsvFile<'a> {
    pub(super) fn open(file: &'a [u8]) -> Result<Self, NotCsv> {
        let text = text_of(file)?;
        let delimiter = delimiter_of(text);
        check_fields(text.as_bytes(), delimiter)?;
        Ok(Self { text, delimiter })
    }

    pub(super) fn reader(&self) -> csv::Reader<&'a [u8]> {
        csv::ReaderBuilder::new().delimiter(self.delimiter).from_reader(self.text.as_bytes())
    }

    /// What the reader has found wrong: only that rows are ragged, by now.
    pub(super) fn refusal(&self, error: &csv::Error) -> NotCsv {
        let reason = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
                format!("{len} field(s), where the header has {expected_len}")
            }
            _ => error.to_string(),
        };
        // Not the reader's own line: a record begins for it where the one before has
        // ended, which is short of a CRLF's second half and of blank lines.
        let bytes = self.text.as_bytes();
        let end = error.position().map_or(0, |position| position.byte());
        let end = usize::try_from(end).map_or(bytes.len(), |end| end.min(bytes.len()));
        let newlines = bytes[end..].iter().take_while(|&&b| is_newline(b)).count();
        NotCsv::at(bytes, end + newlines, reason)
    }
}

/// Why, and where, something is not a CSV file.
#[derive(Debug)]
pub(crate) struct NotCsv {
    /// Counted from 1; a row over several lines has the number of its first.
    pub(crate) line: usize,
    reason: String,
}

impl NotCsv {
    fn at(bytes: &[u8], offset: usize, reason: impl Into<String>) -> Self {
        Self { line: line_at(bytes, offset), reason: reason.into() }
    }
}

impl fmt::Display for NotCsv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.reason)
    }
}

impl std::error::Error for NotCsv {}

/// The file as text, or what it is instead of a CSV file.
fn text_of(file: &[u8]) -> Result<&str, NotCsv> {
    let text = std::str::from_utf8(file)
        .map_err(|error| NotCsv::at(file, error.valid_up_to(), "not UTF-8"))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let refuse = |offset, reason| Err(NotCsv::at(text.as_bytes(), offset, reason));

    if text.trim().is_empty() {
        return Err(NotCsv { line: 1, reason: "there is no header, the file is empty".to_owned() });
    }
    if let Some(offset) = text.find('\0') {
        return refuse(offset, "a NUL byte, so this is no text");
    }
    let start = text.len() - text.trim_start().len();
    if looks_like_json(text) {
        return refuse(start, "this is JSON, not CSV");
    }
    if text[start..].starts_with('<') {
        return refuse(start, "this is HTML or XML, not CSV");
    }
    Ok(text)
}

/// A line of JSON can pass for a header. One that starts with `{` is none that anybody
/// has; `[` is, as in `[id],[name]`, unless JSON goes on from there.
fn looks_like_json(text: &str) -> bool {
    let text = text.trim_start();
    match text.strip_prefix('[').map(str::trim_start) {
        Some(rest) => {
            rest.starts_with(['{', '[', '"'])
                || serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
        }
        None => text.starts_with('{'),
    }
}

/// Whichever the header has most of; of as many, the comma.
fn delimiter_of(text: &str) -> u8 {
    let mut counts = [(b'\t', 0), (b';', 0), (b',', 0)];
    let mut quoted = false;
    for byte in text.trim_start_matches(['\r', '\n']).bytes() {
        match byte {
            b'"' => quoted = !quoted,
            _ if quoted => {}
            b'\r' | b'\n' => break,
            _ => {
                for (delimiter, count) in &mut counts {
                    *count += usize::from(byte == *delimiter);
                }
            }
        }
    }
    // The last of equals is the greatest for `max_by_key`.
    let most = counts.into_iter().max_by_key(|&(_, count)| count);
    most.map_or(b',', |(delimiter, _)| delimiter)
}

/// The reader takes broken quotes as they come, so that the part of a file after a
/// lost quote is one long cell. Such a report would be wrong without a sign of it.
fn check_fields(bytes: &[u8], delimiter: u8) -> Result<(), NotCsv> {
    enum Field {
        Start,
        Plain,
        Quoted,
        Closed,
    }

    let mut field = Field::Start;
    let mut opened = 0;
    let mut columns = 1;
    for (offset, &byte) in bytes.iter().enumerate() {
        field = match (field, byte) {
            (Field::Start, b'"') => {
                opened = offset;
                Field::Quoted
            }
            (Field::Quoted, b'"') => Field::Closed,
            (Field::Closed, b'"') => Field::Quoted, // two quotes stand for one
            (Field::Quoted, _) => Field::Quoted,
            (_, b'\r' | b'\n') => {
                columns = 1;
                Field::Start
            }
            (_, byte) if byte == delimiter => {
                columns += 1;
                if columns > MOST_COLUMNS {
                    let reason = format!("more than {MOST_COLUMNS} columns");
                    return Err(NotCsv::at(bytes, offset, reason));
                }
                Field::Start
            }
            (Field::Closed, _) => {
                let opened = line_at(bytes, opened);
                let reason = format!("text after a closing quote (opened in line {opened})");
                return Err(NotCsv::at(bytes, offset, reason));
            }
            (Field::Start | Field::Plain, _) => Field::Plain,
        };
    }
    match field {
        Field::Quoted => Err(NotCsv::at(bytes, opened, "a quote that is never closed")),
        _ => Ok(()),
    }
}

fn line_at(bytes: &[u8], offset: usize) -> usize {
    let ends = |at: usize| match bytes[at] {
        b'\n' => true,
        b'\r' => bytes.get(at + 1) != Some(&b'\n'),
        _ => false,
    };
    1 + (0..offset).filter(|&at| ends(at)).count()
}

fn is_newline(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(file: impl AsRef<[u8]>) -> String {
        let file = file.as_ref();
        match CsvFile::open(file) {
            Ok(_) => panic!("taken: {}", file.escape_ascii()),
            Err(error) => error.to_string(),
        }
    }

    fn taken(file: &str) -> bool {
        CsvFile::open(file.as_bytes()).is_ok()
    }

    #[test]
    fn broken_quotes_are_refused_with_their_line() {
        assert_eq!(
            refused("a,b\r\n1,2\r\n1,\"2\r\n3,4\r\n"),
            "line 3: a quote that is never closed"
        );
        assert_eq!(
            refused("a,b\n1,\"2\n3,\"4\"\n"),
            "line 3: text after a closing quote (opened in line 2)"
        );
        assert_eq!(refused("a,\"b\"\""), "line 1: a quote that is never closed");
        // Only a field that starts with a quote is a quoted one.
        assert!(taken("height\n5' 11\"\n"));
    }

    #[test]
    fn what_is_no_text_is_refused_with_its_line() {
        assert_eq!(refused(b"a,b\n1,2\n\xff,3\n"), "line 3: not UTF-8");
        assert_eq!(refused(b"\x89PNG\r\n\x1a\n\0\0"), "line 1: not UTF-8");
        let reason = "line 2: a NUL byte, so this is no text";
        assert_eq!(refused(b"a,b\n1,\0\n"), reason);
        for file in ["", "\n\r\n", " ", "\u{feff}"] {
            let reason = "line 1: there is no header, the file is empty";
            assert_eq!(refused(file), reason, "{file:?}");
        }
    }

    #[test]
    fn other_formats_are_refused() {
        for file in [
            "{}",
            "{\n  \"a\": 1\n}",
            "{\"a\":1}\n{\"a\":2}\n",
            "[1, 2, 3]",
            "[\n]",
            "[{\"a\": 1}, {\"a\"",
        ] {
            assert_eq!(refused(file), "line 1: this is JSON, not CSV");
        }
        assert_eq!(refused("\n{\"a\": 1}"), "line 2: this is JSON, not CSV");
        let reason = "line 1: this is HTML or XML, not CSV";
        assert_eq!(refused("<!doctype html>"), reason);
        assert!(taken("[id],[name]\n"));
    }

    #[test]
    fn a_row_has_its_limit() {
        let commas = |count| ",".repeat(count);
        assert!(taken(&commas(MOST_COLUMNS - 1)));
        let reason = "line 2: more than 16384 columns";
        assert_eq!(refused(format!("a\n{}", commas(MOST_COLUMNS))), reason);
    }
}
