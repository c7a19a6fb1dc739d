//! Rows as drawings: a roofline, and throughput over batch and length.

use super::limits::Limits;
use super::report::Row;
use crate::chart::{Marks, Panel, Series, svg};
use crate::dtype::Dtype;
use crate::error::Result;

/// Operations a second over operations a byte, a panel for each number of threads: every row is a point, named by its
/// kernel; the roofs are read bandwidth and the peak of each type of weights. An SVG file's content.
///
/// # Errors
/// As [`svg`].
pub fn roofline(rows: &[Row], limits: &[Limits]) -> Result<String> {
    let panel = |limits: &Limits| {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.n_threads == limits.threads).collect();
        let intensity = |row: &Row| row.flops / row.bytes;
        let mut dtypes: Vec<Dtype> = Vec::new();
        let mut points: Vec<Series> = Vec::new();
        for row in &rows {
            if !dtypes.contains(&row.dtype) {
                dtypes.push(row.dtype);
            }
            let point = (intensity(row), row.flops_per_second() / 1e9);
            add(&mut points, row.kernel.into(), point);
        }
        let roof = |dtype: &Dtype| {
            let peak = limits.peak(*dtype)?;
            let ridge = peak.rate / limits.read;
            let least = rows.iter().map(|row| intensity(row)).fold(ridge / 4.0, f64::min);
            let most = rows.iter().map(|row| intensity(row)).fold(ridge * 4.0, f64::max);
            let points = [least, ridge, most].map(|x| (x, (x * limits.read).min(peak.rate) / 1e9));
            Some(Series { name: format!("{dtype} roof"), points: points.to_vec() })
        };
        Panel {
            title: format!("Roofline, threads: {}", limits.threads),
            x: "FLOP a byte of memory".into(),
            y: "GFLOP/s".into(),
            marks: Marks::LogPoints { lines: dtypes.iter().filter_map(roof).collect(), points },
        }
    };
    let used = limits.iter().filter(|limits| rows.iter().any(|row| row.n_threads == limits.threads));
    svg(&used.map(panel).collect::<Vec<_>>(), 2)
}

/// Tokens a second, of ops rows, over batch and over length: a panel for each case where they vary, a line for each kernel
/// and number of threads. An SVG file's content.
///
/// # Errors
/// As [`svg`].
pub fn throughput(rows: &[Row]) -> Result<String> {
    let length = |row: &Row| row.n_prompt + row.n_gen;
    // an op's shape begins with its batch
    let weight = |row: &Row| row.shape.split_once('x').map_or(String::new(), |(_, rest)| format!(" {rest}"));
    let what = |row: &Row| match row.op {
        "" => row.kind.to_owned(),
        op => op.to_owned(),
    };
    let batches = panels(rows.iter(), "batch", &|row| row.batch, &|row| match row.op {
        "" => format!("{} {}", what(row), length(row)),
        _ => what(row) + &weight(row),
    });
    let with_length = rows.iter().filter(|row| length(row) > 0);
    let lengths = panels(with_length, "tokens", &length, &|row| format!("{}, batch {}", what(row), row.batch));
    let varies = |panel: &Panel| match &panel.marks {
        Marks::Lines(series) => {
            let mut xs = series.iter().flat_map(|series| &series.points).map(|point| point.0);
            xs.next().is_some_and(|first| xs.any(|x| x != first))
        }
        _ => false,
    };
    let varying: Vec<Panel> = batches.iter().chain(&lengths).filter(|panel| varies(panel)).cloned().collect();
    svg(if varying.is_empty() { &batches } else { &varying }, 3)
}

/// A panel for each title, over `x`.
fn panels<'a>(
    rows: impl Iterator<Item = &'a Row>,
    x: &str,
    of: &dyn Fn(&Row) -> usize,
    title: &dyn Fn(&Row) -> String,
) -> Vec<Panel> {
    let mut panels: Vec<(Panel, Vec<Series>)> = Vec::new();
    for row in rows {
        let title = title(row);
        let place = panels.iter().position(|(panel, _)| panel.title == title).unwrap_or_else(|| {
            let y = if row.op.is_empty() { "tokens/s" } else { "rows or tokens/s" };
            let marks = Marks::Lines(Vec::new());
            panels.push((Panel { title, x: x.into(), y: y.into(), marks }, Vec::new()));
            panels.len() - 1
        });
        let name = format!("{}, {} thread{}", row.kernel, row.n_threads, if row.n_threads == 1 { "" } else { "s" });
        add(&mut panels[place].1, name, (of(row) as f64, row.avg_ts));
    }
    let finish = |(panel, mut series): (Panel, Vec<Series>)| {
        series.iter_mut().for_each(|series| series.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
        Panel { marks: Marks::Lines(series), ..panel }
    };
    panels.into_iter().map(finish).collect()
}

/// Adds a point to the series of this name.
fn add(series: &mut Vec<Series>, name: String, point: (f64, f64)) {
    match series.iter_mut().find(|series| series.name == name) {
        Some(series) => series.points.push(point),
        None => series.push(Series { name, points: vec![point] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::report::tests::{machine, row};

    #[test]
    fn every_kernel_is_drawn() {
        let rows = [row("encode", "one", &[2e6]), row("decode", "two", &[3e6]), row("encode", "one", &[5e6])];
        let text = roofline(&rows, &machine(false).limits).unwrap();
        for part in ["Roofline, threads: 2", "\none\n", "\ntwo\n", "f32 roof", "GFLOP/s"] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
        // three points, and a mark for each of two names in the legend
        assert_eq!(text.matches("<circle").count(), 5);
        // nothing varies: a point each
        let text = throughput(&rows).unwrap();
        assert!(text.contains("encode 64") && text.contains("decode 64"), "{text}");
        let longer = Row { n_prompt: 128, ..row("encode", "one", &[4e6]) };
        let other = Row { kernel: "two", ..longer.clone() };
        let text = throughput(&[&rows[..], &[longer, other]].concat()).unwrap();
        assert!(text.contains("encode, batch 1") && !text.contains("decode"), "{text}");
        assert!(text.contains("one, 2 threads") && text.contains("two, 2 threads"), "{text}");
        assert!(roofline(&[], &machine(false).limits).is_err() && throughput(&[]).is_err());
    }
}
