//! The plots, as SVG: bars for cases, lines for the number of jobs. They have a white ground and
//! dark text, so that they can be read on a page of any color, and name `sans-serif` as their font.

use std::path::Path;

use plotters::prelude::*;

/// What is drawn fails only with the file.
pub type Result = std::result::Result<(), Box<dyn std::error::Error>>;

/// Told apart also by those who see red and green as one (Okabe and Ito).
const COLORS: [RGBColor; 4] =
    [RGBColor(0, 114, 178), RGBColor(86, 180, 233), RGBColor(213, 94, 0), RGBColor(150, 150, 150)];

const TEXT: (&str, u32) = ("sans-serif", 15);
const TITLE: (&str, u32) = ("sans-serif", 18);

/// A name, and a number for each group; where there is none, nothing is drawn.
pub struct Bars<'a> {
    pub name: &'a str,
    pub numbers: Vec<Option<f64>>,
}

/// Groups of horizontal bars, the first at the top.
pub fn bars(path: &Path, title: &str, axis: &str, groups: &[&str], series: &[Bars<'_>]) -> Result {
    let height = 110 + groups.len() * (series.len() * 18 + 22);
    let area = SVGBackend::new(path, (900, height as u32)).into_drawing_area();
    area.fill(&WHITE)?;
    let numbers = || series.iter().flat_map(|bars| bars.numbers.iter().flatten());
    let most = numbers().fold(0.0, |most: f64, number| most.max(*number)) * 1.12;
    let least = numbers().fold(0.0, |least: f64, number| least.min(*number)) * 1.12;
    let end = groups.len() as f64;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, TITLE)
        .margin(12)
        .x_label_area_size(50)
        .y_label_area_size(210)
        .build_cartesian_2d(least..most, end..0.0)?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc(axis)
        .label_style(TEXT)
        .axis_desc_style(TEXT)
        .y_labels(0)
        .draw()?;
    let height = 0.8 / series.len() as f64;
    for (at, bars) in series.iter().enumerate() {
        let color = COLORS[at % COLORS.len()];
        let top = |group: usize| group as f64 + 0.1 + at as f64 * height;
        let there = || bars.numbers.iter().enumerate().filter_map(|(at, one)| Some((at, (*one)?)));
        let rectangle = |(group, number)| {
            let corners = [(0.0, top(group)), (number, top(group) + height * 0.9)];
            Rectangle::new(corners, color.filled())
        };
        chart
            .draw_series(there().map(rectangle))?
            .label(bars.name)
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], color.filled()));
        let number = |(group, number): (usize, f64)| {
            let place = (number.max(0.0), top(group) + height * 0.1);
            EmptyElement::at(place) + Text::new(format!("{number:+.0}"), (4, 0), TEXT)
        };
        chart.draw_series(there().map(number))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .label_font(TEXT)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .draw()?;
    for (group, name) in groups.iter().enumerate() {
        let (left, _) = chart.backend_coord(&(least, group as f64 + 0.5));
        let (_, middle) = chart.backend_coord(&(least, group as f64 + 0.4));
        area.draw(&Text::new((*name).to_owned(), (left - 208, middle), TEXT))?;
    }
    area.present()?;
    Ok(())
}

/// A name, and a number for each number of jobs.
pub struct Line {
    pub name: String,
    pub points: Vec<(f64, f64)>,
}

/// Charts side by side, each with its title: a time in µs by the number of jobs.
pub fn lines(path: &Path, charts: &[(&str, Vec<Line>)]) -> Result {
    let area = SVGBackend::new(path, (480 * charts.len() as u32, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    for (area, (title, lines)) in area.split_evenly((1, charts.len())).iter().zip(charts) {
        let points = || lines.iter().flat_map(|line| line.points.iter());
        let most = points().fold(0.0, |most: f64, (_, time)| most.max(*time));
        let last = points().fold(1000.0, |last: f64, (jobs, _)| last.max(*jobs));
        let mut chart = ChartBuilder::on(area)
            .caption(title, TITLE)
            .margin(12)
            .x_label_area_size(50)
            .y_label_area_size(60)
            // Above the lines is room for their names.
            .build_cartesian_2d((800.0..last * 1.25).log_scale(), 0.0..most * 1.45)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .x_desc("jobs that run")
            .y_desc("µs per operation")
            .x_label_formatter(&|jobs| crate::measure::count(jobs.round() as usize))
            .y_label_formatter(&|time| format!("{time:.1}"))
            .label_style(TEXT)
            .axis_desc_style(TEXT)
            .draw()?;
        for (at, line) in lines.iter().enumerate() {
            let color = COLORS[at % COLORS.len()];
            let dots = line.points.iter().map(|point| Circle::new(*point, 4, color.filled()));
            chart.draw_series(dots)?;
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), color.stroke_width(2)))?
                .label(line.name.as_str())
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], color.stroke_width(3))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .label_font(TEXT)
            .background_style(WHITE)
            .border_style(BLACK.mix(0.3))
            .draw()?;
    }
    area.present()?;
    Ok(())
}
