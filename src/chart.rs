//! Charts as SVG: bars, lines, and points between logarithmic axes, in panels side by side.
//!
//! The text stays text, so that it can be searched and scales with the drawing; the reader's own sans-serif is used.

use std::fmt::Display;
use std::ops::Range;

use plotters::coord::Shift;
use plotters::coord::ranged1d::{DefaultFormatting, KeyPointHint, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::error::{Error, Result};

/// Colours that also differ for most colour-blind readers (Okabe and Ito 2008), the palest left out.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
/// Size of a panel in pixels.
const PANEL: (u32, u32) = (520, 380);
const TITLE: u32 = 18;
const LABEL: u32 = 14;
/// Width of a bar, of the distance between two.
const BAR: f64 = 0.8;
/// More bars have no room for their values.
const MOST_VALUES: usize = 16;

/// A named sequence of points.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// `(x, y)`, in the order in which they are joined. What is not finite is left out.
    pub points: Vec<(f64, f64)>,
}

/// What a panel shows.
#[derive(Clone, Debug, PartialEq)]
pub enum Marks {
    /// A bar for each name, with its value over it unless there are many.
    Bars(Vec<(String, f64)>),
    /// A line for each series; a legend where there are several.
    Lines(Vec<Series>),
    /// Points under lines, both axes logarithmic, so that what is not above 0 is left out; a legend of all.
    LogPoints {
        /// Drawn in grey.
        lines: Vec<Series>,
        /// A colour for each series.
        points: Vec<Series>,
    },
}

/// One drawing with its axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// Above the drawing.
    pub title: String,
    /// Below the horizontal axis.
    pub x: String,
    /// Beside the vertical axis, with the unit.
    pub y: String,
    /// What is drawn.
    pub marks: Marks,
}

/// Draws panels side by side, at most `columns` in a row; returns the SVG file's content.
///
/// # Errors
/// [`Error::Input`] for no panels, no columns, and a panel without a finite value.
pub fn svg(panels: &[Panel], columns: usize) -> Result<String> {
    if panels.is_empty() || columns == 0 {
        return Err(Error::input("chart", format!("{} panels in {columns} columns draw nothing", panels.len())));
    }
    let columns = columns.min(panels.len());
    let rows = panels.len().div_ceil(columns);
    let mut out = String::new();
    let root = SVGBackend::with_string(&mut out, (PANEL.0 * columns as u32, PANEL.1 * rows as u32)).into_drawing_area();
    root.fill(&WHITE).map_err(failed)?;
    for (panel, area) in panels.iter().zip(root.split_evenly((rows, columns))) {
        match &panel.marks {
            Marks::Bars(bars) => draw_bars(&area, panel, bars)?,
            Marks::Lines(series) => draw_lines(&area, panel, series)?,
            Marks::LogPoints { lines, points } => draw_points(&area, panel, lines, points)?,
        }
    }
    root.present().map_err(failed)?;
    drop(root);
    Ok(out)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn failed(e: impl Display) -> Error {
    Error::Unsupported(format!("the chart cannot be drawn: {e}"))
}

/// The range of the finite ones of `values`, with room around it; `None` if there are none.
fn range(values: impl Iterator<Item = f64>, room: f64) -> Option<Range<f64>> {
    let (low, high) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
    if low > high {
        return None;
    }
    let room = if high > low { room * (high - low) } else { low.abs().max(1.0) * 0.5 };
    Some(low - room..high + room)
}

fn no_values(panel: &Panel) -> Error {
    Error::input("chart", format!("{:?} has no finite value to draw", panel.title))
}

fn builder<'a, 'b>(area: &'a Area<'b>, panel: &Panel) -> ChartBuilder<'a, 'b, SVGBackend<'b>> {
    let mut builder = ChartBuilder::on(area);
    builder
        .caption(&panel.title, ("sans-serif", TITLE))
        .margin(14)
        .margin_right(24)
        .x_label_area_size(46)
        .y_label_area_size(62);
    builder
}

/// A number with as many digits as its size makes worth reading.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        a if !(1e-3..1e5).contains(&a) => format!("{value:.1e}"),
        a if a >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        a if a >= 10.0 => format!("{value:.1}"),
        a if a >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// A label of an axis of this range: three digits more than the range has, without zeros at the end.
fn tick(value: f64, range: &Range<f64>) -> String {
    let size = range.start.abs().max(range.end.abs());
    if value.abs() < 1e-9 * size {
        return "0".into();
    }
    let trim = |digits: &str| match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if (1e-2..1e6).contains(&size) {
        return trim(&format!("{value:.*}", if size < 1.0 { 4 } else { 3 }));
    }
    let text = format!("{value:.3e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    format!("{}e{exponent}", trim(digits))
}

/// An axis of so many bars, 1 apart, the first at 0, each with its label.
struct Slots(usize);

impl Ranged for Slots {
    type FormatOption = DefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (start, end): (i32, i32)) -> i32 {
        start + ((value + 0.5) / self.0 as f64 * f64::from(end - start)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        (0..self.0).map(|i| i as f64).collect()
    }

    fn range(&self) -> Range<f64> {
        -0.5..self.0 as f64 - 0.5
    }
}

fn draw_bars(area: &Area<'_>, panel: &Panel, bars: &[(String, f64)]) -> Result<()> {
    let values = || bars.iter().map(|(_, value)| *value).filter(|value| value.is_finite());
    let range = range(values().chain(values().next().map(|_| 0.0)), 0.0).ok_or_else(|| no_values(panel))?;
    let room = 0.12 * (range.end - range.start);
    let (low, high) = (if range.start < 0.0 { range.start - room } else { 0.0 }, range.end + room);
    let mut chart = builder(area, panel).build_cartesian_2d(Slots(bars.len()), low..high).map_err(failed)?;
    let name = |at: &f64| bars.get(at.round() as usize).map_or(String::new(), |(name, _)| name.clone());
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(WHITE)
        .x_labels(bars.len())
        .x_label_formatter(&name)
        .y_label_formatter(&|y| tick(*y, &(low..high)))
        .x_desc(&panel.x)
        .y_desc(&panel.y)
        .label_style(("sans-serif", LABEL))
        .axis_desc_style(("sans-serif", LABEL))
        .draw()
        .map_err(failed)?;
    let finite = || bars.iter().enumerate().filter(|(_, (_, value))| value.is_finite());
    let bar = |(i, (_, value)): (usize, &(String, f64))| {
        let middle = i as f64;
        Rectangle::new([(middle - BAR / 2.0, 0.0), (middle + BAR / 2.0, *value)], COLOURS[0].filled())
    };
    chart.draw_series(finite().map(bar)).map_err(failed)?;
    let style = ("sans-serif", LABEL).into_font().into_text_style(area).pos(Pos::new(HPos::Center, VPos::Bottom));
    let text = |(i, (_, value)): (usize, &(String, f64))| {
        EmptyElement::at((i as f64, value.max(0.0))) + Text::new(short(*value), (0, -3), style.clone())
    };
    chart.draw_series(finite().filter(|_| bars.len() <= MOST_VALUES).map(text)).map_err(failed)?;
    Ok(())
}

fn draw_lines(area: &Area<'_>, panel: &Panel, series: &[Series]) -> Result<()> {
    let finite = |series: &Series| -> Vec<(f64, f64)> {
        series.points.iter().copied().filter(|(x, y)| x.is_finite() && y.is_finite()).collect()
    };
    let lines: Vec<Vec<(f64, f64)>> = series.iter().map(finite).collect();
    let points = || lines.iter().flatten();
    let x = range(points().map(|p| p.0), 0.0).ok_or_else(|| no_values(panel))?;
    let y = range(points().map(|p| p.1), 0.06).ok_or_else(|| no_values(panel))?;
    let mut chart = builder(area, panel).build_cartesian_2d(x.clone(), y.clone()).map_err(failed)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(6)
        .y_labels(8)
        .x_label_formatter(&|at| tick(*at, &x))
        .y_label_formatter(&|at| tick(*at, &y))
        .x_desc(&panel.x)
        .y_desc(&panel.y)
        .label_style(("sans-serif", LABEL))
        .axis_desc_style(("sans-serif", LABEL))
        .draw()
        .map_err(failed)?;
    for ((series, points), colour) in series.iter().zip(lines).zip(COLOURS.into_iter().cycle()) {
        let single = points.len() == 1;
        let dots = points.clone().into_iter().filter(|_| single).map(|point| Circle::new(point, 3, colour.filled()));
        chart.draw_series(dots).map_err(failed)?;
        let line = chart.draw_series(LineSeries::new(points, colour.stroke_width(2))).map_err(failed)?;
        line.label(&series.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    if series.len() > 1 {
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .border_style(BLACK.mix(0.3))
            .label_font(("sans-serif", LABEL))
            .legend_area_size(26)
            .draw()
            .map_err(failed)?;
    }
    Ok(())
}

fn draw_points(area: &Area<'_>, panel: &Panel, lines: &[Series], points: &[Series]) -> Result<()> {
    let good = |&(x, y): &(f64, f64)| x > 0.0 && y > 0.0 && x.is_finite() && y.is_finite();
    let all = || lines.iter().chain(points).flat_map(|series| &series.points).copied().filter(good);
    let log_range = |of: &dyn Fn((f64, f64)) -> f64| {
        let range = range(all().map(|point| of(point).log10()), 0.06).ok_or_else(|| no_values(panel))?;
        Ok::<_, Error>((10f64.powf(range.start)..10f64.powf(range.end)).log_scale())
    };
    let (x, y) = (log_range(&|point| point.0)?, log_range(&|point| point.1)?);
    let mut chart = builder(area, panel).build_cartesian_2d(x, y).map_err(failed)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels(8)
        .y_labels(8)
        .x_label_formatter(&|x| short(*x))
        .y_label_formatter(&|y| short(*y))
        .x_desc(&panel.x)
        .y_desc(&panel.y)
        .label_style(("sans-serif", LABEL))
        .axis_desc_style(("sans-serif", LABEL))
        .draw()
        .map_err(failed)?;
    for (i, series) in lines.iter().enumerate() {
        let style = BLACK.mix(0.7 / (1.0 + i as f64)).stroke_width(2);
        let line = LineSeries::new(series.points.iter().copied().filter(good), style);
        let legend = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style);
        chart.draw_series(line).map_err(failed)?.label(&series.name).legend(legend);
    }
    for (series, colour) in points.iter().zip(COLOURS.into_iter().cycle()) {
        let dots = series.points.iter().copied().filter(good).map(|point| Circle::new(point, 4, colour.filled()));
        let legend = move |(x, y)| Circle::new((x + 9, y), 4, colour.filled());
        chart.draw_series(dots).map_err(failed)?.label(&series.name).legend(legend);
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", LABEL))
        .legend_area_size(26)
        .draw()
        .map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(marks: Marks) -> Panel {
        Panel { title: "A <title> & more".into(), x: "step".into(), y: "nats".into(), marks }
    }

    fn bars(values: &[f64]) -> Panel {
        panel(Marks::Bars(values.iter().enumerate().map(|(i, &v)| (format!("layer {i}"), v)).collect()))
    }

    fn lines(points: &[(f64, f64)]) -> Panel {
        let series = |name: &str| Series { name: name.into(), points: points.to_vec() };
        panel(Marks::Lines(vec![series("train"), series("valid")]))
    }

    #[test]
    fn all_that_is_to_be_read_is_text() {
        let svg = svg(&[bars(&[1.5, 30.25]), lines(&[(0.0, 3.0), (10.0, f64::NAN), (20.0, 1.0)])], 2).unwrap();
        for text in
            ["A &lt;title&gt; &amp; more", "step", "nats", "layer 0", "layer 1", "1.50", "30.2", "train", "valid"]
        {
            assert!(svg.contains(text), "{text:?} is missing in {svg}");
        }
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>") && !svg.contains("NaN"), "{svg}");
        assert!(svg.contains(r#"width="1040" height="380""#), "{svg}");
    }

    #[test]
    fn awkward_values_are_drawn_or_refused() {
        for good in [
            bars(&[0.0]),
            bars(&[-1.0, 2.0]),
            bars(&[f64::NAN, 1.0]),
            bars(&[-2.0]),
            lines(&[(3.0, 4.0)]),
            lines(&[(0.0, 1e300), (1.0, -1e300)]),
        ] {
            assert!(!svg(std::slice::from_ref(&good), 1).unwrap().contains("NaN"), "{good:?}");
        }
        let log = |points: &[(f64, f64)]| {
            let series = vec![Series { name: "kernel".into(), points: points.to_vec() }];
            panel(Marks::LogPoints { lines: Vec::new(), points: series })
        };
        let drawn = svg(&[log(&[(0.0, 1.0), (1e-3, 1e9), (2.0, f64::NAN)])], 1).unwrap();
        assert!(!drawn.contains("NaN") && drawn.matches("<circle").count() == 2, "{drawn}");
        for bad in [bars(&[]), bars(&[f64::NAN]), lines(&[]), log(&[(-1.0, 1.0)]), lines(&[(f64::INFINITY, 0.0)])] {
            assert!(svg(std::slice::from_ref(&bad), 1).unwrap_err().to_string().contains("no finite value"), "{bad:?}");
        }
        assert!(svg(&[], 1).is_err() && svg(&[bars(&[1.0])], 0).is_err());
    }
}
