//! What the text of one cell is: a number, a date, and so on.

use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Type {
    /// No cell has a value.
    Empty,
    Integer,
    Number,
    Boolean,
    /// YYYY-MM-DD.
    Date,
    Text,
}

impl Type {
    /// The type of one value that is, or is not, this number.
    pub(super) fn of(value: &str, number: Option<Number>) -> Self {
        match number {
            Some(_) if value.contains(['.', 'e', 'E']) => Self::Number,
            Some(_) => Self::Integer,
            None if is_boolean(value) => Self::Boolean,
            None if is_date(value) => Self::Date,
            None => Self::Text,
        }
    }

    /// The narrowest type for values of both.
    pub(super) fn and(self, other: Self) -> Self {
        match (self, other) {
            (a, b) if a == b => a,
            (Self::Empty, kind) | (kind, Self::Empty) => kind,
            (Self::Integer, Self::Number) | (Self::Number, Self::Integer) => Self::Number,
            _ => Self::Text,
        }
    }
}

fn is_boolean(value: &str) -> bool {
    value.eq_ignore_ascii_case("true") || value.eq_ignore_ascii_case("false")
}

fn is_date(value: &str) -> bool {
    let &[y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = value.as_bytes() else {
        return false;
    };
    if ![y1, y2, y3, y4, m1, m2, d1, d2].iter().all(u8::is_ascii_digit) {
        return false;
    }
    let two = |tens: u8, ones: u8| u32::from(tens - b'0') * 10 + u32::from(ones - b'0');
    let (year, month, day) = (two(y1, y2) * 100 + two(y3, y4), two(m1, m2), two(d1, d2));
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    (1..=days).contains(&day)
}

/// A number: exact while it is a whole one of up to 38 digits, else a finite float.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Number {
    Whole(i128),
    Float(f64),
}

impl Number {
    pub(super) fn parse(value: &str) -> Option<Self> {
        if let Ok(whole) = value.parse() {
            return Some(Self::Whole(whole));
        }
        // Rust's floats are written in words too: inf, infinity, nan.
        let plain = |b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
        let float: f64 = value.bytes().all(plain).then(|| value.parse().ok())??;
        float.is_finite().then_some(Self::Float(float))
    }

    pub(super) fn as_f64(self) -> f64 {
        match self {
            Self::Whole(whole) => whole as f64,
            Self::Float(float) => float,
        }
    }

    fn is_below(self, other: Self) -> bool {
        match (self, other) {
            (Self::Whole(a), Self::Whole(b)) => a < b,
            _ => self.as_f64() < other.as_f64(),
        }
    }

    pub(super) fn smaller(self, other: Self) -> Self {
        if other.is_below(self) { other } else { self }
    }

    pub(super) fn larger(self, other: Self) -> Self {
        if self.is_below(other) { other } else { self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(values: &[&str]) -> Type {
        let of = |value: &&str| Type::of(value, Number::parse(value));
        values.iter().map(of).fold(Type::Empty, Type::and)
    }

    #[test]
    fn a_column_has_the_narrowest_type_for_all_values() {
        assert_eq!(kind(&[]), Type::Empty);
        assert_eq!(kind(&["1", "-2", "+3", "007"]), Type::Integer);
        assert_eq!(kind(&["1", "1e3", ".5", "-2.50"]), Type::Number);
        assert_eq!(kind(&["true", "False"]), Type::Boolean);
        assert_eq!(kind(&["2024-02-29", "2000-02-29"]), Type::Date);
        assert_eq!(kind(&["1", "true"]), Type::Text);
        assert_eq!(kind(&["1", "2024-01-01"]), Type::Text);
    }

    #[test]
    fn days_that_no_calendar_has_are_text() {
        assert_eq!(kind(&["2023-02-29"]), Type::Text);
        assert_eq!(kind(&["1900-02-29"]), Type::Text);
        assert_eq!(kind(&["2024-04-31"]), Type::Text);
        assert_eq!(kind(&["2024-13-01"]), Type::Text);
        assert_eq!(kind(&["2024-00-00"]), Type::Text);
        assert_eq!(kind(&["2024-1-1"]), Type::Text);
    }

    #[test]
    fn words_and_infinities_are_no_numbers() {
        let texts = "NaN inf -Infinity 1e999 e - . 1_000 0x10 1,5 1.2.3";
        for text in texts.split(' ') {
            assert_eq!(Number::parse(text), None, "{text}");
        }
        assert_eq!(Number::parse(&"9".repeat(400)), None);
    }
}
