//! The protocol: requests are parsed as their bytes come, replies are written for RESP2 or RESP3.
//!
//! Limits and errors are those of Redis 7.0 (src/networking.c, `processMultibulkBuffer` and
//! `processInlineBuffer`).

use std::sync::Arc;

use crate::redis::number::{g17, integer};

/// A string of bytes: an argument, a key, or a part of a value. Cheap to clone.
pub(crate) type Text = Arc<[u8]>;

/// The longest line of a request.
const LONGEST_LINE: usize = 64 * 1024;

/// The longest string of a request (`proto-max-bulk-len`).
const LONGEST_BULK: i64 = 512 << 20;

/// What a connection has sent and the server has not yet run.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    bytes: Vec<u8>,
    /// So much of `bytes` is parsed.
    at: usize,
    arguments: Vec<Text>,
    /// How many more arguments the request has that is being parsed.
    missing: usize,
    /// The length of the argument that comes next, if that is known.
    bulk: Option<usize>,
}

/// Why a connection is closed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ProtocolError(pub(crate) String);

fn wrong<T>(what: impl Into<String>) -> Result<T, ProtocolError> {
    Err(ProtocolError(what.into()))
}

impl Parser {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.bytes.drain(..self.at);
        self.at = 0;
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next request that is complete. It may be empty: Redis ignores such a one.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<Text>>, ProtocolError> {
        if self.missing == 0 {
            match self.bytes.get(self.at) {
                None => return Ok(None),
                Some(b'*') => {}
                Some(_) => return self.inline(),
            }
            let Some(line) = self.line("too big mbulk count string")? else { return Ok(None) };
            match integer(&line[1..]) {
                Some(count) if count <= i64::from(i32::MAX) => {
                    self.missing = usize::try_from(count).unwrap_or(0);
                }
                _ => return wrong("invalid multibulk length"),
            }
        }
        while self.missing > 0 {
            if !self.argument()? {
                return Ok(None);
            }
        }
        Ok(Some(std::mem::take(&mut self.arguments)))
    }

    /// Parses one argument; returns `false` where it is not complete.
    fn argument(&mut self) -> Result<bool, ProtocolError> {
        let len = match self.bulk {
            Some(len) => len,
            None => {
                let Some(line) = self.line("too big bulk count string")? else { return Ok(false) };
                let first = line.first().copied().unwrap_or(b'\r');
                if first != b'$' {
                    return wrong(format!("expected '$', got '{}'", char::from(first)));
                }
                match integer(&line[1..]) {
                    Some(len @ 0..=LONGEST_BULK) => len as usize,
                    _ => return wrong("invalid bulk length"),
                }
            }
        };
        self.bulk = Some(len);
        let left = &self.bytes[self.at..];
        if left.len() < len + 2 {
            return Ok(false);
        }
        self.arguments.push(left[..len].into());
        self.at += len + 2;
        self.missing -= 1;
        self.bulk = None;
        Ok(true)
    }

    /// Returns the next line without its end, which is `\r` and any byte, if it is complete.
    fn line(&mut self, too_long: &str) -> Result<Option<Vec<u8>>, ProtocolError> {
        let left = &self.bytes[self.at..];
        match left.iter().position(|byte| *byte == b'\r') {
            Some(end) if end + 2 <= left.len() => {
                let line = left[..end].to_vec();
                self.at += end + 2;
                Ok(Some(line))
            }
            Some(_) => Ok(None),
            None if left.len() > LONGEST_LINE => wrong(too_long),
            None => Ok(None),
        }
    }

    /// Words without quotes: as a person types them.
    fn inline(&mut self) -> Result<Option<Vec<Text>>, ProtocolError> {
        let left = &self.bytes[self.at..];
        let Some(end) = left.iter().position(|byte| *byte == b'\n') else {
            return match left.len() > LONGEST_LINE {
                true => wrong("too big inline request"),
                false => Ok(None),
            };
        };
        let line = &left[..end];
        if line.contains(&b'"') || line.contains(&b'\'') {
            return wrong("unbalanced quotes in request");
        }
        let words = line.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        let words = words.map(Text::from).collect();
        self.at += end + 1;
        Ok(Some(words))
    }
}

/// A reply, or a message that the server sends by itself.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Status(String),
    /// With its code: `ERR syntax error`.
    Error(String),
    Integer(i64),
    Bulk(Text),
    Null,
    NullArray,
    Double(f64),
    Array(Vec<Reply>),
    Set(Vec<Reply>),
    /// Keys and values in turn.
    Map(Vec<Reply>),
    Push(Vec<Reply>),
    /// Members with their scores.
    Scored(Vec<(Text, f64)>),
    /// A text in a format, such as that of `INFO`.
    Verbatim(String),
}

impl Reply {
    pub(crate) fn ok() -> Self {
        Self::Status("OK".to_owned())
    }

    pub(crate) fn error(message: impl Into<String>) -> Self {
        Self::Error(message.into())
    }

    pub(crate) fn bulk(bytes: impl AsRef<[u8]>) -> Self {
        Self::Bulk(bytes.as_ref().into())
    }

    pub(crate) fn len(len: usize) -> Self {
        Self::Integer(len as i64)
    }

    pub(crate) fn or_null(text: Option<&Text>) -> Self {
        text.map_or(Self::Null, |text| Self::Bulk(Arc::clone(text)))
    }

    /// Appends the reply's bytes.
    pub(crate) fn write(&self, is_resp3: bool, out: &mut Vec<u8>) {
        let mut line = |text: &str| {
            out.extend_from_slice(text.as_bytes());
            out.extend_from_slice(b"\r\n");
        };
        match self {
            Self::Status(text) => line(&format!("+{}", on_one_line(text))),
            Self::Error(text) => line(&format!("-{}", on_one_line(text))),
            Self::Integer(number) => line(&format!(":{number}")),
            Self::Null | Self::NullArray if is_resp3 => line("_"),
            Self::Null => line("$-1"),
            Self::NullArray => line("*-1"),
            Self::Double(number) if is_resp3 => line(&format!(",{}", g17(*number))),
            Self::Double(number) => bulk(g17(*number).as_bytes(), out),
            Self::Bulk(bytes) => bulk(bytes, out),
            Self::Verbatim(text) if is_resp3 => {
                line(&format!("={}", text.len() + 4));
                line(&format!("txt:{text}"));
            }
            Self::Verbatim(text) => bulk(text.as_bytes(), out),
            Self::Array(all) => several(b'*', all.len(), all, is_resp3, out),
            Self::Set(all) => {
                several(if is_resp3 { b'~' } else { b'*' }, all.len(), all, is_resp3, out);
            }
            Self::Map(all) if is_resp3 => several(b'%', all.len() / 2, all, is_resp3, out),
            Self::Map(all) => several(b'*', all.len(), all, is_resp3, out),
            Self::Scored(all) => {
                // Pairs in RESP3; in RESP2 members and scores in turn.
                let len = if is_resp3 { all.len() } else { all.len() * 2 };
                line(&format!("*{len}"));
                for (member, score) in all {
                    let pair = [Self::Bulk(Arc::clone(member)), Self::Double(*score)];
                    match is_resp3 {
                        true => several(b'*', 2, &pair, true, out),
                        false => pair.iter().for_each(|reply| reply.write(false, out)),
                    }
                }
            }
            Self::Push(all) => {
                several(if is_resp3 { b'>' } else { b'*' }, all.len(), all, is_resp3, out);
            }
        }
    }
}

/// An end of line within would end the reply.
fn on_one_line(text: &str) -> String {
    text.trim_end_matches(['\r', '\n']).replace(['\r', '\n'], " ")
}

fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn several(kind: u8, len: usize, all: &[Reply], is_resp3: bool, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(format!("{len}\r\n").as_bytes());
    all.iter().for_each(|reply| reply.write(is_resp3, out));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(parser: &mut Parser) -> Result<Vec<Vec<Text>>, ProtocolError> {
        let mut found = Vec::new();
        while let Some(request) = parser.next()? {
            found.push(request);
        }
        Ok(found)
    }

    fn parsed(bytes: &[u8]) -> Result<Vec<Vec<Text>>, ProtocolError> {
        let mut parser = Parser::default();
        parser.push(bytes);
        all(&mut parser)
    }

    fn texts(words: &[&str]) -> Vec<Text> {
        words.iter().map(|word| word.as_bytes().into()).collect()
    }

    #[test]
    fn pipelined_requests_are_parsed_in_order() {
        let found =
            parsed(b"*2\r\n$3\r\nGET\r\n$1\r\na\r\n*0\r\nPING x\r\n*1\r\n$0\r\n\r\n").unwrap();
        assert_eq!(found, [texts(&["GET", "a"]), vec![], texts(&["PING", "x"]), texts(&[""])]);
    }

    #[test]
    fn requests_are_parsed_alike_however_they_are_cut() {
        let bytes = b"*3\r\n$3\r\nSET\r\n$2\r\n\r\n\r\n$0\r\n\r\n*1\r\n$4\r\nPING\r\n";
        let whole = parsed(bytes).unwrap();
        for len in 1..bytes.len() {
            let (mut parser, mut found) = (Parser::default(), Vec::new());
            for part in bytes.chunks(len) {
                parser.push(part);
                found.extend(all(&mut parser).unwrap());
            }
            assert_eq!(found, whole, "in pieces of {len}");
        }
    }

    #[test]
    fn malformed_requests_are_named() {
        for (bytes, error) in [
            (&b"*x\r\n"[..], "invalid multibulk length"),
            (b"*3000000000\r\n", "invalid multibulk length"),
            (b"*1\r\n:1\r\n", "expected '$', got ':'"),
            (b"*1\r\n$-1\r\n", "invalid bulk length"),
            (b"*1\r\n$01\r\n", "invalid bulk length"),
            (b"\"a\n", "unbalanced quotes in request"),
        ] {
            assert_eq!(parsed(bytes), wrong(error));
        }
    }

    #[test]
    fn replies_have_the_form_of_their_protocol() {
        let written = |reply: &Reply, is_resp3| {
            let mut out = Vec::new();
            reply.write(is_resp3, &mut out);
            String::from_utf8(out).unwrap()
        };
        let one = || vec![Reply::bulk("a"), Reply::Double(1.5)];
        for (reply, second, third) in [
            (Reply::Null, "$-1\r\n", "_\r\n"),
            (Reply::NullArray, "*-1\r\n", "_\r\n"),
            (Reply::Map(one()), "*2\r\n$1\r\na\r\n$3\r\n1.5\r\n", "%1\r\n$1\r\na\r\n,1.5\r\n"),
            (Reply::Set(one()), "*2\r\n$1\r\na\r\n$3\r\n1.5\r\n", "~2\r\n$1\r\na\r\n,1.5\r\n"),
            (Reply::Push(one()), "*2\r\n$1\r\na\r\n$3\r\n1.5\r\n", ">2\r\n$1\r\na\r\n,1.5\r\n"),
            (Reply::Verbatim("x".into()), "$1\r\nx\r\n", "=5\r\ntxt:x\r\n"),
            (Reply::error("ERR a\r\nb"), "-ERR a  b\r\n", "-ERR a  b\r\n"),
        ] {
            assert_eq!(
                (written(&reply, false).as_str(), written(&reply, true).as_str()),
                (second, third)
            );
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(bytes: Vec<u8>, cut in 1usize..8) {
            let mut parser = Parser::default();
            for part in bytes.chunks(cut) {
                parser.push(part);
                if all(&mut parser).is_err() {
                    break;
                }
            }
        }
    }
}
