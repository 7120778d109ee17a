//! Whose a job is, and which key it was sent under: names as hashes, since a store has no need to
//! know a bearer token.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use http::HeaderValue;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq;

use super::JobId;

/// Whoever sends a request: a bearer token, the name of a tenant or of a user. Only requests with
/// the same name see a job.
///
/// Made by the function given to `OffloadBuilder::owner`, for every request that is watched: it
/// should cost no more than a clone. The name is hashed where a job is made or asked for; it is
/// kept nowhere.
///
/// ```
/// use http::{header, request::Parts};
/// use tower_offload::{Offload, Owner};
///
/// let offload = Offload::builder("/jobs")
///     .owner(|request: &Parts| request.headers.get(header::AUTHORIZATION).cloned().map(Owner::from))
///     .build()?;
/// # let _ = offload;
/// # Ok::<(), tower_offload::Error>(())
/// ```
#[derive(Clone)]
pub struct Owner(Name);

#[derive(Clone)]
enum Name {
    Bytes(Bytes),
    Header(HeaderValue),
    Shared(Arc<str>),
}

impl Owner {
    fn name(&self) -> &[u8] {
        match &self.0 {
            Name::Bytes(name) => name,
            Name::Header(name) => name.as_bytes(),
            Name::Shared(name) => name.as_bytes(),
        }
    }

    /// What a store keeps of it.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of("owner", &[self.name()])
    }
}

impl From<HeaderValue> for Owner {
    fn from(name: HeaderValue) -> Self {
        Self(Name::Header(name))
    }
}

impl From<Bytes> for Owner {
    fn from(name: Bytes) -> Self {
        Self(Name::Bytes(name))
    }
}

impl From<String> for Owner {
    fn from(name: String) -> Self {
        Self(Name::Bytes(name.into()))
    }
}

impl From<&'static str> for Owner {
    fn from(name: &'static str) -> Self {
        Self(Name::Bytes(Bytes::from_static(name.as_bytes())))
    }
}

impl From<Arc<str>> for Owner {
    fn from(name: Arc<str>) -> Self {
        Self(Name::Shared(name))
    }
}

/// The name may be a secret.
impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").finish_non_exhaustive()
    }
}

/// A SHA-256 hash. Two are compared in constant time, so that the time of an answer tells nothing
/// of how much of a guess was right.
#[derive(Clone, Copy)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The hash of these parts, as the parts of such a `kind` of thing: their lengths are part of
    /// it, so that no two lists of parts are the same.
    pub(crate) fn of(kind: &str, parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in [&[b"tower-offload", kind.as_bytes()], parts].concat() {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// The [partition](JobId::partition) of the jobs with a claim on this key.
    pub fn partition(&self) -> u8 {
        self.0[0] % JobId::PARTITIONS
    }

    /// The hash's bytes, for a store to keep.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl PartialEq for Digest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Digest {}

impl std::hash::Hash for Digest {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.hash(state);
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(")?;
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str("…)")
    }
}

/// The claim of a job on an `Idempotency-Key`: no other job is made under the key while this one is
/// kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    key: Digest,
    fingerprint: Digest,
}

impl Claim {
    /// A claim on `key`, the hash of an owner and a key of theirs, by a request with this
    /// fingerprint.
    pub fn new(key: Digest, fingerprint: Digest) -> Self {
        Self { key, fingerprint }
    }

    /// The hash of the owner and the key: what a store lets only one job have.
    pub fn key(&self) -> &Digest {
        &self.key
    }

    /// The hash of the request: another one under the same key is a mistake of the client.
    pub fn fingerprint(&self) -> &Digest {
        &self.fingerprint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_type_are_the_same_owner() {
        let digest = Owner::from("acme").digest();
        for owner in [
            Owner::from(HeaderValue::from_static("acme")),
            Owner::from(Bytes::from_static(b"acme")),
            Owner::from("acme".to_owned()),
            Owner::from(Arc::<str>::from("acme")),
        ] {
            assert_eq!(owner.digest(), digest);
            assert_eq!(format!("{owner:?}"), "Owner { .. }", "a secret is not printed");
        }
        assert_ne!(Owner::from("acmf").digest(), digest);
        assert_ne!(Owner::from("").digest(), digest);
    }

    #[test]
    fn where_one_part_ends_and_the_next_begins_counts() {
        let digests = [
            Digest::of("a", &[b"bc", b"d"]),
            Digest::of("a", &[b"b", b"cd"]),
            Digest::of("a", &[b"bcd"]),
            Digest::of("a", &[b"bc", b"d", b""]),
            Digest::of("ab", &[b"c", b"d"]),
        ];
        for (at, digest) in digests.iter().enumerate() {
            assert!(!digests[..at].contains(digest), "{at}");
        }
    }
}
