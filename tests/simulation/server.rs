//! A model of a database server: how long its queries take, and how fast rows can be walked.

use serde::Deserialize;

/// Rows that one worker walks a second beside nothing else, as the speed benchmark has them: seconds of
/// a core a row, and seconds of a batch that are not for its rows.
const SECONDS_PER_ROW: f64 = 3.3e-6;
const SECONDS_PER_BATCH: f64 = 1.5e-3;
/// What a worker puts into one batch: the rows of this time, but not fewer than these.
const PACED_BATCH_SECONDS: f64 = 0.005;
const EASY_ROWS: f64 = 200.0;

/// Beyond this part of its cores a server only queues.
const SATURATED: f64 = 0.98;
/// A sample in so many meets something slow: a checkpoint, a flush, a vacuum.
const SLOW_SHARE: f64 = 0.01;
/// How many times as long as it should take, from here on falling off as a Pareto tail.
const SLOW_FROM: f64 = 3.0;
const SLOW_SHAPE: f64 = 2.5;
const SLOWEST: f64 = 50.0;

/// The server as the scenario has it.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Server {
    /// Processor cores.
    pub(crate) cores: f64,
    /// The median latency of a probe on an idle server, in milliseconds.
    pub(crate) latency_ms: f64,
    /// How widely latencies are strewn: the standard deviation of their logarithm.
    pub(crate) noise: f64,
}

impl Default for Server {
    fn default() -> Self {
        Self { cores: 2.0, latency_ms: 1.2, noise: 0.6 }
    }
}

impl Server {
    /// The part of the cores that is used when the application uses `foreground` of them.
    pub(crate) fn utilisation(&self, foreground: f64, rows_per_second: f64) -> f64 {
        foreground + rows_per_second * SECONDS_PER_ROW / self.cores
    }

    /// How many times as long as on an idle server things take: the queue before two cores.
    fn queueing(utilisation: f64) -> f64 {
        1.0 / (1.0 - utilisation.clamp(0.0, SATURATED).powi(2))
    }

    /// The latency of one probe, in seconds.
    pub(crate) fn latency(&self, utilisation: f64, random: &mut Random) -> f64 {
        let noise = (self.noise * random.normal()).exp();
        let slow = if random.part() < SLOW_SHARE {
            (SLOW_FROM * random.part().max(1e-9).powf(-1.0 / SLOW_SHAPE)).min(SLOWEST)
        } else {
            1.0
        };
        self.median(utilisation) * noise * slow
    }

    /// The median latency, in seconds.
    pub(crate) fn median(&self, utilisation: f64) -> f64 {
        self.latency_ms / 1e3 * Self::queueing(utilisation)
    }

    /// The true p99, which takes more samples to see than a window holds, in medians.
    pub(crate) fn p99_of_noise(&self) -> f64 {
        let above = |latency: f64| {
            let normal = |value: f64| upper_normal(value.ln() / self.noise);
            // The slow ones, by the mean over the Pareto tail's own quantiles.
            let slow: f64 = (0..50)
                .map(|step| (f64::from(step) + 0.5) / 50.0)
                .map(|part| normal(latency / (SLOW_FROM * part.powf(-1.0 / SLOW_SHAPE)).min(SLOWEST)))
                .sum();
            (1.0 - SLOW_SHARE) * normal(latency) + SLOW_SHARE * slow / 50.0
        };
        bisect(1.0, 1e4, |latency| above(latency) > 0.01)
    }

    /// What one worker can walk of an allowed rate.
    pub(crate) fn walkable_rows_per_second(&self, rate: f64, foreground: f64) -> f64 {
        if rate <= 0.0 {
            return 0.0;
        }
        // One worker uses one core, or what the application leaves of it.
        let slowdown = (1.0 / self.cores / (1.0 - foreground).max(0.02)).max(1.0);
        let batch = (rate * PACED_BATCH_SECONDS).clamp(EASY_ROWS, 50_000.0);
        rate.min(batch / (SECONDS_PER_BATCH + batch * SECONDS_PER_ROW * slowdown))
    }
}

/// The largest value for which `holds`, which must hold up to some value and not beyond.
fn bisect(mut low: f64, mut high: f64, holds: impl Fn(f64) -> bool) -> f64 {
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if holds(middle) { low = middle } else { high = middle }
    }
    low
}

/// The part of a normal distribution above `z`: Abramowitz and Stegun 7.1.26, to 1e-7.
fn upper_normal(z: f64) -> f64 {
    let x = z.abs() / std::f64::consts::SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * x);
    let series = t
        * (0.254_829_592
            + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    let above = series * (-x * x).exp() / 2.0;
    if z < 0.0 { 1.0 - above } else { above }
}

/// Randomness from a seed.
#[derive(Debug)]
pub(crate) struct Random(fastrand::Rng);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(fastrand::Rng::with_seed(seed))
    }

    /// Between 0 and 1.
    pub(crate) fn part(&mut self) -> f64 {
        self.0.f64()
    }

    /// By Box and Muller.
    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * self.part().max(f64::MIN_POSITIVE).ln()).sqrt() * (std::f64::consts::TAU * self.part()).cos()
    }
}

#[test]
fn the_p99_that_the_model_knows_is_the_one_it_draws() {
    let (server, mut random) = (Server::default(), Random::new(1));
    let mut drawn: Vec<f64> = (0..200_000).map(|_| server.latency(0.4, &mut random)).collect();
    drawn.sort_by(f64::total_cmp);
    let (true_p99, drawn_p99) = (server.median(0.4) * server.p99_of_noise(), drawn[198_000]);
    assert!((drawn_p99 / true_p99 - 1.0).abs() < 0.03, "{drawn_p99} drawn, {true_p99} known");
}

#[test]
fn a_p99_of_200_samples_is_as_noisy_as_on_real_servers() {
    let (server, mut random) = (Server::default(), Random::new(2));
    let p99s: Vec<f64> = (0..2000)
        .map(|_| {
            let mut drawn: Vec<f64> = (0..200).map(|_| server.latency(0.4, &mut random)).collect();
            drawn.sort_by(f64::total_cmp);
            drawn[197]
        })
        .collect();
    let mean = p99s.iter().sum::<f64>() / 2000.0;
    let deviation = (p99s.iter().map(|p99| (p99 - mean).powi(2)).sum::<f64>() / 2000.0).sqrt() / mean;
    assert!((0.2..0.3).contains(&deviation), "{deviation}");
}
