//! Numbers as Redis reads and writes them.

/// Reads an integer as Redis does (src/util.c, `string2ll`): decimal digits with at most a minus
/// before them, no leading zero, no `-0`.
pub(crate) fn integer(text: &[u8]) -> Option<i64> {
    let digits = text.strip_prefix(b"-").unwrap_or(text);
    match digits {
        [b'0'] => (text.len() == 1).then_some(0),
        [b'1'..=b'9', ..] if digits.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(text).ok()?.parse().ok()
        }
        _ => None,
    }
}

/// Reads a double that is not NaN. Redis takes hexadecimal ones too (`strtod`); this does not.
pub(crate) fn double(text: &[u8]) -> Option<f64> {
    let number = std::str::from_utf8(text).ok()?.parse::<f64>().ok()?;
    (!number.is_nan()).then_some(number)
}

/// Writes a double as C does with `%.17g`: how Redis 7.0 sends scores, and passes Lua's numbers to
/// commands.
pub(crate) fn g17(number: f64) -> String {
    if number.is_nan() {
        return if number.is_sign_negative() { "-nan" } else { "nan" }.to_owned();
    }
    if number.is_infinite() {
        return if number < 0.0 { "-inf" } else { "inf" }.to_owned();
    }
    if number == 0.0 {
        return if number.is_sign_negative() { "-0" } else { "0" }.to_owned();
    }
    // One digit, a point, and 16 more, correctly rounded.
    let scientific = format!("{number:.16e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if !(-4..17).contains(&exponent) {
        let mantissa = without_trailing_zeros(mantissa);
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    let decimals = usize::try_from(16 - exponent).unwrap_or(0);
    without_trailing_zeros(&format!("{number:.decimals$}")).to_owned()
}

fn without_trailing_zeros(digits: &str) -> &str {
    match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.'),
        false => digits,
    }
}

/// Converts a double to an integer as the C cast of x86-64 does, by which a script's number becomes
/// a reply: the fraction is cut off, and what does not fit is the least integer.
pub(crate) fn truncated(number: f64) -> i64 {
    const LIMIT: f64 = 9_223_372_036_854_775_808.0;
    if (-LIMIT..LIMIT).contains(&number) { number as i64 } else { i64::MIN }
}

/// Converts a pair of indexes, of which negative ones count from the end, to a range within `len`.
pub(crate) fn range(start: i64, stop: i64, len: usize) -> std::ops::Range<usize> {
    let len = i64::try_from(len).unwrap_or(i64::MAX);
    let from_end = |index: i64| if index < 0 { len.saturating_add(index) } else { index };
    let (start, stop) = (from_end(start).max(0), from_end(stop).min(len - 1));
    if start > stop { 0..0 } else { start as usize..stop as usize + 1 }
}

/// A generator of random numbers (splitmix64): the same for the same seed, on every machine.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, which is not 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use mlua::Lua;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_are_read_strictly() {
        let good = [
            ("0", 0),
            ("-1", -1),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ];
        for (text, number) in good {
            assert_eq!(integer(text.as_bytes()), Some(number), "{text}");
        }
        for text in ["", "-", "-0", "+1", "01", " 1", "1 ", "1.0", "9223372036854775808", "1e3"] {
            assert_eq!(integer(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn doubles_are_truncated_as_c_does() {
        for (number, integer) in
            [(1.9, 1), (-1.9, -1), (1e30, i64::MIN), (f64::NAN, i64::MIN), (-2e30, i64::MIN)]
        {
            assert_eq!(truncated(number), integer, "{number}");
        }
    }

    #[test]
    fn ranges_stay_within_the_length() {
        assert_eq!(range(0, -1, 3), 0..3);
        assert_eq!(range(-100, 100, 3), 0..3);
        assert_eq!(range(2, 1, 3), 0..0);
        assert_eq!(range(3, 5, 3), 0..0);
        assert_eq!(range(0, -1, 0), 0..0);
        assert_eq!(range(i64::MIN, i64::MAX, 2), 0..2);
    }

    #[test]
    fn g17_writes_what_c_writes() {
        let lua = Lua::new();
        let format: mlua::Function =
            lua.load("return function(n) return string.format('%.17g', n) end").eval().unwrap();
        for number in [
            0.0,
            -0.0,
            1.0,
            -5.0,
            0.1,
            1e16,
            1e17,
            1e-4,
            1e-5,
            123_456_789_012_345_680.0,
            1.5e300,
            5e-324,
            f64::INFINITY,
            f64::NEG_INFINITY,
            1_800_000_000_000.0,
            99_999_999_999_999_999.0,
        ] {
            assert_eq!(g17(number), format.call::<String>(number).unwrap());
        }
        proptest!(|(bits: u64, small in -1_000_000i64..1_000_000)| {
            for number in [f64::from_bits(bits), small as f64 / 64.0, bits as f64] {
                if !number.is_nan() {
                    prop_assert_eq!(g17(number), format.call::<String>(number).unwrap());
                }
            }
        });
    }
}
