//! The `Idempotency-Key` request header (draft-ietf-httpapi-idempotency-key-header-07).
//!
//! Section 2.1 has a Structured Field String: text in quotes (RFC 9651, section 3.3.3). Many clients
//! were written before that, and send their key bare. Both are read, and `"abc"` is the same key as
//! `abc`. A bare key is visible ASCII without `"`, `\`, `,` and `;`: with those it could be a list,
//! or a string with something behind it, and two readers might find two keys in it.
//!
//! Nothing is guessed beyond that. A key that is read wrongly makes a request run twice, or not at
//! all, so what is no key is refused, parameters of the field included, which the draft gives no
//! meaning to.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};

pub(crate) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// The most bytes of a key. A UUID, which the draft advises, has 36; 255 is what clients know from
/// the APIs that had such keys first.
const MAX_KEY: usize = 255;

/// Why there is no key to be read in an `Idempotency-Key`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BadKey {
    /// More than one line, which clients must not send (section 2.1).
    Several,
    Empty,
    TooLong,
    Malformed,
}

impl BadKey {
    /// What is wrong and how to mend it, without a word of what was sent.
    pub(crate) fn detail(self) -> &'static str {
        match self {
            Self::Several => {
                "The request has more than one Idempotency-Key header field. Send exactly one."
            }
            Self::Empty => {
                "The Idempotency-Key is empty. Send 1 to 255 characters, such as a UUID in double quotes."
            }
            Self::TooLong => "The Idempotency-Key is too long. Send 255 characters at most.",
            Self::Malformed => {
                "The Idempotency-Key is malformed. Send one string of printable ASCII in double quotes, with a backslash before each double quote and backslash inside, and nothing after it."
            }
        }
    }
}

/// The key that a request was sent under, if it was; without its quotes and escapes.
pub(crate) fn idempotency_key(headers: &HeaderMap) -> Result<Option<Cow<'_, str>>, BadKey> {
    let mut lines = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(line) = lines.next() else { return Ok(None) };
    if lines.next().is_some() {
        return Err(BadKey::Several);
    }
    // Not all servers take the whitespace around a value away.
    let text = line.to_str().map_err(|_| BadKey::Malformed)?.trim_matches([' ', '\t']);
    let key = match text.strip_prefix('"') {
        Some(rest) => quoted(rest),
        None => text.bytes().all(is_bare).then_some(Cow::Borrowed(text)),
    };
    match key.ok_or(BadKey::Malformed)? {
        key if key.is_empty() => Err(BadKey::Empty),
        key if key.len() > MAX_KEY => Err(BadKey::TooLong),
        key => Ok(Some(key)),
    }
}

fn is_bare(byte: u8) -> bool {
    byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b',' | b';')
}

/// Reads a string from behind its opening quote (RFC 9651, section 4.2.5). The quote that closes it
/// must be the last character.
fn quoted(rest: &str) -> Option<Cow<'_, str>> {
    let inner = rest.strip_suffix('"')?;
    if inner.chars().all(is_plain) { Some(inner.into()) } else { unescaped(inner).map(Cow::from) }
}

/// What stands for itself inside of a string.
fn is_plain(c: char) -> bool {
    matches!(c, ' '..='~') && !matches!(c, '"' | '\\')
}

fn unescaped(inner: &str) -> Option<String> {
    let mut text = inner.chars();
    let mut key = String::with_capacity(inner.len());
    while let Some(c) = text.next() {
        key.push(match c {
            '\\' => text.next().filter(|c| matches!(c, '"' | '\\'))?,
            c => Some(c).filter(|c| is_plain(*c))?,
        });
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn of(lines: &[impl AsRef<[u8]>]) -> Result<Option<String>, BadKey> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(IDEMPOTENCY_KEY, HeaderValue::from_bytes(line.as_ref()).unwrap());
        }
        idempotency_key(&headers).map(|key| key.map(Cow::into_owned))
    }

    fn in_quotes(key: &str) -> String {
        format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\""))
    }

    #[test]
    fn a_string_or_a_bare_key() {
        assert_eq!(of(&[""; 0]), Ok(None));
        for (line, key) in [
            (r#""abc""#, "abc"),
            ("abc", "abc"),
            (r#"  "abc" "#, "abc"),
            ("\tabc\t", "abc"),
            (r#""8e03978e-40d5-43e8-bc93-6894a57f9324""#, "8e03978e-40d5-43e8-bc93-6894a57f9324"),
            ("8e03978e-40d5-43e8-bc93-6894a57f9324", "8e03978e-40d5-43e8-bc93-6894a57f9324"),
            (r#""a b, c; d=e""#, "a b, c; d=e"),
            (r#"" ""#, " "),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r#""\"""#, "\""),
            (r#""\\""#, "\\"),
            ("42", "42"),
            ("order:7/retry_1.5~x'(y)*=", "order:7/retry_1.5~x'(y)*="),
        ] {
            assert_eq!(of(&[line]), Ok(Some(key.to_owned())), "{line}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused() {
        for line in [
            "\"",
            r#""abc"#,
            r#"abc""#,
            r#"a"b"#,
            r#""a"b""#,
            r#""abc\""#,
            r#""a\bc""#,
            r#""abc" x"#,
            r#""abc";x=1"#,
            r#""abc";x="1""#,
            r#""abc"; x"#,
            r#""abc", "abc""#,
            r#""abc",""#,
            "a b",
            "a\tb",
            "\"a\tb\"",
            "a,b",
            "a;b",
            "a\\b",
            "é",
            "\"é\"",
            "'a', 'b'",
        ] {
            assert_eq!(of(&[line]), Err(BadKey::Malformed), "{line}");
        }
        assert_eq!(of(&[b"\"\xff\""]), Err(BadKey::Malformed));
        for line in ["", " ", "\t", r#""""#] {
            assert_eq!(of(&[line]), Err(BadKey::Empty), "{line:?}");
        }
        for lines in [["a", "b"], ["a", "a"], ["", ""], ["a", "é"]] {
            assert_eq!(of(&lines), Err(BadKey::Several), "{lines:?}");
        }
    }

    #[test]
    fn the_length_is_that_of_the_key_not_of_the_line() {
        for (letter, count) in [("a", MAX_KEY), ("\\", MAX_KEY)] {
            let (longest, longer) = (letter.repeat(count), letter.repeat(count + 1));
            assert_eq!(of(&[in_quotes(&longest)]), Ok(Some(longest)));
            assert_eq!(of(&[in_quotes(&longer)]), Err(BadKey::TooLong));
        }
        assert!(of(&["a".repeat(MAX_KEY)]).is_ok());
        assert_eq!(of(&["a".repeat(MAX_KEY + 1)]), Err(BadKey::TooLong));
    }

    #[test]
    fn every_detail_says_what_to_send() {
        for bad in [BadKey::Several, BadKey::Empty, BadKey::TooLong, BadKey::Malformed] {
            let detail = bad.detail();
            assert!(detail.contains("Idempotency-Key") && detail.contains("Send "), "{detail}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_read(line in vec(any::<u8>(), 0..300)) {
            let mut headers = HeaderMap::new();
            if let Ok(line) = HeaderValue::from_bytes(&line) {
                headers.insert(IDEMPOTENCY_KEY, line);
            }
            if let Ok(Some(key)) = idempotency_key(&headers) {
                prop_assert!((1..=MAX_KEY).contains(&key.len()));
                prop_assert!(key.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            }
        }

        #[test]
        fn what_is_nearly_a_string_is_refused_or_read(line in r#"["\\,; ab]{0,12}"#) {
            if let Ok(Some(key)) = of(&[&line]) {
                // What was read says the same again.
                prop_assert_eq!(of(&[in_quotes(&key)]), Ok(Some(key)));
            }
        }

        #[test]
        fn any_printable_key_is_read_back_from_its_quotes(key in "[ -~]{1,255}") {
            prop_assert_eq!(of(&[in_quotes(&key)]), Ok(Some(key)));
        }

        #[test]
        fn a_bare_key_is_the_same_as_in_quotes(key in r#"[!-~&&[^"\\,;]]{1,255}"#) {
            prop_assert_eq!(of(&[&key]), of(&[in_quotes(&key)]));
        }
    }
}
