//! A plot of horizontal bars, one a contestant.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::figures::grouped;

const WIDTH: i32 = 800;
const HEAD_HEIGHT: i32 = 40;
const FOOT_HEIGHT: i32 = 30;
const BAR_HEIGHT: i32 = 16;
const STEP: i32 = 24;
/// Where the bars begin, and where the longest ends: its figure stands behind it.
const BARS_X: i32 = 370;
const BARS_END_X: i32 = 720;
const MARGIN: i32 = 12;
const FONT: &str = "sans-serif";

const INK: RGBColor = RGBColor(0x24, 0x29, 0x2f);
const BLUE: RGBColor = RGBColor(0x1f, 0x6f, 0xb4);
const GREY: RGBColor = RGBColor(0x9a, 0xa4, 0xaf);

/// A bar, from the top.
pub(crate) struct Bar {
    pub(crate) label: String,
    pub(crate) value: f64,
    /// One of ours.
    pub(crate) stands_out: bool,
}

/// Draws the bars into `file`.
pub(crate) fn draw(file: &Path, title: &str, note: &str, bars: &[Bar]) {
    try_draw(file, title, note, bars).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    eprintln!("written: {}", file.display());
}

fn try_draw(file: &Path, title: &str, note: &str, bars: &[Bar]) -> Result<(), Box<dyn std::error::Error>> {
    let bars_height = STEP * i32::try_from(bars.len())?;
    let height = HEAD_HEIGHT + bars_height + FOOT_HEIGHT;
    let root = SVGBackend::new(file, (u32::try_from(WIDTH)?, u32::try_from(height)?)).into_drawing_area();
    // Without it, text would be black on the dark background of somebody's browser.
    root.fill(&WHITE)?;
    let text = |size: i32, horizontal: HPos| {
        (FONT, size).into_font().color(&INK).pos(Pos::new(horizontal, VPos::Center))
    };
    root.draw(&Text::new(title.to_owned(), (MARGIN, HEAD_HEIGHT / 2), text(16, HPos::Left)))?;
    let longest = bars.iter().map(|bar| bar.value).fold(0.0, f64::max).max(1.0);
    let end_x = |value: f64| BARS_X + (f64::from(BARS_END_X - BARS_X) * value / longest).round() as i32;

    for (place, bar) in (0..).zip(bars) {
        let middle = HEAD_HEIGHT + STEP * place + STEP / 2;
        let (top, bottom) = (middle - BAR_HEIGHT / 2, middle + BAR_HEIGHT / 2);
        let color = if bar.stands_out { BLUE } else { GREY };
        // Something is to be seen of the smallest too.
        let end = end_x(bar.value).max(BARS_X + 1);
        root.draw(&Rectangle::new([(BARS_X, top), (end, bottom)], color.filled()))?;
        root.draw(&Text::new(bar.label.clone(), (BARS_X - 8, middle), text(13, HPos::Right)))?;
        root.draw(&Text::new(grouped(bar.value), (end + 6, middle), text(13, HPos::Left)))?;
    }
    let foot = HEAD_HEIGHT + bars_height + FOOT_HEIGHT / 2;
    root.draw(&Text::new(note.to_owned(), (MARGIN, foot), text(12, HPos::Left)))?;
    root.present()?;
    Ok(())
}
