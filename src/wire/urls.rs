//! The URLs of a job: how they are made, and how a request's path is read back.

use http::Method;

use crate::{error::Error, job::JobId};

/// Which URL of a job the `Location` of a 202 names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LocationStyle {
    /// `{path}/{id}`: 202 while the job runs, then 303 to the result. The default, since a client
    /// that knows only "poll until it is not 202, follow redirects" gets the outcome.
    #[default]
    Job,
    /// `{path}/{id}/result`: 202 while the job runs, then the outcome itself. For clients that poll
    /// one URL, in the manner of RESTEasy and FHIR.
    Result,
    /// `{path}/{id}/status`: always 200 with the status document.
    Status,
}

/// Where status URLs live: the path as this app sees it, and the base that clients are told.
#[derive(Debug, Clone)]
pub(crate) struct Urls {
    path: Box<str>,
    /// Where the slashes of the path are: it is looked at for every request that is watched.
    ends: Box<[usize]>,
    base: Box<str>,
    style: LocationStyle,
    operation_location: bool,
}

/// What a path below the status path asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    /// `{id}`
    Job,
    /// `{id}/status`
    Status,
    /// `{id}/result`
    Result,
}

impl Urls {
    /// # Errors
    /// If the path or the base cannot work, with a message that says why.
    pub(crate) fn new(
        path: &str,
        base: Option<&str>,
        style: LocationStyle,
        operation_location: bool,
    ) -> Result<Self, Error> {
        check("status path", path, check_path)?;
        let base = base.unwrap_or(path);
        check("public base", base, check_base)?;
        let ends = path.match_indices('/').map(|(at, _)| at).collect();
        Ok(Self { path: path.into(), ends, base: base.into(), style, operation_location })
    }

    /// The status path, as this app sees it.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// What the URL of each job begins with; its id follows after a slash. Nothing in it needs to be
    /// escaped in JSON.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// What `Location` of a 202 names.
    pub(crate) fn style(&self) -> LocationStyle {
        self.style
    }

    /// Whether `Operation-Location` and `resourceLocation` are told, for Azure's pollers.
    pub(crate) fn operation_location(&self) -> bool {
        self.operation_location
    }

    /// The rest of `path` below the status path, without the slash; `None` for any other path.
    pub(crate) fn below<'a>(&self, path: &'a str) -> Option<&'a str> {
        path.strip_prefix(&*self.path)?.strip_prefix('/')
    }

    /// Whether this is a request for the status service. `path` is what the layer sees, `whole` the path
    /// before routers stripped prefixes of it, where that is known.
    ///
    /// Where it is not known, a path that only ends like a status path counts with those methods alone
    /// that the service answers: what is taken for a poll passes by all that a policy promises.
    pub(crate) fn is_status_request(
        &self,
        method: &Method,
        path: &str,
        whole: Option<&str>,
    ) -> bool {
        let is_answered =
            || matches!(*method, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS);
        match whole {
            Some(whole) => self.is_at_or_below(whole),
            None => {
                self.is_at_or_below(path) || (is_answered() && self.is_end_of_status_path(path))
            }
        }
    }

    /// Whether this may be the path of a request for the status service: it is the status path or below
    /// it, or, where a layer inside nested routers sees only the end of it (axum strips a prefix for
    /// each `nest`), it begins with the last segments of the status path, with the id of a job behind
    /// them.
    pub(crate) fn is_status_path(&self, path: &str) -> bool {
        self.is_at_or_below(path) || self.is_end_of_status_path(path)
    }

    /// Whether this is the status path, or below it, without any prefix stripped.
    pub(crate) fn is_at_or_below(&self, path: &str) -> bool {
        path == &*self.path || self.below(path).is_some()
    }

    /// Whether the path names a job below the last segments of the status path. It is asked for each
    /// request that is watched, and looks at two bytes of most paths.
    #[inline]
    fn is_end_of_status_path(&self, path: &str) -> bool {
        ends_like_a_job(path) && job_below(path, self.ends()).is_some()
    }

    /// Reads the path of a request to the status service. A plain hyper service sees all of it, a
    /// router that nests the service has stripped the status path, or the first segments of it.
    pub(crate) fn resource(&self, path: &str) -> Option<(JobId, Resource)> {
        job_below(path, self.ends().chain([""]))
    }

    /// The status path, and what is left of it after its first segment, its first two, and so on.
    fn ends(&self) -> impl Iterator<Item = &str> {
        self.ends.iter().map(|at| &self.path[*at..])
    }
}

/// Whether a slash stands where it does in the URL of a job, counted from the end: before 32 digits, or
/// before those and `/status` or `/result`.
#[inline]
fn ends_like_a_job(path: &str) -> bool {
    const ID: usize = "/00000000000000000000000000000000".len();
    const MORE: usize = ID + "/status".len();
    let has_slash = |from_end: usize| {
        path.len().checked_sub(from_end).is_some_and(|at| path.as_bytes()[at] == b'/')
    };
    has_slash(ID) || has_slash(MORE)
}

/// The job that `path` names below one of these.
fn job_below<'a>(
    path: &str,
    mut above: impl Iterator<Item = &'a str>,
) -> Option<(JobId, Resource)> {
    above.find_map(|above| resource(path.strip_prefix(above)?.strip_prefix('/')?))
}

/// Reads `{id}`, `{id}/status` and `{id}/result`.
fn resource(rest: &str) -> Option<(JobId, Resource)> {
    let (id, resource) = match rest.split_once('/') {
        None => (rest, Resource::Job),
        Some((id, "status")) => (id, Resource::Status),
        Some((id, "result")) => (id, Resource::Result),
        Some(_) => return None,
    };
    Some((id.parse().ok()?, resource))
}

fn check(what: &str, text: &str, check: fn(&str) -> Result<(), &'static str>) -> Result<(), Error> {
    check(text).map_err(|problem| Error::config(format!("{what} {text:?} {problem}")))
}

/// Whether this can be a status path: `/jobs`, `/api/v1/jobs`. An error says what it must be.
fn check_path(path: &str) -> Result<(), &'static str> {
    Err(if !path.starts_with('/') {
        "must begin with a slash"
    } else if path.ends_with('/') {
        "must not end with a slash, nor be the root: the ids of jobs stand below it"
    } else if path.contains(['{', '}', '*', ':']) {
        "must be a plain path, without a pattern"
    } else if path.contains("//") || !path.bytes().all(is_path_byte) || !has_whole_escapes(path) {
        "must be a path as it stands in a URL (RFC 3986, section 3.3), without query or fragment"
    } else if path.split('/').any(is_dot_segment) {
        "must be a path without dot segments, which clients take out (RFC 3986, section 5.2.4)"
    } else {
        return Ok(());
    })
}

/// Whether this can be a public base: a path, or an absolute http(s) URL.
fn check_base(base: &str) -> Result<(), &'static str> {
    if base.starts_with('/') {
        return check_path(base);
    }
    let rest = base.strip_prefix("https://").or_else(|| base.strip_prefix("http://"));
    match rest.map(|rest| rest.split_at(rest.find('/').unwrap_or(rest.len()))) {
        None => Err("must be a path, or a URL that begins with http:// or https://"),
        Some((authority, _)) if !is_authority(authority) => Err(
            "has no valid host and port, or a user name, which no URL in a response may have (RFC 9110, section 4.2.4)",
        ),
        Some((_, "")) => Ok(()),
        Some((_, path)) => check_path(path),
    }
}

/// Whether this is a host, with or without a port.
fn is_authority(text: &str) -> bool {
    let Ok(authority) = text.parse::<http::uri::Authority>() else { return false };
    // A user name would stand before the host.
    let port = match text.strip_prefix(authority.host()) {
        Some("") => return true,
        Some(rest) => rest.strip_prefix(':'),
        None => None,
    };
    let is_port = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    !authority.host().is_empty()
        && port.is_some_and(|port| is_port(port) && port.parse::<u16>().is_ok())
}

/// Whether browsers take this segment for a dot segment: there `%2e` is a dot too
/// (<https://url.spec.whatwg.org>, "single-dot URL path segment").
fn is_dot_segment(segment: &str) -> bool {
    matches!(&*segment.to_ascii_lowercase().replace("%2e", "."), "." | "..")
}

/// Whether two hexadecimal digits follow each percent sign (RFC 3986, section 2.1).
fn has_whole_escapes(path: &str) -> bool {
    let mut escapes = path.split('%').skip(1).map(str::as_bytes);
    escapes.all(|rest| matches!(rest, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit()))
}

/// `pchar` or a slash (RFC 3986, section 3.3); patterns are refused before.
fn is_path_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"/-._~%!$&'()+,;=@".contains(&byte)
}

#[cfg(test)]
mod tests {
    use iri_string::types::{UriAbsoluteStr, UriReferenceStr};
    use proptest::{prelude::*, sample::select};

    use super::*;

    fn urls(path: &str) -> Urls {
        Urls::new(path, None, LocationStyle::Job, false).unwrap()
    }

    #[test]
    fn paths_that_cannot_work_say_why() {
        for (path, why) in [
            ("jobs", "begin with a slash"),
            ("", "begin with a slash"),
            ("/", "end with a slash"),
            ("/jobs/", "end with a slash"),
            ("/{id}/jobs", "pattern"),
            ("/jobs/*rest", "pattern"),
            ("/:id", "pattern"),
            ("/jobs?x", "query"),
            ("/jobs#x", "query"),
            ("/a//b", "3986"),
            ("/jöbs", "3986"),
            ("/a b", "3986"),
            ("/a\\b", "3986"),
            ("/a%", "3986"),
            ("/a%zz", "3986"),
            ("/a\r\nset-cookie", "3986"),
            ("/a/../b", "dot segments"),
            ("/./a", "dot segments"),
            ("/%2e/a", "dot segments"),
            ("/a/.%2E", "dot segments"),
        ] {
            let error = Urls::new(path, None, LocationStyle::Job, false).unwrap_err();
            let error = error.to_string();
            assert!(error.starts_with("status path") && error.contains(why), "{path}: {error}");
        }
        for path in ["/jobs", "/api/v1/jobs", "/a-b_c~d.e", "/...", "/.well-known/jobs"] {
            assert!(check_path(path).is_ok(), "{path}");
        }
    }

    #[test]
    fn bases_that_cannot_work_say_why() {
        for base in [
            "jobs",
            "ftp://h/jobs",
            "https://",
            "https:///jobs",
            "https://h/jobs/",
            "https://h/j?x",
            "//h/jobs",
            "https://h/x/..",
            "https://h/x/%2e%2E/jobs",
            "https://h:b/jobs",
            "https://h:99999/jobs",
            "https://h:+80/jobs",
            "https://h:/jobs",
            "https://:80/jobs",
            "https://user:secret@h/jobs",
            "https://@h/jobs",
        ] {
            let error = Urls::new("/jobs", Some(base), LocationStyle::Job, false).unwrap_err();
            assert!(error.to_string().starts_with("public base"), "{base}: {error}");
        }
        for base in [
            "/x/jobs",
            "https://pub.example/x/jobs",
            "http://[::1]:3000/jobs",
            "http://[::1]/jobs",
            "http://h:65535",
            "https://jobs.example",
        ] {
            let urls = Urls::new("/jobs", Some(base), LocationStyle::Job, false).unwrap();
            assert_eq!(urls.base(), base);
        }
    }

    proptest! {
        /// What a client makes of a path that is accepted is that path, on the origin where it was
        /// read, for those that follow RFC 3986 and for browsers.
        #[test]
        fn an_accepted_path_means_the_same_to_everybody(
            parts in proptest::collection::vec(
                select(&["/", "//", "\\", ".", "..", "%2e", "%2E", "%", "%zz", "%2f", "a", "'", "@",
                    "[", "|", "^", "`", "\t", " ", "é", ";"][..]),
                0..5,
            ),
        ) {
            let path = format!("/{}", parts.concat());
            if check_path(&path).is_ok() {
                let expected = format!("http://host{path}/1");
                let text = format!("{path}/1");
                let at = "http://host/x/y";
                let by_browsers = url::Url::parse(at).unwrap().join(&text).unwrap();
                prop_assert_eq!(by_browsers.as_str(), &expected);
                let strict = UriReferenceStr::new(&text).unwrap();
                let by_rfc = strict.resolve_against(UriAbsoluteStr::new(at).unwrap());
                prop_assert_eq!(by_rfc.to_string(), expected);
            }
        }
    }

    #[test]
    fn no_base_needs_to_be_escaped_in_json() {
        for byte in 0..=0x7f_u8 {
            let byte = char::from(byte);
            for base in [format!("/a{byte}b"), format!("http://a{byte}b/c")] {
                if check_base(&base).is_ok() {
                    assert_eq!(serde_json::to_string(&base).unwrap(), format!("\"{base}\""));
                }
            }
        }
    }

    #[test]
    fn reads_what_it_writes_however_much_was_stripped() {
        let urls = urls("/api/jobs");
        let id = JobId::random().unwrap();
        for (suffix, resource) in
            [("", Resource::Job), ("/status", Resource::Status), ("/result", Resource::Result)]
        {
            for prefix in ["", "/jobs", "/api/jobs"] {
                let path = format!("{prefix}/{id}{suffix}");
                assert_eq!(urls.resource(&path), Some((id, resource)), "{path}");
            }
        }
        for path in ["/", "", "/api/jobs", "/api/jobs/", "/api/jobsx/1", "/x/status/y"] {
            assert_eq!(urls.resource(path), None, "{path}");
        }
        assert_eq!(urls.resource(&format!("/{id}/result/")), None);
        assert_eq!(urls.resource(&format!("/{id}/other")), None);
    }

    #[test]
    fn knows_a_status_path_inside_nested_routers() {
        let urls = urls("/api/jobs");
        let id = JobId::random().unwrap();
        for path in [
            format!("/api/jobs/{id}"),
            format!("/jobs/{id}/status"),
            "/api/jobs/nonsense".into(),
            "/api/jobs".into(),
        ] {
            assert!(urls.is_status_path(&path), "{path}");
        }
        for path in ["/jobs/7", "/reports", "/api/jobsx", "/api", "/"] {
            assert!(!urls.is_status_path(path), "{path}");
        }
    }

    #[test]
    fn path_that_ends_like_a_status_path_counts_with_methods_of_the_service_only() {
        let urls = urls("/api/jobs");
        let id = JobId::random().unwrap();
        let (whole, end) = (format!("/api/jobs/{id}"), format!("/jobs/{id}"));
        for (method, is_answered) in [
            ("GET", true),
            ("HEAD", true),
            ("DELETE", true),
            ("OPTIONS", true),
            ("POST", false),
            ("PUT", false),
            ("PATCH", false),
            ("QUERY", false),
            ("get", false),
        ] {
            let method = method.parse().unwrap();
            assert!(urls.is_status_request(&method, &whole, None), "{method}");
            assert!(urls.is_status_request(&method, "/api/jobs", None), "{method}");
            assert_eq!(urls.is_status_request(&method, &end, None), is_answered, "{method}");
            // Where the whole path is known, it alone counts.
            assert!(urls.is_status_request(&method, &end, Some(&whole)), "{method}");
            assert!(!urls.is_status_request(&method, &end, Some(&end)), "{method}");
            assert!(!urls.is_status_request(&method, &whole, Some("/x/api/jobs/1")), "{method}");
        }
    }
}
