//! The `Prefer` request header (RFC 7240), as far as this crate honours it.

use std::time::Duration;

use http::{HeaderMap, HeaderName};

pub(crate) static PREFER: HeaderName = HeaderName::from_static("prefer");

/// The preferences that matter here. Others are ignored, as RFC 7240, section 2 has it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Preferences {
    pub(crate) respond_async: bool,
    pub(crate) wait: Option<Duration>,
}

impl Preferences {
    /// Reads the preferences of a request, from all its `Prefer` lines taken together.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::default();
        let mut seen_wait = false;
        for line in headers.get_all(&PREFER) {
            // A quoted string may hold bytes that are no ASCII (RFC 9110, section 5.6.4).
            let line = String::from_utf8_lossy(line.as_bytes());
            for member in split_quoted(&line, b',') {
                let preference = split_quoted(member, b';').next().unwrap_or("");
                let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
                let (name, value) = (name.trim(), unquoted(value.trim()));
                if name.eq_ignore_ascii_case("respond-async") && value.is_empty() {
                    found.respond_async = true;
                } else if name.eq_ignore_ascii_case("wait") && !seen_wait {
                    // Only the first of several counts (RFC 7240, section 2).
                    seen_wait = true;
                    found.wait = seconds(value);
                }
            }
        }
        found
    }
}

/// Splits at `separator`, but not inside of quoted strings (RFC 9110, section 5.6.4).
fn split_quoted(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c: char| {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            c => return !quoted && c == char::from(separator),
        }
        false
    })
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|value| value.strip_suffix('"')).unwrap_or(value).trim()
}

/// `delta-seconds` (RFC 9110, section 10.2.3 by way of RFC 7240, section 4.3); a number too large
/// to hold stands for a long time.
fn seconds(text: &str) -> Option<Duration> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| Duration::from_secs(text.parse().unwrap_or(u64::from(u32::MAX))))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn of(lines: &[&str]) -> (bool, Option<u64>) {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&PREFER, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        let found = Preferences::of(&headers);
        (found.respond_async, found.wait.map(|wait| wait.as_secs()))
    }

    #[test]
    fn a_list_over_several_lines() {
        assert_eq!(of(&[]), (false, None));
        assert_eq!(of(&["respond-async"]), (true, None));
        assert_eq!(of(&["respond-async, wait=10"]), (true, Some(10)));
        assert_eq!(of(&["wait=10", "Respond-Async"]), (true, Some(10)));
        assert_eq!(
            of(&["return=minimal, respond-async; foo=\"a,b\" , handling=lenient"]),
            (true, None)
        );
        assert_eq!(of(&["wait = 5;x , RESPOND-ASYNC ;y=z"]), (true, Some(5)));
        assert_eq!(of(&["wait=\"7\""]), (false, Some(7)));
        assert_eq!(of(&["respond-async=\"\""]), (true, None));
        assert_eq!(of(&["respond-async, x=\"é\", wait=2"]), (true, Some(2)));
    }

    #[test]
    fn the_first_of_several_counts() {
        assert_eq!(of(&["wait=1, wait=2", "wait=3"]), (false, Some(1)));
        assert_eq!(of(&["wait=x, wait=2"]), (false, None));
    }

    #[test]
    fn what_is_malformed_is_ignored() {
        for line in [
            "",
            ",",
            ";",
            "=",
            "wait",
            "wait=",
            "wait=-1",
            "wait=1.5",
            "wait=1e3",
            "respond async",
            "\"respond-async\"",
            "foo=\"respond-async, wait=3",
            "respond-async=yes",
            "xrespond-async",
            "foo=\"a\\\", respond-async, wait=9\"",
            "é, ü",
            "prefer: respond-async",
        ] {
            assert_eq!(of(&[line]), (false, None), "{line}");
        }
        assert_eq!(of(&["wait=99999999999999999999999"]), (false, Some(u64::from(u32::MAX))));
        assert_eq!(of(&["!, respond-async, =, wait=3"]), (true, Some(3)));
    }
}
