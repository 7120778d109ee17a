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

/// What Redis answered is nothing that this crate has written.
pub(crate) fn corrupt(what: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, what)
}

/// Whether Redis has refused a call since a value in it is not what it should be: of another type, or one
/// that a script cannot work with (redis, src/script.c and src/eval.c: an error of the code in a script
/// is an `ERR`).
pub(crate) fn is_of_a_value(error: &Error) -> bool {
    let source = std::error::Error::source(error).and_then(|error| error.downcast_ref());
    source.is_some_and(|error: &RedisError| matches!(error.code(), Some("WRONGTYPE" | "ERR")))
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
