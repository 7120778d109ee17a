//! Relative references, resolved against the URL of the request that they answer.
//!
//! A handler writes the reference, but its client chooses the path that the reference is resolved
//! against, and may send `//evil.example/x` or `/\evil.example/x`. The result must stay on the origin
//! for every client: for those that follow RFC 3986, and for browsers, which follow the URL standard
//! (<https://url.spec.whatwg.org>, "basic URL parser": a backslash is a slash, `%2e` is a dot, tabs
//! are removed). So the result is a path without dot segments that never begins with two slashes,
//! and has no byte that RFC 3986 does not allow. Where the two differ on what the handler's text
//! means, it is read as browsers read it.

use http::{HeaderValue, uri::PathAndQuery};

/// Returns the reference resolved against the path and query of a request, as a path that means the
/// same at every URL of the origin.
///
/// Returns `None` if the reference is to stay as the handler wrote it, because it does not depend on
/// the request's path: it has a scheme, names a host (`//host/`), or begins with a slash.
pub(super) fn resolve(reference: &[u8], target: &PathAndQuery) -> Option<HeaderValue> {
    if reference.first() == Some(&b'/') {
        return None;
    }
    let reference = cleaned(reference);
    if has_scheme(&reference) || names_a_host(&reference) {
        return None;
    }
    let (reference, fragment) = split_at_first(&reference, b'#');
    let (path, mut query) = split_at_first(reference, b'?');
    let mut text = Vec::with_capacity(target.as_str().len() + reference.len());
    match path.first() {
        None => {
            push_path(&mut text, target.path().as_bytes());
            query = query.or(target.query().map(str::as_bytes));
        }
        Some(first) if is_slash(first) => push_path(&mut text, path),
        Some(_) => {
            push_path(&mut text, target.path().as_bytes());
            pop_segment(&mut text);
            push_path(&mut text, path);
        }
    }
    // Two slashes at the beginning would name a host (RFC 3986, section 4.2).
    if text.starts_with(b"//") {
        text.splice(..0, *b"/.");
    }
    for (delimiter, part) in [(b'?', query), (b'#', fragment)] {
        if let Some(part) = part {
            text.push(delimiter);
            push_encoded(&mut text, part, b"/?");
        }
    }
    HeaderValue::try_from(text).ok()
}

/// Returns the reference without what the URL standard removes from it before it is read.
fn cleaned(reference: &[u8]) -> Vec<u8> {
    let is_kept = |byte: &u8| *byte > b' ';
    let start = reference.iter().position(is_kept).unwrap_or(reference.len());
    let end = reference.iter().rposition(is_kept).map_or(start, |last| last + 1);
    let inner = reference[start..end].iter().copied();
    inner.filter(|byte| !matches!(byte, b'\t' | b'\r' | b'\n')).collect()
}

/// RFC 3986, section 3.1.
fn has_scheme(reference: &[u8]) -> bool {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"+-.".contains(byte);
    let end = reference.iter().position(|byte| !is_part(byte));
    reference.first().is_some_and(u8::is_ascii_alphabetic)
        && end.is_some_and(|end| reference[end] == b':')
}

fn names_a_host(reference: &[u8]) -> bool {
    matches!(reference, [first, second, ..] if is_slash(first) && is_slash(second))
}

fn is_slash(byte: &u8) -> bool {
    matches!(byte, b'/' | b'\\')
}

/// Splits the text at the first of these delimiters, which is left out.
fn split_at_first(text: &[u8], delimiter: u8) -> (&[u8], Option<&[u8]>) {
    match text.iter().position(|byte| *byte == delimiter) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    }
}

/// Appends a path, its dot segments applied to what `text` already holds (RFC 3986, section 5.2.4).
fn push_path(text: &mut Vec<u8>, path: &[u8]) {
    let path = match path {
        [first, rest @ ..] if is_slash(first) => rest,
        path => path,
    };
    let mut segments = path.split(is_slash).peekable();
    while let Some(segment) = segments.next() {
        match count_dots(segment) {
            Some(1) => {}
            Some(2) => pop_segment(text),
            _ => {
                text.push(b'/');
                push_encoded(text, segment, b"");
                continue;
            }
        }
        if segments.peek().is_none() {
            text.push(b'/');
        }
    }
}

/// Removes the last segment, if there is one, and the slash before it.
fn pop_segment(text: &mut Vec<u8>) {
    let slash = text.iter().rposition(|byte| *byte == b'/');
    text.truncate(slash.unwrap_or(0));
}

/// Returns the number of dots in a segment that consists only of them, escaped or not.
fn count_dots(mut segment: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !segment.is_empty() {
        segment = match segment {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return None,
        };
        count += 1;
    }
    Some(count)
}

/// Appends text with every byte escaped that is neither `pchar` (RFC 3986, section 3.3) nor one of
/// `more`. An escape in the text stays one.
fn push_encoded(text: &mut Vec<u8>, part: &[u8], more: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    for (at, byte) in part.iter().enumerate() {
        let is_plain = match byte {
            b'%' => {
                matches!(part[at..], [_, a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit())
            }
            byte => {
                byte.is_ascii_alphanumeric()
                    || b"-._~!$&'()*+,;=:@".contains(byte)
                    || more.contains(byte)
            }
        };
        if is_plain {
            text.push(*byte);
        } else {
            let digit = |value: u8| DIGITS[usize::from(value)];
            text.extend([b'%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use iri_string::{
        format::ToDedicatedString,
        types::{UriAbsoluteStr, UriReferenceStr},
    };
    use proptest::{prelude::*, sample::select};
    use url::Url;

    use super::*;

    const ORIGIN: &str = "http://host";
    /// Where the reference is read: URLs of a result, and one whose path looks like a host.
    const REPLAYED_AT: [&str; 3] =
        ["http://host/jobs/1/result", "http://host/", "http://host//other/a"];

    fn resolved(target: &str, reference: &str) -> Option<String> {
        let target = target.parse().unwrap();
        let value = resolve(reference.as_bytes(), &target)?;
        Some(value.to_str().unwrap().to_owned())
    }

    #[test]
    fn relative_references_stay_on_the_origin() {
        for (target, reference, expected) in [
            ("//evil.example/x", "next", "/.//evil.example/next"),
            ("//evil.example/x", "?page=2", "/.//evil.example/x?page=2"),
            ("//evil.example/x?q", "#top", "/.//evil.example/x?q#top"),
            ("//evil.example/x?q", "", "/.//evil.example/x?q"),
            ("//evil.example/x", ".", "/.//evil.example/"),
            ("//evil.example/x", "..", "/.//"),
            ("//evil.example/x", "../..", "/"),
            ("//evil.example", "next", "/.//next"),
            ("///evil.example/x", "next", "/.///evil.example/next"),
            ("/a/..//evil.example/x", "next", "/.//evil.example/next"),
            ("/.//evil.example/x", "next", "/.//evil.example/next"),
            ("/%2E//evil.example/x", "next", "/.//evil.example/next"),
            ("/a/%2e.//evil.example/x", "next", "/.//evil.example/next"),
            ("/\\evil.example/x", "next", "/.//evil.example/next"),
            ("/\\/evil.example/x", "next", "/.///evil.example/next"),
            ("/a/..\\\\evil.example/x", "next", "/.//evil.example/next"),
            ("/a/b", "..//evil.example/", "/.//evil.example/"),
            ("/a/b", "..\\\\evil.example/", "/.//evil.example/"),
            ("/a/b", ".\t./\t/evil.example/", "/.//evil.example/"),
            ("/a", ".//evil.example/", "/.//evil.example/"),
            ("/a/b", "\\.//evil.example/", "/.//evil.example/"),
            ("/a/b", "./http://evil.example/", "/a/http://evil.example/"),
            ("/http://evil.example/x", "next", "/http://evil.example/next"),
        ] {
            assert_eq!(
                resolved(target, reference).as_deref(),
                Some(expected),
                "{target} {reference}"
            );
        }
    }

    #[test]
    fn references_are_resolved_whatever_a_request_target_may_contain() {
        for (target, reference, expected) in [
            ("/a/b?f[]=1", "c", "/a/c"),
            ("/a/b?q=x|y", "?page=2", "/a/b?page=2"),
            ("/a/b?q=x|y{^`}\\%zz", "#top", "/a/b?q=x%7Cy%7B%5E%60%7D%5C%25zz#top"),
            ("/a/[b]/c", "d", "/a/%5Bb%5D/d"),
            ("/a/{\"b\"}/c", "d", "/a/%7B%22b%22%7D/d"),
            ("/a/%zz%/c", "d", "/a/%25zz%25/d"),
            ("/ä/c?ö", "", "/%C3%A4/c?%C3%B6"),
            ("/a", "b c", "/b%20c"),
            ("/a", "\u{e9}t\u{e9}#\u{e9}", "/%C3%A9t%C3%A9#%C3%A9"),
            ("/a/b", "1:2", "/a/1:2"),
            ("/a/c|/..", "d", "/a/d"),
            ("/a/b", " c\t", "/a/c"),
            ("/a/b", "\\c", "/c"),
            ("*", "a", "/a"),
        ] {
            assert_eq!(
                resolved(target, reference).as_deref(),
                Some(expected),
                "{target} {reference}"
            );
        }
        // A header's value need not be UTF-8. Each byte is escaped, as browsers do.
        let value = resolve(b"\xe9t\xe9", &PathAndQuery::from_static("/a/b")).unwrap();
        assert_eq!(value, "/a/%E9t%E9");
    }

    #[test]
    fn references_that_do_not_depend_on_the_request_stay_as_they_are() {
        for reference in [
            "/c",
            "/.//c",
            "//other/c",
            "/\\other/c",
            "/\t/other/c",
            "\\\\other/c",
            "\\/other/c",
            "\t//other/c",
            "https://other/",
            "h\tttps://other/",
            "mailto:a@b",
            "http:next",
        ] {
            assert_eq!(resolved("/a/b?q", reference), None, "{reference}");
        }
    }

    /// A URL with every byte escaped that RFC 3986 does not allow: what remains of the difference
    /// between the text that browsers send and the text that is written here.
    fn canonical(url: &Url) -> String {
        let bytes = url.as_str().as_bytes();
        let mut text = String::new();
        for (at, byte) in bytes.iter().enumerate() {
            let escape = bytes.get(at + 1..at + 3);
            let is_escape = escape.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
            match byte {
                b'%' if is_escape => text.push('%'),
                b'#' if text.contains('#') => text.push_str("%23"),
                b'%' | b'"' | b'\'' | b'<' | b'>' | b'[' | b'\\' | b']' | b'^' | b'`' | b'{'
                | b'|' | b'}' => write!(text, "%{byte:02X}").unwrap(),
                _ => text.push(char::from(*byte)),
            }
        }
        text
    }

    /// Text of parts that the two standards, or their readers, treat in a special way.
    fn hostile(parts: &'static [&'static str]) -> impl Strategy<Value = String> {
        proptest::collection::vec(select(parts), 0..8).prop_map(|parts| parts.concat())
    }

    // No segment is one letter and `|` or `:`: `url` takes it for a drive of Windows, which no `..`
    // removes, whatever the scheme is (url 2.5.8, src/parser.rs, `last_slash_can_be_removed`).
    const TARGET: &[&str] = &[
        "/",
        "/",
        "//",
        "\\",
        ".",
        "..",
        "/.",
        "/..",
        "%2e",
        "%2E",
        ".%2e",
        "...",
        "ab",
        "b.c",
        "evil.example",
        "@",
        ":",
        "http:",
        "%",
        "%zz",
        "%2f",
        "%5C",
        "%25",
        "[b]",
        "{",
        "}",
        "|",
        "\"",
        "^",
        "'",
        ";",
        "\u{e9}",
        "\u{7f}",
        "?",
        "f[]=1",
        "`",
        "&",
    ];
    const REFERENCE: &[&str] = &[
        "/",
        "/",
        "//",
        "\\",
        ".",
        "..",
        "./",
        "../",
        "%2e",
        "%2E",
        ".%2e",
        "...",
        "ab",
        "b.c",
        "evil.example",
        "@",
        ":",
        "http:",
        "1:",
        "%",
        "%zz",
        "%2f",
        "%5C",
        "%25",
        "[b]",
        "{",
        "}",
        "|",
        "\"",
        "^",
        "'",
        ";",
        "<",
        ">",
        "\u{e9}",
        "\u{7f}",
        "?",
        "f[]=1",
        "`",
        "&",
        "#",
        "\t",
        "\t",
        " ",
        "\u{80}",
    ];

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: 4_000,
            max_global_rejects: 40_000,
            ..ProptestConfig::default()
        })]

        /// Both standards read the result as the URL that a browser makes of the handler's own
        /// reference at the URL of the request.
        #[test]
        fn the_result_means_to_everybody_what_the_reference_meant_to_a_browser(
            target in hostile(TARGET),
            reference in hostile(REFERENCE),
        ) {
            let target = format!("/{target}");
            prop_assume!(target.parse::<PathAndQuery>().is_ok());
            let request = Url::parse(&format!("{ORIGIN}{target}")).unwrap();
            prop_assert_eq!(request.host_str(), Some("host"));
            let meant = request.join(&reference);
            let Some(text) = resolved(&target, &reference) else {
                // What stays as it is means the same to a browser everywhere on the origin, unless
                // it has a scheme: `http:a` is relative there, to documents of that scheme only.
                for at in REPLAYED_AT.iter().filter(|_| !has_scheme(&cleaned(reference.as_bytes()))) {
                    prop_assert_eq!(&meant, &Url::parse(at).unwrap().join(&reference));
                }
                return Ok(());
            };
            let meant = meant.unwrap();
            prop_assert_eq!(meant.origin(), request.origin());
            let by_rfc = UriReferenceStr::new(&text);
            prop_assert!(by_rfc.is_ok(), "not a reference: {:?}", text);
            for at in REPLAYED_AT {
                let by_browsers = Url::parse(at).unwrap().join(&text).unwrap();
                prop_assert_eq!(canonical(&by_browsers), canonical(&meant), "{} at {}", &text, at);
                let by_rfc = by_rfc.unwrap().resolve_against(UriAbsoluteStr::new(at).unwrap());
                let by_rfc = by_rfc.to_dedicated_string();
                prop_assert_eq!(by_rfc.authority_str(), Some("host"));
                let by_rfc = Url::parse(by_rfc.as_str()).unwrap();
                prop_assert_eq!(canonical(&by_rfc), canonical(&meant), "{} at {}", &text, at);
            }
        }

        /// Where RFC 3986 gives the original texts a meaning, and browsers do not change them, it is
        /// the one that is kept.
        #[test]
        fn the_result_is_what_rfc_3986_says(
            target in hostile(&["/", "/", "a", "b", "?", "a/?"]),
            reference in hostile(&["/", "a", "b", ".", "..", "./", "../", "?", "#"]),
        ) {
            let target = format!("/{target}");
            prop_assume!(!reference.starts_with('/') && UriReferenceStr::new(&reference).is_ok());
            let base = format!("{ORIGIN}{target}");
            let expected = UriReferenceStr::new(&reference)
                .unwrap()
                .resolve_against(UriAbsoluteStr::new(&base).unwrap())
                .to_dedicated_string();
            let text = resolved(&target, &reference).unwrap();
            let actual = UriReferenceStr::new(&text)
                .unwrap()
                .resolve_against(UriAbsoluteStr::new(REPLAYED_AT[0]).unwrap())
                .to_dedicated_string();
            prop_assert_eq!(actual.as_str(), expected.as_str());
        }
    }
}
