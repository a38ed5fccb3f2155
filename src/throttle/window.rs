//! The p99 of what was recorded in the last seconds.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// A p99 over fewer samples is their maximum.
pub const ENOUGH_SAMPLES: u64 = 100;

/// The window is forgotten in so many pieces.
const PIECES: u32 = 10;
/// Two digits: a p99 is not known better than to a per cent by any number of samples there is.
const DIGITS: u8 = 2;

/// A rolling window over latencies: ten histograms, each over a tenth of it.
#[derive(Debug)]
pub struct Window {
    length: Duration,
    /// Begin of each piece, oldest first.
    pieces: Vec<(Instant, Histogram<u32>)>,
}

/// The p99 of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantile {
    /// 99 of 100 samples are not above it.
    pub p99: Duration,
    /// Of so many.
    pub samples: u64,
}

impl Window {
    /// An empty window of `length`.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        Self { length, pieces: Vec::new() }
    }

    /// Records a latency seen at `now`. A probe that was late because the one before it hung stands
    /// for those that it kept from being sent, one every `interval`.
    pub fn record(&mut self, now: Instant, latency: Duration, interval: Duration) {
        let piece = self.length / PIECES;
        if self.pieces.last().is_none_or(|(begin, _)| now.saturating_duration_since(*begin) >= piece) {
            self.pieces.push((now, empty()));
        }
        let (_, histogram) = self.pieces.last_mut().expect("one was just pushed if there was none");
        histogram
            .record_correct(microseconds(latency).max(1), microseconds(interval).max(1))
            .expect("the histogram grows to what it is given");
    }

    /// Forgets everything: what was measured so far says nothing any more.
    pub fn clear(&mut self) {
        self.pieces.clear();
    }

    /// The p99 of the window that ends at `now`. Of fewer than [`ENOUGH_SAMPLES`] it is the second
    /// largest sample: one that stands alone may be anything. None of fewer than two.
    pub fn quantile(&mut self, now: Instant) -> Option<Quantile> {
        self.pieces.retain(|(begin, _)| now.saturating_duration_since(*begin) < self.length);
        let mut whole = empty();
        for (_, piece) in &self.pieces {
            whole.add(piece).expect("the histogram grows to what it is given");
        }
        quantile(&whole)
    }
}

/// The p99 of a histogram of microseconds; see [`Window::quantile`].
fn quantile(histogram: &Histogram<u32>) -> Option<Quantile> {
    let samples = histogram.len();
    if samples < 2 {
        return None;
    }
    let above = (samples / ENOUGH_SAMPLES).max(1);
    let rank = (samples - above) as f64 / samples as f64;
    let p99 = Duration::from_micros(histogram.value_at_quantile(rank));
    Some(Quantile { p99, samples })
}

fn empty() -> Histogram<u32> {
    Histogram::new(DIGITS).expect("two digits are allowed")
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(50);

    fn about(found: Option<Quantile>, milliseconds: f64) -> bool {
        let p99 = found.expect("there are samples").p99.as_secs_f64() * 1e3;
        (p99 - milliseconds).abs() <= milliseconds * 0.01
    }

    #[test]
    fn one_sample_in_a_hundred_may_be_anything() {
        let mut window = Window::new(Duration::from_secs(10));
        let begin = Instant::now();
        for sample in 0..200 {
            let slow = sample == 7 || sample == 70;
            window.record(
                begin + INTERVAL * sample,
                Duration::from_millis(if slow { 40 } else { 2 }),
                INTERVAL,
            );
        }
        let end = begin + Duration::from_millis(9_950);
        assert!(about(window.quantile(end), 2.0), "{:?}", window.quantile(end));
        window.record(end, Duration::from_millis(30), INTERVAL);
        assert!(about(window.quantile(end), 30.0), "{:?}", window.quantile(end));
    }

    #[test]
    fn it_forgets_what_is_older_than_the_window() {
        let mut window = Window::new(Duration::from_secs(10));
        let begin = Instant::now();
        for sample in 0..100 {
            window.record(begin + INTERVAL * sample, Duration::from_millis(40), INTERVAL);
        }
        for sample in 100..320 {
            window.record(begin + INTERVAL * sample, Duration::from_millis(2), INTERVAL);
        }
        assert!(about(window.quantile(begin + Duration::from_secs(16)), 2.0));
        assert_eq!(window.quantile(begin + Duration::from_secs(60)), None);
    }

    #[test]
    fn a_probe_that_hung_counts_for_those_it_kept_back() {
        let mut window = Window::new(Duration::from_secs(10));
        let begin = Instant::now();
        for sample in 0..150 {
            window.record(begin + INTERVAL * sample, Duration::from_millis(2), INTERVAL);
        }
        let hung = begin + Duration::from_secs(8);
        window.record(hung, Duration::from_millis(500), INTERVAL);
        let found = window.quantile(hung).unwrap();
        assert_eq!(found.samples, 160);
        assert!(found.p99 >= Duration::from_millis(440), "{found:?}");
    }

    #[test]
    fn a_few_samples_are_told_apart_from_one() {
        let mut window = Window::new(Duration::from_secs(10));
        let now = Instant::now();
        assert_eq!(window.quantile(now), None);
        for milliseconds in [2, 30, 2, 3] {
            window.record(now, Duration::from_millis(milliseconds), INTERVAL);
        }
        assert!(about(window.quantile(now), 3.0));
    }
}
