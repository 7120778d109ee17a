//! How far a job is: what its handler said last.

use std::sync::Arc;

/// How far a job is, as its handler has said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Progress {
    ratio: Option<f64>,
    message: Option<Arc<str>>,
}

impl Progress {
    /// The most bytes of a message that are kept; what is longer is cut at a character's end. Room
    /// for a line of text, and every job's record stays small.
    pub const MAX_MESSAGE: usize = 256;

    /// A progress; the ratio counts from 0 to 1, and one that is no number is left out.
    pub fn new(ratio: Option<f64>, message: Option<&str>) -> Self {
        let ratio = clean(ratio);
        Self { ratio, message: message.map(cut).filter(|text| !text.is_empty()).map(Arc::from) }
    }

    /// How much of the work is done, from 0 to 1.
    pub fn ratio(&self) -> Option<f64> {
        self.ratio
    }

    /// What is being done.
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }
}

/// What a handler has said of its progress, put together until somebody writes it down.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    progress: Progress,
    total: u64,
    done: u64,
    news: Option<News>,
}

/// What the ratio is to be taken from.
#[derive(Debug, Clone, Copy)]
enum News {
    Said,
    Counted,
}

impl Tracker {
    pub(super) fn has_news(&self) -> bool {
        self.news.is_some()
    }

    pub(super) fn say(&mut self, ratio: f64, message: &str) {
        // A message that stays the same, as in a loop, is not copied each time.
        match self.progress.message() == Some(message) {
            true => self.progress.ratio = clean(Some(ratio)),
            false => self.progress = Progress::new(Some(ratio), Some(message)),
        }
        self.news = Some(News::Said);
    }

    pub(super) fn set_total(&mut self, pieces: u64) {
        self.total = pieces;
        self.news = Some(News::Counted);
    }

    pub(super) fn advance(&mut self, pieces: u64) {
        self.done = self.done.saturating_add(pieces);
        // Of an unknown number of pieces there is nothing to tell.
        if self.total > 0 {
            self.news = Some(News::Counted);
        }
    }

    /// What is to be written down, if there is anything new.
    pub(super) fn take(&mut self) -> Option<Progress> {
        if let News::Counted = self.news.take()? {
            // Of no pieces nothing can be told.
            let ratio = (self.total > 0).then(|| self.done as f64 / self.total as f64);
            self.progress.ratio = clean(ratio);
        }
        Some(self.progress.clone())
    }

    /// What was taken is new still, whether or not more was said since.
    pub(super) fn put_back(&mut self) {
        self.news.get_or_insert(News::Said);
    }
}

fn clean(ratio: Option<f64>) -> Option<f64> {
    ratio.filter(|ratio| !ratio.is_nan()).map(|ratio| ratio.clamp(0.0, 1.0))
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(Progress::MAX_MESSAGE);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_from_0_to_1() {
        for (said, kept) in [
            (0.25, Some(0.25)),
            (-1.0, Some(0.0)),
            (7.0, Some(1.0)),
            (f64::INFINITY, Some(1.0)),
            (f64::NAN, None),
        ] {
            assert_eq!(Progress::new(Some(said), None).ratio(), kept, "{said}");
        }
    }

    #[test]
    fn the_last_call_says_what_the_ratio_is() {
        let mut tracker = Tracker::default();
        assert_eq!(tracker.take(), None);
        tracker.advance(1);
        assert_eq!(tracker.take(), None, "of an unknown number");
        tracker.set_total(4);
        assert_eq!(tracker.take().unwrap().ratio(), Some(0.25));
        tracker.say(0.9, "nearly");
        let said = tracker.take().unwrap();
        assert_eq!((said.ratio(), said.message()), (Some(0.9), Some("nearly")));
        tracker.advance(1);
        tracker.advance(1);
        let counted = tracker.take().unwrap();
        assert_eq!((counted.ratio(), counted.message()), (Some(0.75), Some("nearly")));
        assert_eq!(tracker.take(), None);
        tracker.advance(u64::MAX);
        assert_eq!(tracker.take().unwrap().ratio(), Some(1.0));
        tracker.say(0.5, "");
        assert_eq!(tracker.take().unwrap().message(), None);
        tracker.set_total(0);
        assert_eq!(tracker.take().unwrap().ratio(), None, "of no pieces");
    }

    #[test]
    fn what_was_not_written_is_taken_again_unless_there_is_newer() {
        let mut tracker = Tracker::default();
        tracker.set_total(4);
        tracker.advance(1);
        let taken = tracker.take();
        tracker.put_back();
        assert_eq!(tracker.take(), taken);
        tracker.advance(1);
        tracker.put_back();
        assert_eq!(tracker.take().unwrap().ratio(), Some(0.5));
        assert_eq!(tracker.take(), None);
    }

    #[test]
    fn a_long_message_is_cut_between_characters() {
        let long = format!("a{}", "é".repeat(500));
        let progress = Progress::new(None, Some(&long));
        let kept = progress.message().unwrap();
        assert_eq!(kept.len(), Progress::MAX_MESSAGE - 1);
        assert!(long.starts_with(kept));
        assert_eq!(Progress::new(None, Some("")).message(), None);
    }
}
