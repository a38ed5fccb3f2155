//! The plot: rate, p99 and lag over time, one below the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::steps::Phases;
use crate::trial::Size;
use crate::watch::Sample;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/img/throttle.svg");
/// Where that of a trial goes.
const TRIAL_FILE: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/throttle.svg");

const WIDTH: u32 = 900;
const PANEL_HEIGHT: u32 = 210;
const HEAD_HEIGHT: u32 = 26;
const FOOT_HEIGHT: u32 = 34;
/// Where the axis is, from the left edge, and the labels of the lines, from the right one.
const AXIS_X: i32 = 52;
const LABEL_WIDTH: i32 = 92;
const FONT: &str = "sans-serif";

const INK: RGBColor = RGBColor(0x24, 0x29, 0x2f);
const FAINT: RGBColor = RGBColor(0xe4, 0xe7, 0xeb);
const BAND: RGBColor = RGBColor(0xfb, 0xee, 0xdc);
const BLUE: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const LIGHT_BLUE: RGBColor = RGBColor(0x8f, 0xbf, 0xe6);
const RED: RGBColor = RGBColor(0xc6, 0x28, 0x28);

/// Of the default configuration.
const LAG_TARGET_SECONDS: f64 = 1.0;

/// What is drawn.
pub(crate) struct Drawing<'a> {
    pub(crate) phases: &'a Phases,
    pub(crate) samples: &'a [Sample],
}

/// One line of a panel.
struct Line {
    label: &'static str,
    color: RGBColor,
    /// Seconds, and the value where there is one.
    points: Vec<(f64, Option<f64>)>,
}

/// Draws into the documentation, or for a trial beside what was built.
pub(crate) fn draw(size: Size, drawing: &Drawing<'_>) {
    let file = if size.reason_to_discard.is_some() { PathBuf::from(TRIAL_FILE) } else { PathBuf::from(FILE) };
    fs::create_dir_all(file.parent().expect("a file is in a folder")).expect("the folder can be written to");
    try_draw(&file, drawing).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    eprintln!("written: {}", file.display());
}

fn try_draw(file: &Path, drawing: &Drawing<'_>) -> Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::new(file, (WIDTH, 3 * PANEL_HEIGHT + FOOT_HEIGHT)).into_drawing_area();
    // Without it, text would be black on the dark background of somebody's browser.
    root.fill(&WHITE)?;
    let (panels, foot) = root.split_vertically(3 * PANEL_HEIGHT);
    let panels = panels.split_evenly((3, 1));
    let begun = drawing.phases.begun;
    let seconds = |sample: &Sample| (sample.at - begun).as_secs_f64();
    let line = |label, color, value: &dyn Fn(&Sample) -> Option<f64>| Line {
        label,
        color,
        points: drawing.samples.iter().map(|sample| (seconds(sample), value(sample))).collect(),
    };
    let walked = Line { label: "walked", color: LIGHT_BLUE, points: walked(drawing.samples, begun) };
    let allowed = line("allowed", BLUE, &|sample| Some(sample.rows_per_second_allowed? / 1e3));
    panel(&panels[0], drawing, "Rate, thousand rows a second", &[walked, allowed])?;

    let p99 = line("p99", BLUE, &|sample| Some(1e3 * sample.p99_seconds?));
    let limit = line("limit", RED, &|sample| Some(1e3 * sample.p99_limit_seconds?));
    panel(&panels[1], drawing, "Latency of the daemon's own probes, milliseconds", &[limit, p99])?;

    let lag = line("lag", BLUE, &|sample| sample.lag_seconds);
    let target = line("target", RED, &|_| Some(LAG_TARGET_SECONDS));
    panel(&panels[2], drawing, "Lag of the replica, seconds", &[target, lag])?;
    let phases = drawing.phases;
    let note = format!(
        "Seconds after the job's submission. Shaded: a heavy load beside the light one, from {:.0} s to {:.0} s.",
        (phases.heavy - begun).as_secs_f64(),
        (phases.light_again - begun).as_secs_f64()
    );
    foot.draw(&Text::new(note, (AXIS_X, 8), (FONT, 13).into_font().color(&INK)))?;
    root.present()?;
    Ok(())
}

/// Thousands of rows a second really walked, over the two seconds before each sample.
fn walked(samples: &[Sample], begun: Instant) -> Vec<(f64, Option<f64>)> {
    const SAMPLES: usize = 8;
    samples
        .windows(SAMPLES + 1)
        .map(|window| {
            let (first, last) = (&window[0], &window[SAMPLES]);
            let rate = (last.rows_scanned - first.rows_scanned) / (last.at - first.at).as_secs_f64();
            ((last.at - begun).as_secs_f64(), Some(rate / 1e3))
        })
        .collect()
}

fn panel(
    area: &DrawingArea<SVGBackend<'_>, Shift>,
    drawing: &Drawing<'_>,
    title: &str,
    lines: &[Line],
) -> Result<(), Box<dyn std::error::Error>> {
    let phases = drawing.phases;
    let seconds = |instant: Instant| (instant - phases.begun).as_secs_f64();
    let text = |size: i32| (FONT, size).into_font().color(&INK);
    let (head, body) = area.split_vertically(HEAD_HEIGHT);
    head.draw(&Text::new(title.to_owned(), (AXIS_X, 9), text(15)))?;
    for (place, line) in (1..).zip(lines.iter().rev()) {
        let x = i32::try_from(WIDTH)? - place * LABEL_WIDTH;
        head.draw(&PathElement::new([(x, 16), (x + 18, 16)], line.color.stroke_width(2)))?;
        head.draw(&Text::new(line.label, (x + 23, 9), text(13)))?;
    }

    let highest = lines
        .iter()
        .flat_map(|line| line.points.iter().filter_map(|(_, value)| *value))
        .filter(|value| value.is_finite())
        .fold(0.0, f64::max);
    let height = (1.1 * highest).max(1e-3);
    let mut chart = ChartBuilder::on(&body)
        .margin_right(16)
        .x_label_area_size(24)
        .y_label_area_size(AXIS_X)
        .build_cartesian_2d(0.0..seconds(phases.ended), 0.0..height)?;
    chart.draw_series(std::iter::once(Rectangle::new(
        [(seconds(phases.heavy), 0.0), (seconds(phases.light_again), height)],
        BAND.filled(),
    )))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE.mix(0.0))
        .bold_line_style(FAINT)
        .axis_style(INK)
        .label_style(text(13))
        .y_labels(5)
        .x_labels(12)
        .x_label_formatter(&|second| format!("{second:.0} s"))
        .y_label_formatter(&|value| if height < 5.0 { format!("{value:.1}") } else { format!("{value:.0}") })
        .draw()?;
    for line in lines {
        // A gap where nothing was read, and no line across it.
        for run in line.points.split(|(_, value)| value.is_none_or(|value| !value.is_finite())) {
            let points = run.iter().filter_map(|(second, value)| Some((*second, (*value)?)));
            chart.draw_series(LineSeries::new(points, line.color.stroke_width(2)))?;
        }
    }
    Ok(())
}
