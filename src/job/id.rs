//! The id of a job: 128 random bits, written as 32 hexadecimal digits.

use std::{
    fmt,
    hash::{BuildHasherDefault, Hash, Hasher},
    str::FromStr,
};

use super::Digest;
use crate::{
    error::{Error, ErrorKind},
    system,
};

/// The id of a job: 128 bits from the operating system's random number generator, without any
/// meaning, so that knowing one tells nothing of another.
///
/// Where no owner is configured the id is what gives access to the job: treat it as a secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId([u8; 16]);

impl JobId {
    /// The number of [partitions](Self::partition): so many that a store on a hundred machines is
    /// spread evenly enough, and so few that asking all of them is cheap.
    pub const PARTITIONS: u8 = 64;

    /// The number of characters of an id as text.
    const LEN: usize = 32;

    /// A new id from the operating system's random number generator.
    ///
    /// # Errors
    /// [`ErrorKind::Random`] when the operating system has none to give.
    pub fn random() -> Result<Self, Error> {
        let mut bytes = [0; 16];
        system::fill(&mut bytes).map_err(|error| {
            Error::new(ErrorKind::Random, "no random numbers for a job's id").with_source(error)
        })?;
        Ok(Self(bytes))
    }

    /// A new id of the partition that this claim's key has: 122 of its bits are random, which is as
    /// many as a random UUID has, and the others are of the key's hash.
    ///
    /// # Errors
    /// As [`random`](Self::random).
    pub fn random_beside(key: &Digest) -> Result<Self, Error> {
        let Self(mut bytes) = Self::random()?;
        bytes[0] = key.partition() << REST | bytes[0] & ((1 << REST) - 1);
        Ok(Self(bytes))
    }

    /// Which of the [`PARTITIONS`](Self::PARTITIONS) the job is of, where a store is spread over
    /// several machines: the first six bits of its id.
    pub fn partition(self) -> u8 {
        self.0[0] >> REST
    }

    /// The digits that [`Display`](fmt::Display) writes.
    pub(crate) fn digits(self) -> [u8; Self::LEN] {
        let mut digits = [0; Self::LEN];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&PAIRS[usize::from(byte)]);
        }
        digits
    }
}

/// The bits of the first byte that are not the partition's.
const REST: u32 = (u8::MAX / JobId::PARTITIONS).count_ones();

/// The two digits of each byte.
static PAIRS: [[u8; 2]; 256] = {
    let digits = b"0123456789abcdef";
    let mut pairs = [[0; 2]; 256];
    let mut byte = 0;
    while byte < pairs.len() {
        pairs[byte] = [digits[byte >> 4], digits[byte & 15]];
        byte += 1;
    }
    pairs
};

/// Half of its bits, the half without the partition: they are random, so half is enough for any table.
impl Hash for JobId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [.., a, b, c, d, e, f, g, h] = self.0;
        state.write_u64(u64::from_ne_bytes([a, b, c, d, e, f, g, h]));
    }
}

/// For tables of ids: what [`JobId`] hashes is taken as it is. Nobody can choose ids that fall into
/// the same place of a table, since the operating system's generator chooses those that are kept.
/// Ids that are only looked up may be anybody's choice, but what is looked up is not put in.
pub(crate) type IdHash = BuildHasherDefault<IdHasher>;

#[derive(Debug, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }

    /// Not what a [`JobId`] calls; right all the same.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JobId({self})")
    }
}

/// Reads an id in the one form that [`Display`](fmt::Display) writes: 32 lower-case digits.
impl FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let canonical = text.len() == Self::LEN
            && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        canonical
            .then(|| u128::from_str_radix(text, 16).ok())
            .flatten()
            .map(|number| Self(number.to_be_bytes()))
            .ok_or_else(|| Error::new(ErrorKind::Corrupt, "not the id of a job"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        let id = JobId::random().unwrap();
        assert_eq!(id.to_string().parse::<JobId>().unwrap(), id);
        assert_eq!(JobId([0; 16]).to_string().len(), JobId::LEN);
        assert_eq!(id.to_string().as_bytes(), id.digits());
    }

    #[test]
    fn one_spelling_only() {
        let good = "0123456789abcdef0123456789abcdef";
        assert!(good.parse::<JobId>().is_ok());
        let long = "a".repeat(1 << 20);
        let plus = format!("+{}", &good[1..]);
        for bad in
            ["", "0", &good[1..], &good.to_uppercase(), &long, &plus, "é".repeat(16).as_str()]
        {
            assert!(bad.parse::<JobId>().is_err(), "{:.40}", bad);
        }
    }

    #[test]
    fn a_keys_ids_are_in_its_partition_and_differ() {
        let mut seen = std::collections::HashSet::new();
        for byte in 0..=u8::MAX {
            let key = Digest::from([byte; 32]);
            let ids = [JobId::random_beside(&key).unwrap(), JobId::random_beside(&key).unwrap()];
            assert!(ids.iter().all(|id| id.partition() == key.partition()), "{ids:?}");
            assert!(key.partition() < JobId::PARTITIONS);
            seen.extend(ids);
        }
        assert_eq!(seen.len(), 512);
        let partitions: std::collections::HashSet<_> =
            seen.iter().map(|id| id.partition()).collect();
        assert_eq!(partitions.len(), usize::from(JobId::PARTITIONS));
        // No bit of the first byte is the same in all but those.
        let rest: std::collections::HashSet<_> = seen.iter().map(|id| id.0[0] & 3).collect();
        assert_eq!(rest.len(), 4);
    }

    #[test]
    fn ids_differ() {
        let ids: std::collections::HashSet<_> =
            (0..1000).map(|_| JobId::random().unwrap()).collect();
        assert_eq!(ids.len(), 1000);
    }
}
