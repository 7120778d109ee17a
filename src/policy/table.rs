//! The table of policies for one layer around a whole router.

use std::fmt;

use http::{Method, Request};

use super::Policy;
use crate::error::Error;

/// Policies by method and path, for a layer *around* a router, where it costs far less than inside.
///
/// ```
/// use std::time::Duration;
/// use tower_offload::{Policies, Policy};
///
/// let policies = Policies::otherwise(Policy::never())
///     .at("POST /reports", Policy::after(Duration::from_millis(250)))
///     .at("/videos/{id}", Policy::always());
/// # let _ = policies;
/// ```
///
/// A single [`Policy`] converts into a table that has it for everything.
#[derive(Clone)]
pub struct Policies {
    /// The first is the one for whatever no pattern matches.
    policies: Vec<Policy>,
    /// Which of the patterns a path matches; `None` while there are none.
    paths: Option<matchit::Router<usize>>,
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone)]
struct Pattern {
    path: String,
    /// For a method, or for all that have no row of their own, an index into the policies.
    rows: Vec<(Option<Method>, usize)>,
}

impl Policies {
    /// The table's policy for requests that no pattern matches; the place to begin.
    pub fn otherwise(policy: Policy) -> Self {
        let policies = vec![policy.or_named("default")];
        Self { policies, paths: None, patterns: Vec::new() }
    }

    /// Adds a policy for a pattern: a path as axum writes it (`/videos/{id}`, `/files/{*rest}`),
    /// with a method in front (`POST /reports`) or without one, for every method that has no row of
    /// its own for this path.
    ///
    /// # Panics
    /// If the pattern is wrong, stands twice, or is in conflict with another, as axum's `route`
    /// does. [`try_at`](Self::try_at) returns an error instead.
    #[must_use]
    pub fn at(self, pattern: &str, policy: Policy) -> Self {
        self.try_at(pattern, policy).unwrap_or_else(|error| panic!("tower-offload: {error}"))
    }

    /// As [`at`](Self::at), for patterns that are not written in the code.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](crate::ErrorKind::Config) if the pattern is wrong, stands twice, or is
    /// in conflict with another.
    pub fn try_at(mut self, pattern: &str, policy: Policy) -> Result<Self, Error> {
        let (method, path) = parse(pattern)?;
        let row = (method, self.policies.len());
        match self.patterns.iter_mut().find(|known| known.path == path) {
            Some(known) if known.rows.iter().any(|(method, _)| *method == row.0) => {
                return Err(wrong(pattern, &"it stands twice"));
            }
            Some(known) => known.rows.push(row),
            None => {
                let paths = self.paths.get_or_insert_default();
                paths.insert(path, self.patterns.len()).map_err(|error| wrong(pattern, &error))?;
                self.patterns.push(Pattern { path: path.to_owned(), rows: vec![row] });
            }
        }
        self.policies.push(policy.or_named(pattern));
        Ok(self)
    }

    /// The policy for this request, by its index.
    #[inline]
    pub(crate) fn find<B>(&self, request: &Request<B>) -> usize {
        match &self.paths {
            None => 0,
            Some(paths) => self.look_up(paths, request.method(), request.uri().path()),
        }
    }

    fn look_up(&self, paths: &matchit::Router<usize>, method: &Method, path: &str) -> usize {
        let Ok(matched) = paths.at(path) else { return 0 };
        let rows = &self.patterns[*matched.value].rows;
        let row =
            |wanted: Option<&Method>| rows.iter().find(|(method, _)| method.as_ref() == wanted);
        row(Some(method)).or_else(|| row(None)).map_or(0, |(_, policy)| *policy)
    }

    /// Whether it has patterns, and so stands around more than one route.
    pub(crate) fn is_table(&self) -> bool {
        self.paths.is_some()
    }

    /// All policies, in the order of their indices.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Policy> {
        self.policies.iter()
    }
}

fn parse(pattern: &str) -> Result<(Option<Method>, &str), Error> {
    let (method, path) = match pattern.split_once(' ') {
        None => (None, pattern),
        Some((method, path)) => (Some(method), path.trim_start()),
    };
    if !path.starts_with('/') {
        return Err(wrong(pattern, &"a path begins with a slash"));
    }
    // axum refuses the first two as well; a request's path never holds the others.
    if path.split('/').any(|segment| segment.starts_with([':', '*'])) {
        return Err(wrong(pattern, &"parameters are written {name}, and a rest {*name}"));
    }
    if path.contains(['?', '#']) {
        return Err(wrong(pattern, &"a path has neither query nor fragment"));
    }
    let Some(method) = method else {
        return Ok((None, path));
    };
    // Methods are case-sensitive (RFC 9110, section 9.1); `post` would match nothing.
    let method =
        method.parse().ok().filter(|_| !method.bytes().any(|byte| byte.is_ascii_lowercase()));
    match method {
        Some(method) => Ok((Some(method), path)),
        None => Err(wrong(pattern, &"its method is none; they are written in capitals")),
    }
}

fn wrong(pattern: &str, why: &dyn fmt::Display) -> Error {
    Error::config(format!("pattern {pattern:?}: {why}"))
}

impl From<Policy> for Policies {
    fn from(policy: Policy) -> Self {
        Self::otherwise(policy)
    }
}

impl fmt::Debug for Policies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policies")
            .field("policies", &self.policies)
            .field("patterns", &self.patterns)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &'static str) -> Policy {
        Policy::always().name(name)
    }

    fn table() -> Policies {
        Policies::otherwise(named("otherwise"))
            .at("POST /reports", named("post"))
            .at("/reports", named("any"))
            .at("GET /reports/{id}", named("get"))
            .at("PUT /reports/{id}", named("put"))
            .at("/files/{*rest}", named("files"))
            .at("/reports/latest", named("latest"))
    }

    #[test]
    fn finds_by_method_and_path() {
        let table = table();
        for (method, path, name) in [
            ("POST", "/reports", "post"),
            ("GET", "/reports", "any"),
            ("PUT", "/reports/7", "put"),
            ("GET", "/reports/7?x=y", "get"),
            ("DELETE", "/reports/7", "otherwise"),
            ("DELETE", "/reports/latest", "latest"),
            ("GET", "/files/a/b", "files"),
            ("GET", "/reports/", "otherwise"),
            ("GET", "/", "otherwise"),
            ("GET", "http://host/reports/7", "get"),
        ] {
            let request = Request::builder().method(method).uri(path).body(()).unwrap();
            assert_eq!(
                table.policies[table.find(&request)].label().map(|label| &**label),
                Some(name),
                "{method} {path}"
            );
        }
    }

    #[test]
    fn wrong_patterns_say_why() {
        for (pattern, why) in [
            ("reports", "slash"),
            ("POST reports", "slash"),
            ("/x/:id", "{name}"),
            ("/x/*rest", "{*name}"),
            ("/x?y=1", "query"),
            ("/x#a", "fragment"),
            ("post /x", "capitals"),
            ("P@ST /x", "capitals"),
            ("/x/{", "parameter"),
            ("/x/{*rest}/y", "atch-all"),
            ("POST /reports", "twice"),
            ("/reports", "twice"),
            ("PUT /reports/{id}", "twice"),
            ("/reports/{name}", "conflict"),
            ("", "slash"),
        ] {
            let error = table().try_at(pattern, Policy::never()).unwrap_err();
            assert!(
                error.to_string().to_lowercase().contains(&why.to_lowercase()),
                "{pattern}: {error}"
            );
        }
    }

    #[test]
    #[should_panic(expected = "it stands twice")]
    fn at_panics_as_axum_does() {
        let _ = table().at("POST /reports", Policy::never());
    }
}
