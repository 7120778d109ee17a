//! What an error of Redis means to a store.

use redis::RedisError;
use tower_offload::{Error, ErrorKind};

/// A call that failed, in words that say what was to be done.
pub(crate) fn failed(what: &'static str) -> impl Fn(RedisError) -> Error {
    move |error| {
        // Redis refuses with this what would need more memory than `maxmemory` (redis, src/server.c,
        // `shared.oomerr`), before anything was done.
        let kind = match error.code() {
            Some("OOM") => ErrorKind::StoreFull,
            _ => ErrorKind::StoreUnavailable,
        };
        Error::new(kind, what).with_source(error)
    }
}

/// A task whose answer is awaited has gone with its runtime.
pub(crate) fn cut_off<E>(what: &'static str) -> impl Fn(E) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    move |error| Error::new(ErrorKind::StoreUnavailable, what).with_source(error)
}

/// What Redis answered is nothing that this crate has written.
pub(crate) fn corrupt(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

/// How errors of the code `ERR` begin that are of the server's state, which passes: slots that are moved or
/// not served (redis, src/script.c, `scriptVerifyClusterState`), and too many connections
/// (src/networking.c, `acceptCommonHandler`).
const OF_THE_SERVER: [&str; 2] = ["Script attempted to ", "max number of clients"];

/// Whether Redis has refused a call since a value in it is not what it should be: of another type, or one
/// that a script cannot work with (redis, src/script.c and src/eval.c: an error of the code in a script
/// is an `ERR`).
pub(crate) fn is_of_a_value(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|error| error.downcast_ref());
    source.is_some_and(|error: &RedisError| match error.code() {
        Some("WRONGTYPE") => true,
        Some("ERR") => {
            let detail = error.detail().unwrap_or_default();
            !OF_THE_SERVER.iter().any(|passing| detail.starts_with(passing))
        }
        _ => false,
    })
}

/// Whether the same call can only fail again, until somebody changes what is in Redis or what the user may
/// do there, or another release comes. A server that is away, full or taking over is none of these.
pub(crate) fn is_lasting(error: &Error) -> bool {
    use ErrorKind::{Config, Corrupt, NewerFormat};
    let source = std::error::Error::source(error).and_then(|error| error.downcast_ref());
    matches!(error.kind(), Config | Corrupt | NewerFormat)
        || is_of_a_value(error)
        || source.is_some_and(|error: &RedisError| error.code() == Some("NOPERM"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The error that is made of this line of a server.
    fn of(line: &str) -> Error {
        let line = format!("-{line}\r\n");
        let answer = redis::parse_redis_value(line.as_bytes());
        let error = answer.and_then(redis::Value::extract_error).unwrap_err();
        failed("cannot do it")(error)
    }

    #[test]
    fn what_passes_is_no_matter_of_a_value() {
        for line in [
            "ERR Script attempted to access a non local key in a cluster node script: \
             f1a2, on @user_script:12.",
            "ERR Script attempted to execute a command while the cluster is down script: f1a2, on \
             @user_script:12.",
            "ERR Script attempted to execute a write command while the cluster is down and readonly",
            "ERR max number of clients reached",
            "ERR max number of clients + cluster connections reached",
            "LOADING Redis is loading the dataset in memory",
            "CLUSTERDOWN The cluster is down",
        ] {
            assert!(!is_of_a_value(&of(line)) && !is_lasting(&of(line)), "{line}");
        }
        for line in [
            "WRONGTYPE Operation against a key holding the wrong kind of value",
            "ERR hash value is not an integer script: f1a2, on @user_script:12.",
            "ERR user_script:31: a record that cannot be read script: f1a2, on @user_script:31.",
        ] {
            assert!(is_of_a_value(&of(line)) && is_lasting(&of(line)), "{line}");
        }
        let denied = of("NOPERM User x has no permissions to run the 'evalsha' command");
        assert!(!is_of_a_value(&denied) && is_lasting(&denied));
    }
}
