//! The plots, as SVG: bars for cases, lines for the number of jobs. They have a white ground and
//! dark text, so that they can be read on a page of any color, and name `sans-serif` as their font.

use std::path::Path;

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

/// What is drawn fails only with the file.
pub type Result = std::result::Result<(), Box<dyn std::error::Error>>;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Told apart also by those who see red and green as one (Okabe and Ito).
const COLORS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(86, 180, 233), RGBColor(213, 94, 0), RGBColor(150, 150, 150)];

const GRID: RGBColor = RGBColor(221, 221, 221);
const TEXT: (&str, u32) = ("sans-serif", 14);
const TITLE: (&str, u32) = ("sans-serif", 17);

/// The height of the names above the charts.
const NAMES: u32 = 36;

/// A name, and a number for each group; where there is none, nothing is drawn.
pub struct Bars<'a> {
    pub name: &'a str,
    pub numbers: Vec<Option<f64>>,
}

/// Groups of horizontal bars, the first at the top.
pub fn bars(path: &Path, title: &str, axis: &str, groups: &[&str], series: &[Bars<'_>]) -> Result {
    let height = 130 + groups.len() * (series.len() * 18 + 22);
    let whole = SVGBackend::new(path, (900, height as u32)).into_drawing_area();
    whole.fill(&WHITE)?;
    let (head, area) = whole.split_vertically(NAMES);
    names(&head, series.iter().map(|bars| bars.name))?;
    let numbers = || series.iter().flat_map(|bars| bars.numbers.iter().flatten());
    let most = numbers().fold(0.0, |most: f64, number| most.max(*number)) * 1.12;
    let least = numbers().fold(0.0, |least: f64, number| least.min(*number)) * 1.12;
    let end = groups.len() as f64;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, TITLE)
        .margin(12)
        .x_label_area_size(50)
        .y_label_area_size(190)
        .build_cartesian_2d(least..most, end..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .bold_line_style(GRID)
        .light_line_style(TRANSPARENT)
        .x_desc(axis)
        .x_label_formatter(&|number| format!("{number:.0}"))
        .label_style(TEXT)
        .axis_desc_style(TEXT)
        .y_labels(0)
        .draw()?;
    let height = 0.8 / series.len() as f64;
    for (at, (bars, color)) in series.iter().zip(COLORS.iter().cycle()).enumerate() {
        let top = |group: usize| group as f64 + 0.1 + at as f64 * height;
        let there = || bars.numbers.iter().enumerate().filter_map(|(at, one)| Some((at, (*one)?)));
        chart.draw_series(there().map(|(group, number)| {
            let corners = [(0.0, top(group)), (number, top(group) + height * 0.9)];
            Rectangle::new(corners, color.filled())
        }))?;
        chart.draw_series(there().map(|(group, number)| {
            let place = (number.max(0.0), top(group) + height * 0.45);
            EmptyElement::at(place) + Text::new(format!("{number:+.0}"), (5, 0), beside())
        }))?;
    }
    for (group, name) in groups.iter().enumerate() {
        let (left, middle) = chart.backend_coord(&(least, group as f64 + 0.5));
        // As seen from the area's own corner.
        let place = (left - 190, middle - NAMES as i32);
        area.draw(&Text::new((*name).to_owned(), place, beside()))?;
    }
    whole.present()?;
    Ok(())
}

/// A name, and a number for each number of jobs.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// Charts of the same series side by side, each with its title: a time in µs by the number of jobs.
pub fn lines(path: &Path, charts: &[(&str, Vec<Line>)]) -> Result {
    let size = (480 * charts.len() as u32, 440);
    let whole = SVGBackend::new(path, size).into_drawing_area();
    whole.fill(&WHITE)?;
    let (head, area) = whole.split_vertically(NAMES);
    let series = charts.first().into_iter().flat_map(|(_, lines)| lines);
    names(&head, series.map(|line| line.name.as_str()))?;
    for (area, (title, lines)) in area.split_evenly((1, charts.len())).iter().zip(charts) {
        let points = || lines.iter().flat_map(|line| line.points.iter());
        let most = points().fold(0.0, |most: f64, (_, time)| most.max(*time));
        let last = points().fold(1000.0, |last: f64, (jobs, _)| last.max(*jobs));
        let mut chart = ChartBuilder::on(area)
            .caption(title, TITLE)
            .margin(12)
            .x_label_area_size(50)
            .y_label_area_size(60)
            .build_cartesian_2d((800.0..last * 1.25).log_scale(), 0.0..most * 1.08)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID)
            .light_line_style(TRANSPARENT)
            .x_desc("jobs that run")
            .y_desc("µs")
            .x_label_formatter(&|jobs| crate::measure::count(jobs.round() as usize))
            .y_label_formatter(&|time| format!("{time:.1}"))
            .label_style(TEXT)
            .axis_desc_style(TEXT)
            .draw()?;
        for (line, color) in lines.iter().zip(COLORS.iter().cycle()) {
            // Each piece by itself: some programs fill a line of several.
            let pieces = line.points.windows(2);
            let pieces = pieces.map(|ends| PathElement::new(ends.to_vec(), color.stroke_width(2)));
            chart.draw_series(pieces)?;
            let dots = line.points.iter().map(|point| Circle::new(*point, 4, color.filled()));
            chart.draw_series(dots)?;
        }
    }
    whole.present()?;
    Ok(())
}

/// The series' names in a row, each with its color.
fn names<'a>(area: &Area<'_>, names: impl Iterator<Item = &'a str>) -> Result {
    let mut left = 20;
    for (name, color) in names.zip(COLORS.iter().cycle()) {
        area.draw(&Rectangle::new([(left, 12), (left + 14, 26)], color.filled()))?;
        area.draw(&Text::new(name.to_owned(), (left + 21, 19), beside()))?;
        left += 60 + 8 * name.chars().count() as i32;
    }
    Ok(())
}

/// Text whose left end stands at its place, half above and half below.
fn beside() -> TextStyle<'static> {
    TEXT.into_text_style(&(900, 900)).pos(Pos::new(HPos::Left, VPos::Center))
}
