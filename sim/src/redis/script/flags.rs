//! What a script says of itself in its first line (Redis 7.0, src/eval.c, `evalExtractShebangFlags`).

/// The flags of a script.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// It has no such line, and is checked at each of its commands instead.
    pub(crate) is_plain: bool,
    pub(crate) no_writes: bool,
    pub(crate) allow_oom: bool,
}

impl Flags {
    /// Returns the flags, and the script without its first line but for the end of that line, so that
    /// lines are counted as before; or why the line is refused.
    pub(super) fn parse(script: &str) -> Result<(Self, &str), String> {
        if !script.starts_with("#!") {
            return Ok((Self { is_plain: true, ..Self::default() }, script));
        }
        let end = script.find('\n').ok_or("Invalid script shebang")?;
        let (line, rest) = script.split_at(end);
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            Some("#!lua") => {}
            engine => {
                let engine = engine.unwrap_or_default();
                return Err(format!("Unexpected engine in script shebang: {engine}"));
            }
        }
        let mut flags = Self::default();
        for word in words {
            let Some(names) = word.strip_prefix("flags=") else {
                return Err(format!("Unknown lua shebang option: {word}"));
            };
            for name in names.split(',') {
                match name {
                    "no-writes" => flags.no_writes = true,
                    "allow-oom" => flags.allow_oom = true,
                    "allow-stale" | "no-cluster" | "allow-cross-slot-keys" => {}
                    _ => return Err(format!("Unexpected flag in script shebang: {name}")),
                }
            }
        }
        Ok((flags, rest))
    }

    /// Whether the script is refused as a whole when memory is over its limit.
    pub(crate) fn needs_memory(self) -> bool {
        !self.is_plain && !self.allow_oom && !self.no_writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_says_what_a_script_does() {
        let parsed = |script| Flags::parse(script).map(|(flags, rest)| (flags, rest.to_owned()));
        let plain = Flags { is_plain: true, ..Flags::default() };
        assert_eq!(parsed("return 1"), Ok((plain, "return 1".into())));
        assert_eq!(parsed("#!lua\nreturn 1"), Ok((Flags::default(), "\nreturn 1".into())));
        let both = Flags { no_writes: true, allow_oom: true, ..Flags::default() };
        assert_eq!(parsed("#!lua flags=no-writes,allow-oom\n"), Ok((both, "\n".into())));
        for (script, error) in [
            ("#!lua", "Invalid script shebang"),
            ("#!js\n", "Unexpected engine in script shebang: #!js"),
            ("#!lua name=x\n", "Unknown lua shebang option: name=x"),
            ("#!lua flags=x\n", "Unexpected flag in script shebang: x"),
        ] {
            assert_eq!(parsed(script), Err(error.to_owned()));
        }
    }
}
