//! The p99 of what was recorded in the last seconds.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// A p99 over fewer samples is their maximum.
pub const ENOUGH_SAMPLES: u64 = 100;

/// The window is forgotten in so many pieces.
const PIECES: u32 = 10;
/// Two digits: a p99 is not known better than to a per cent by any number of samples there is.
const DIGITS: u8 = 2;

/// The newest of the window that is looked at by itself, in pieces.
const NEWEST: usize = 3;
const ENOUGH_NEWEST_SAMPLES: u64 = 40;
/// How many standard deviations more samples may be above the p99 than there are in the mean, before it is
/// sure to be higher. With one sample more it is wrong about once in a thousand times; that is asked for each
/// second, for each probe.
const SURE: f64 = 2.5;
/// And before it is likely to be: with one sample more it is wrong about once in twenty times.
const LIKELY: f64 = 1.0;

/// A rolling window over latencies: ten histograms, each over a tenth of it.
#[derive(Debug)]
pub struct Window {
    length: Duration,
    /// Begin of each piece, oldest first.
    pieces: VecDeque<(Instant, Histogram<u32>)>,
    /// The sums of all pieces and of the newest, kept as pieces come and go: they are asked for far more
    /// often than those do.
    whole: Histogram<u32>,
    newest: Histogram<u32>,
    /// What was found last, and when, if nothing was recorded since: every job asks at each tick.
    found: Option<(Instant, Option<Quantile>)>,
}

/// The p99 of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantile {
    /// 99 of 100 samples are not above it.
    pub p99: Duration,
    /// What the p99 surely is at least, in the whole window or the newest part of it: 200 samples have two
    /// above it in the mean, and one time in twenty five or more.
    pub at_least: Duration,
    /// What the p99 is likely to be at least, by the whole window.
    pub likely: Duration,
    /// 95 of 100 samples are not above it. It says less of the worst and far more surely so: five times as
    /// many samples are above it. Zero where there are too few samples.
    pub p95: Duration,
    /// The same of the newest part of the window alone; zero where there are too few samples.
    pub newest_p95: Duration,
    /// Of so many.
    pub samples: u64,
    /// The window has been filled from end to end: it will not have more samples at this pace.
    pub full: bool,
}

impl Window {
    /// An empty window of `length`.
    #[must_use]
    pub fn new(length: Duration) -> Self {
        Self { length, pieces: VecDeque::new(), whole: empty(), newest: empty(), found: None }
    }

    /// Records a latency seen at `now`. A probe that was late because the one before it hung stands
    /// for those that it kept from being sent, one every `interval`.
    pub fn record(&mut self, now: Instant, latency: Duration, interval: Duration) {
        self.found = None;
        let piece = self.length / PIECES;
        if self.pieces.back().is_none_or(|(begin, _)| now.saturating_duration_since(*begin) >= piece) {
            if let Some(leaves) = self.pieces.len().checked_sub(NEWEST) {
                subtract(&mut self.newest, &self.pieces[leaves].1);
            }
            self.pieces.push_back((now, empty()));
        }
        let (_, last) = self.pieces.back_mut().expect("one was just pushed if there was none");
        for histogram in [last, &mut self.whole, &mut self.newest] {
            record(histogram, latency, interval);
        }
    }

    /// Forgets everything: what was measured so far says nothing any more.
    pub fn clear(&mut self) {
        *self = Self::new(self.length);
    }

    /// The p99 of the window that ends at `now`. Of fewer than [`ENOUGH_SAMPLES`] it is the second
    /// largest sample: one that stands alone may be anything. None of fewer than two.
    pub fn quantile(&mut self, now: Instant) -> Option<Quantile> {
        if let Some((_, found)) = self.found.filter(|(at, _)| *at == now) {
            return found;
        }
        let is_over =
            |(begin, _): &(Instant, Histogram<u32>)| now.saturating_duration_since(*begin) >= self.length;
        while self.pieces.front().is_some_and(is_over) {
            let (_, oldest) = self.pieces.pop_front().expect("it was just looked at");
            if self.pieces.len() < NEWEST {
                subtract(&mut self.newest, &oldest);
            }
            subtract(&mut self.whole, &oldest);
        }
        let surely = at_least(&self.whole, SURE).max(at_least(&self.newest, SURE));
        let likely = at_least(&self.whole, LIKELY).max(surely);
        let filled = self.length * (PIECES - 1) / PIECES;
        let full =
            self.pieces.front().is_some_and(|(begin, _)| now.saturating_duration_since(*begin) >= filled);
        let found = p99(&self.whole).map(|p99| Quantile {
            p99: p99.max(surely),
            at_least: surely,
            likely,
            p95: p95_of(&self.whole, ENOUGH_SAMPLES),
            newest_p95: p95_of(&self.newest, ENOUGH_NEWEST_SAMPLES),
            samples: self.whole.len(),
            full,
        });
        self.found = Some((now, found));
        found
    }
}

/// The p99 of a histogram of microseconds; see [`Window::quantile`].
pub(super) fn p99(histogram: &Histogram<u32>) -> Option<Duration> {
    let samples = histogram.len();
    (samples >= 2).then(|| with_above(histogram, (samples / ENOUGH_SAMPLES).max(1)))
}

/// The p95 of a histogram of microseconds; zero of an empty one.
pub(super) fn p95(histogram: &Histogram<u32>) -> Duration {
    Duration::from_micros(histogram.value_at_quantile(0.95))
}

/// The p95 once there are enough samples. Of twenty it is the largest but one, which may be anything: the first
/// seconds of a walk would be eased for nothing.
fn p95_of(histogram: &Histogram<u32>, enough: u64) -> Duration {
    if histogram.len() >= enough { p95(histogram) } else { Duration::ZERO }
}

/// What the p99 is likely to be at most, by the same measure as [`Quantile::likely`]; none of fewer than two
/// samples.
pub(super) fn likely_at_most(histogram: &Histogram<u32>) -> Option<Duration> {
    let expected = histogram.len() as f64 / ENOUGH_SAMPLES as f64;
    let above = (expected - LIKELY * expected.sqrt()).max(1.0).round() as u64;
    (histogram.len() >= 2).then(|| with_above(histogram, above))
}

/// What the p99 is at least, by so many standard deviations; zero where there are too few samples to say.
fn at_least(histogram: &Histogram<u32>, deviations: f64) -> Duration {
    let expected = histogram.len() as f64 / ENOUGH_SAMPLES as f64;
    let above = (expected + deviations * expected.sqrt() + 1.0).round() as u64;
    if above < histogram.len() { with_above(histogram, above) } else { Duration::ZERO }
}

/// The largest sample with so many above it.
fn with_above(histogram: &Histogram<u32>, above: u64) -> Duration {
    // Half a sample away from the next rank, whichever way the quotient is rounded.
    let rank = (histogram.len() - above) as f64 - 0.5;
    Duration::from_micros(histogram.value_at_quantile(rank / histogram.len() as f64))
}

/// Records a latency into a histogram of microseconds; see [`Window::record`].
pub(super) fn record(histogram: &mut Histogram<u32>, latency: Duration, interval: Duration) {
    histogram
        .record_correct(microseconds(latency).max(1), microseconds(interval).max(1))
        .expect("the histogram grows to what it is given");
}

fn subtract(from: &mut Histogram<u32>, piece: &Histogram<u32>) {
    from.subtract(piece).expect("a sum has what its parts have");
}

pub(super) fn empty() -> Histogram<u32> {
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
    fn a_few_slow_samples_are_a_p99_and_not_a_sure_one() {
        let mut window = Window::new(Duration::from_secs(10));
        let begin = Instant::now();
        for sample in 0..200 {
            let slow = sample % 50 == 0;
            window.record(
                begin + INTERVAL * sample,
                Duration::from_millis(if slow { 40 } else { 2 }),
                INTERVAL,
            );
        }
        let end = begin + Duration::from_millis(9_950);
        let found = window.quantile(end).unwrap();
        assert!(found.p99 >= Duration::from_millis(40), "{found:?}");
        assert!(found.at_least < Duration::from_millis(3), "{found:?}");
        for sample in 0..6 {
            window.record(end + INTERVAL * sample, Duration::from_millis(40), INTERVAL);
        }
        let found = window.quantile(end + INTERVAL * 6).unwrap();
        assert!(found.at_least >= Duration::from_millis(40), "the newest alone make it sure: {found:?}");
    }

    #[test]
    fn the_p95_of_a_few_samples_says_nothing() {
        let mut window = Window::new(Duration::from_secs(10));
        let begin = Instant::now();
        for sample in 0..100 {
            let now = begin + INTERVAL * sample;
            assert_eq!(window.quantile(now).map_or(Duration::ZERO, |found| found.p95), Duration::ZERO);
            window.record(now, Duration::from_millis(if sample < 6 { 40 } else { 2 }), INTERVAL);
        }
        let found = window.quantile(begin + INTERVAL * 100).unwrap();
        assert!(found.p95 >= Duration::from_millis(40), "{found:?}");
        assert!(found.newest_p95 < Duration::from_millis(3), "{found:?}");
    }

    fn counts(histogram: &Histogram<u32>) -> Vec<(u64, u32)> {
        histogram.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect()
    }

    #[test]
    fn the_sums_are_those_of_the_pieces() {
        let mut window = Window::new(Duration::from_secs(10));
        let mut random = fastrand::Rng::with_seed(1);
        let mut now = Instant::now();
        for _ in 0..500 {
            now += Duration::from_millis(random.u64(0..400));
            if random.u8(0..100) == 0 {
                now += Duration::from_secs(random.u64(1..15));
            }
            window.record(now, Duration::from_micros(random.u64(500..90_000)), INTERVAL);
            window.quantile(now);
            let sum = |pieces: usize| {
                let mut sum = empty();
                window.pieces.iter().rev().take(pieces).for_each(|(_, piece)| sum.add(piece).unwrap());
                counts(&sum)
            };
            assert_eq!(counts(&window.whole), sum(usize::MAX));
            assert_eq!(counts(&window.newest), sum(NEWEST));
        }
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
