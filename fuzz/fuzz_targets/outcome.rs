//! A job's outcome, as a store outside of the process gives it back.

#![no_main]

use http::Response;
use libfuzzer_sys::fuzz_target;
use tower_offload::{Outcome, fuzzing::replay};

fuzz_target!(|data: &[u8]| {
    let Ok(outcome) = Outcome::from_bytes(data.to_vec().into()) else { return };
    assert_eq!(outcome.as_bytes(), data);
    let (body, trailers) = (outcome.body(), outcome.trailers());
    assert_eq!(replay(&outcome), [body.len(); 2]);
    // What was read, written anew, is the same outcome.
    let mut head = Response::new(()).into_parts().0;
    (head.status, head.headers) = (outcome.status(), outcome.headers());
    let written = Outcome::new(&head, &body, trailers.as_ref());
    let again = Outcome::from_bytes(written.as_bytes().clone()).expect("what is written is read");
    assert_eq!(again.status(), outcome.status());
    assert_eq!(again.headers(), head.headers);
    assert_eq!(again.body(), body);
    assert_eq!(again.trailers(), trailers);
});
