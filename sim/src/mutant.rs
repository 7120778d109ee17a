//! Mutants: one deliberate fault each, put into the text of a script as a server takes it in. The shipped
//! scripts stay as they are.
//!
//! ```text
//! What is wrong with it, in a line.
//! <<<<
//! text of the script as it is
//! ====
//! text in its place
//! >>>>
//! ```
//!
//! A mutant may have several such blocks. Where a first line `@SCRIPT` stands in a block before the text,
//! the text is only looked for in scripts that contain this word.

use std::sync::Arc;

use crate::Filter;

/// One substitution.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    only: Option<String>,
    old: String,
    new: String,
}

/// Reads a mutant, and makes the filter of it.
///
/// # Errors
/// What is wrong with the text.
pub fn read(text: &str) -> Result<Filter, String> {
    let blocks = blocks(text)?;
    Ok(Arc::new(move |script: &str| {
        let mut script = script.to_owned();
        for block in &blocks {
            if block.only.as_ref().is_none_or(|only| script.contains(only)) {
                script = script.replace(&block.old, &block.new);
            }
        }
        script
    }))
}

/// Whether a mutant changes one of these scripts in each of its blocks: the shipped text may have moved on.
///
/// # Errors
/// The text that is in none of them.
pub fn applies(text: &str, scripts: &[&str]) -> Result<(), String> {
    for block in blocks(text)? {
        let is_in = |script: &&&str| {
            block.only.as_ref().is_none_or(|only| script.contains(only))
                && script.contains(&block.old)
        };
        if scripts.iter().find(is_in).is_none() {
            return Err(format!("no script has this text:\n{}", block.old));
        }
    }
    Ok(())
}

fn blocks(text: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    for part in text.split("<<<<\n").skip(1) {
        let (old, rest) = part.split_once("\n====\n").ok_or("a block without ====")?;
        let (new, _) = rest.split_once(">>>>").ok_or("a block without >>>>")?;
        let (only, old) = match old.strip_prefix('@').and_then(|old| old.split_once('\n')) {
            Some((only, old)) => (Some(only.to_owned()), old),
            None => (None, old),
        };
        let new = new.strip_suffix('\n').unwrap_or(new).to_owned();
        blocks.push(Block { only, old: old.to_owned(), new });
    }
    if blocks.is_empty() { Err("no blocks".to_owned()) } else { Ok(blocks) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MUTANT: &str = "Nothing is checked.\n<<<<\n@take\nif x then\n====\nif true then\n>>>>\n<<<<\ngone\n====\n>>>>\n";

    #[test]
    fn a_block_changes_the_scripts_that_have_its_text() {
        let filter = read(MUTANT).unwrap();
        assert_eq!(filter("-- take\nif x then gone end"), "-- take\nif true then  end");
        assert_eq!(filter("if x then gone end"), "if x then  end");
        assert_eq!(applies(MUTANT, &["take: if x then", "gone"]), Ok(()));
        assert!(applies(MUTANT, &["if x then", "gone"]).is_err());
        assert!(read("no block").is_err());
    }
}
