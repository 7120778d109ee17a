//! Times and numbers as text, written by hand: a 202 has several, and their cost is what a request
//! pays that is taken off its connection.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A time as RFC 3339 has it, in UTC with milliseconds: `2023-11-14T22:13:20.123Z`. One outside of
/// the years 0 to 9999, which that format cannot hold, is the nearest that it can.
pub(super) fn rfc3339(time: SystemTime) -> [u8; 24] {
    let (days, of_day) = since_year_0(time);
    let (year, month, day) = date(days);
    let (seconds, millis) = (of_day / 1000, of_day % 1000);
    let date = pairs([year / 100, year % 100, month, day]);
    let time = pairs([seconds / 3600, seconds / 60 % 60, seconds % 60, millis / 10]);
    let mut text = *b"0000-00-00T00:00:00.000Z";
    text[..4].copy_from_slice(&date[..4]);
    text[5..7].copy_from_slice(&date[4..6]);
    text[8..10].copy_from_slice(&date[6..]);
    text[11..13].copy_from_slice(&time[..2]);
    text[14..16].copy_from_slice(&time[2..4]);
    text[17..19].copy_from_slice(&time[4..6]);
    text[20..22].copy_from_slice(&time[6..]);
    text[22] = digit(millis % 10);
    text
}

/// The digits of four numbers below 100, all at once: each has 16 bits of a word to itself.
fn pairs(numbers: [u32; 4]) -> [u8; 8] {
    let word = numbers.into_iter().fold(0, |word, number| word << 16 | u64::from(number));
    // 103 / 1024 is near enough to a tenth, and the product stays within its bits.
    let tens = (word * 103) >> 10 & 0x000f_000f_000f_000f;
    let ones = word - tens * 10;
    (0x3030_3030_3030_3030 | tens << 8 | ones).to_be_bytes()
}

const DAY: u64 = 86_400;

/// From the first of March of the year 0 to 1970, in days. A year that begins with March has its
/// leap day at its end.
const MARCH_0_TO_1970: u64 = 719_468;

/// From the first of January of the year 0 to the first of March, in days: it is a leap year.
const JANUARY_0_TO_MARCH: u64 = 60;

/// The first second of the year 0, counted back from 1970, and the last of the year 9999.
const FIRST: u64 = (MARCH_0_TO_1970 + JANUARY_0_TO_MARCH) * DAY;
const LAST: u64 = 253_402_300_799;

/// The days since the first of January of the year 0, and the milliseconds of the last of them.
fn since_year_0(time: SystemTime) -> (u64, u32) {
    let (seconds, millis) = match time.duration_since(UNIX_EPOCH) {
        Ok(after) if after.as_secs() <= LAST => (FIRST + after.as_secs(), after.subsec_millis()),
        Ok(_) => (FIRST + LAST, 999),
        Err(before) => {
            let since = Duration::from_secs(FIRST).saturating_sub(before.duration());
            (since.as_secs(), since.subsec_millis())
        }
    };
    (seconds / DAY, (seconds % DAY) as u32 * 1000 + millis)
}

/// Year, month and day, of days since the first of January of the year 0. After Howard Hinnant's
/// `civil_from_days` ("chrono-Compatible Low-Level Date Algorithms"), whose years begin with March.
fn date(days: u64) -> (u32, u32, u32) {
    // One round of the calendar later, so that January and February of the year 0 count up too.
    let days = days as u32 + ROUND - JANUARY_0_TO_MARCH as u32;
    let (round, of_round) = (days / ROUND, days % ROUND);
    let year = (of_round - of_round / 1460 + of_round / 36_524 - of_round / 146_096) / 365;
    let of_year = of_round - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (round * 400 + year + u32::from(month <= 2) - 400, month, day)
}

/// The calendar repeats itself after 400 years; in days.
const ROUND: u32 = 146_097;

const fn digit(value: u32) -> u8 {
    b'0' + value as u8
}

/// Writes a number in decimal digits.
pub(super) fn push_number(text: &mut Vec<u8>, number: u64) {
    let mut digits = [0; 20];
    let (mut at, mut left) = (digits.len(), number);
    loop {
        at -= 1;
        digits[at] = digit((left % 10) as u32);
        left /= 10;
        if left == 0 {
            break;
        }
    }
    text.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(time: SystemTime) -> String {
        String::from_utf8(rfc3339(time).to_vec()).unwrap()
    }

    fn at(seconds: i64, nanos: u32) -> SystemTime {
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let whole = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
        whole + Duration::from_nanos(nanos.into())
    }

    fn oracle(time: SystemTime) -> String {
        format!("{:.3}", jiff::Timestamp::try_from(time).unwrap())
    }

    #[test]
    fn the_edges_of_the_calendar() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.999Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_782_400, "2000-02-29T00:00:00.999Z"),
            (4_107_542_399, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400, "2100-03-01T00:00:00.999Z"),
            (253_402_300_799, "9999-12-31T23:59:59.999Z"),
            (253_402_300_800, "9999-12-31T23:59:59.999Z"),
            (1 << 40, "9999-12-31T23:59:59.999Z"),
            (-62_167_219_200, "0000-01-01T00:00:00.999Z"),
            (-62_162_035_201, "0000-02-29T23:59:59.999Z"),
        ] {
            assert_eq!(text(at(seconds, 999_999_999)), expected, "{seconds}");
        }
        for seconds in [-62_167_219_201, i64::MIN / 4] {
            assert_eq!(text(at(seconds, 0)), "0000-01-01T00:00:00.000Z");
        }
    }

    #[test]
    fn every_day_of_a_round_of_the_calendar() {
        for day in 0..i64::from(ROUND) {
            let time = at((day - 719_528) * 86_400, 0);
            assert_eq!(text(time), oracle(time));
        }
    }

    proptest! {
        #[test]
        fn times_are_those_of_a_calendar(
            seconds in -62_167_219_200_i64..253_402_207_200,
            nanos in 0u32..1_000_000_000,
        ) {
            let time = at(seconds, nanos);
            prop_assert_eq!(text(time), oracle(time));
        }

        #[test]
        fn numbers_are_those_of_std(number: u64, shift in 0u32..64) {
            let (number, mut text) = (number >> shift, Vec::new());
            push_number(&mut text, number);
            prop_assert_eq!(String::from_utf8(text).unwrap(), number.to_string());
        }
    }
}
