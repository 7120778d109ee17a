//! The keys and their values, with what is needed to lose the last writes again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use crate::redis::resp::{Reply, Text};

/// A value under a key. Collections have no random order: a hash keeps the order of insertion, as
/// the small hashes of Redis do, and a set is sorted.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(Text),
    Hash(Hash),
    Set(BTreeSet<Text>),
    Sorted(Sorted),
    List(VecDeque<Text>),
}

impl Value {
    /// The name that `TYPE` has for it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "string",
            Self::Hash(_) => "hash",
            Self::Set(_) => "set",
            Self::Sorted(_) => "zset",
            Self::List(_) => "list",
        }
    }

    /// Redis keeps no empty collections.
    fn is_empty(&self) -> bool {
        match self {
            Self::Text(_) => false,
            Self::Hash(hash) => hash.0.is_empty(),
            Self::Set(set) => set.is_empty(),
            Self::Sorted(sorted) => sorted.scores.is_empty(),
            Self::List(list) => list.is_empty(),
        }
    }

    /// About the bytes that it takes, with a part for each element that stands for its overhead.
    fn size(&self) -> usize {
        const EACH: usize = 16;
        let sum =
            |texts: &mut dyn Iterator<Item = &Text>| texts.map(|text| text.len() + EACH).sum();
        match self {
            Self::Text(text) => text.len() + EACH,
            Self::Hash(hash) => sum(&mut hash.0.iter().flat_map(|(field, value)| [field, value])),
            Self::Set(set) => sum(&mut set.iter()),
            Self::Sorted(sorted) => sum(&mut sorted.scores.keys()),
            Self::List(list) => sum(&mut list.iter()),
        }
    }
}

/// Fields and values in the order in which the fields came.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Hash(pub(crate) Vec<(Text, Text)>);

impl Hash {
    pub(crate) fn get(&self, field: &[u8]) -> Option<&Text> {
        self.0.iter().find(|(name, _)| **name == *field).map(|(_, value)| value)
    }

    /// Sets a field; returns whether it is new.
    pub(crate) fn set(&mut self, field: &Text, value: &Text) -> bool {
        match self.0.iter_mut().find(|(name, _)| name == field) {
            Some((_, old)) => {
                *old = Arc::clone(value);
                false
            }
            None => {
                self.0.push((Arc::clone(field), Arc::clone(value)));
                true
            }
        }
    }

    pub(crate) fn remove(&mut self, field: &[u8]) -> bool {
        let len = self.0.len();
        self.0.retain(|(name, _)| **name != *field);
        self.0.len() < len
    }
}

/// A score, in the order of numbers; it is never NaN.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Score(pub(crate) f64);

impl Eq for Score {}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.partial_cmp(&other.0).unwrap_or(std::cmp::Ordering::Equal)
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

/// Members with scores, by score and then by member.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Sorted {
    pub(crate) scores: BTreeMap<Text, f64>,
    pub(crate) order: BTreeSet<(Score, Text)>,
}

impl Sorted {
    pub(crate) fn set(&mut self, member: &Text, score: f64) {
        // Small sets keep -0 as 0 (src/t_zset.c, `zzlInsertAt`).
        let score = if score == 0.0 { 0.0 } else { score };
        if let Some(old) = self.scores.insert(Arc::clone(member), score) {
            self.order.remove(&(Score(old), Arc::clone(member)));
        }
        self.order.insert((Score(score), Arc::clone(member)));
    }

    pub(crate) fn remove(&mut self, member: &Text) -> bool {
        match self.scores.remove(member) {
            Some(score) => self.order.remove(&(Score(score), Arc::clone(member))),
            None => false,
        }
    }
}

/// What is under a key.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) value: Arc<Value>,
    /// In milliseconds since the epoch.
    pub(crate) expires: Option<i64>,
}

pub(crate) type Keys = BTreeMap<Text, Entry>;

/// What was under the keys that one write has touched, before it.
type Undo = BTreeMap<Text, Option<Entry>>;

/// All keys.
#[derive(Debug, Default)]
pub(crate) struct Data {
    keys: Keys,
    /// Milliseconds since the epoch.
    now: i64,
    /// Nothing expires before this.
    soonest: i64,
    /// Of the write that is being made.
    undo: Undo,
    /// Of the last writes.
    log: VecDeque<Undo>,
    writes: u64,
}

/// So many of the last writes can be undone.
pub(crate) const REMEMBERED: usize = 1 << 12;

pub(crate) fn wrong_type() -> Reply {
    Reply::error("WRONGTYPE Operation against a key holding the wrong kind of value")
}

impl Data {
    pub(crate) fn now(&self) -> i64 {
        self.now
    }

    /// Sets the time, and removes what has expired by then.
    pub(crate) fn set_now(&mut self, now: i64) {
        self.now = now;
        if now <= self.soonest {
            return;
        }
        self.keys.retain(|_, entry| entry.expires.is_none_or(|at| at >= now));
        self.soonest =
            self.keys.values().filter_map(|entry| entry.expires).min().unwrap_or(i64::MAX);
    }

    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    pub(crate) fn entry(&self, key: &[u8]) -> Option<&Entry> {
        self.keys.get(key)
    }

    pub(crate) fn value(&self, key: &[u8]) -> Option<&Value> {
        self.entry(key).map(|entry| &*entry.value)
    }

    /// Remembers what is under a key before it is changed.
    fn touch(&mut self, key: &Text) {
        if !self.undo.contains_key(key) {
            self.undo.insert(Arc::clone(key), self.keys.get(key).cloned());
        }
    }

    /// Puts a value under a key, in place of any, to expire at `expires`.
    pub(crate) fn put(&mut self, key: &Text, value: Value, expires: Option<i64>) {
        self.put_entry(key, Entry { value: Arc::new(value), expires });
    }

    pub(crate) fn put_entry(&mut self, key: &Text, entry: Entry) {
        self.touch(key);
        if let Some(at) = entry.expires {
            self.soonest = self.soonest.min(at);
        }
        self.keys.insert(Arc::clone(key), entry);
    }

    pub(crate) fn remove(&mut self, key: &Text) -> Option<Entry> {
        if !self.keys.contains_key(key) {
            return None;
        }
        self.touch(key);
        self.keys.remove(key)
    }

    /// Sets when a key expires; returns whether there is the key.
    pub(crate) fn expire(&mut self, key: &Text, expires: Option<i64>) -> bool {
        let Some(entry) = self.keys.get(key) else { return false };
        let entry = Entry { value: Arc::clone(&entry.value), expires };
        self.put_entry(key, entry);
        true
    }

    /// Changes the collection under a key, which is `empty` where there is none, by `change`, which
    /// gets `None` for a value of another type. A collection that is empty then is removed.
    pub(crate) fn change<C, R>(
        &mut self,
        key: &Text,
        empty: Value,
        select: impl FnOnce(&mut Value) -> Option<&mut C>,
        change: impl FnOnce(&mut C) -> R,
    ) -> Result<R, Reply> {
        self.touch(key);
        let new = || Entry { value: Arc::new(empty), expires: None };
        let entry = self.keys.entry(Arc::clone(key)).or_insert_with(new);
        let value = Arc::make_mut(&mut entry.value);
        let Some(collection) = select(value) else { return Err(wrong_type()) };
        let result = change(collection);
        if value.is_empty() {
            self.keys.remove(key);
        }
        Ok(result)
    }

    pub(crate) fn clear(&mut self) {
        for key in self.keys.keys().cloned().collect::<Vec<_>>() {
            self.remove(&key);
        }
    }

    /// Returns whether keys and values take more than `limit` bytes, about.
    pub(crate) fn is_over(&self, limit: usize) -> bool {
        const EACH: usize = 64;
        let mut sum = 0;
        limit == 0
            || self.keys.iter().any(|(key, entry)| {
                sum += key.len() + EACH + entry.value.size();
                sum > limit
            })
    }

    /// Ends a command or a script: what it has changed is one write.
    pub(crate) fn commit(&mut self) {
        self.undo.retain(|key, old| self.keys.get(key) != old.as_ref());
        if self.undo.is_empty() {
            return;
        }
        self.writes += 1;
        if self.log.len() == REMEMBERED {
            self.log.pop_front();
        }
        self.log.push_back(std::mem::take(&mut self.undo));
    }

    pub(crate) fn writes(&self) -> u64 {
        self.writes
    }

    /// Undoes the last writes; returns how many.
    pub(crate) fn lose(&mut self, writes: usize) -> usize {
        for lost in 0..writes {
            let Some(undo) = self.log.pop_back() else {
                self.rescan();
                return lost;
            };
            for (key, old) in undo {
                match old {
                    Some(entry) => self.keys.insert(key, entry),
                    None => self.keys.remove(&key),
                };
            }
        }
        self.rescan();
        writes
    }

    pub(crate) fn replace(&mut self, keys: Keys) {
        self.keys = keys;
        self.log.clear();
        self.rescan();
    }

    fn rescan(&mut self) {
        self.soonest = i64::MIN;
        self.set_now(self.now);
    }
}
