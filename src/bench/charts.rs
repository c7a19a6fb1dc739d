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
            let name = match row.op {
                "" => format!("{}, {}", row.kind, row.kernel),
                op => format!("{op}, {}", row.kernel),
            };
            add(&mut points, name, point);
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
            title: format!("Roofline of {} thread(s)", limits.threads),
            x: "FLOP a byte of memory".into(),
            y: "GFLOP/s".into(),
            marks: Marks::LogPoints { lines: dtypes.iter().filter_map(roof).collect(), points },
        }
    };
    let used = limits.iter().filter(|limits| rows.iter().any(|row| row.n_threads == limits.threads));
    svg(&used.map(panel).collect::<Vec<_>>(), 2)
}

/// Tokens a second, of ops rows, over batch and over length; an SVG file's content.
///
/// # Errors
/// As [`svg`].
pub fn throughput(rows: &[Row]) -> Result<String> {
    let panel = |title: &str, x: &str, of: &dyn Fn(&Row) -> usize, other: &dyn Fn(&Row) -> String| {
        let mut series: Vec<Series> = Vec::new();
        for row in rows {
            let name = format!("{}, {} x{}", other(row), row.kernel, row.n_threads);
            add(&mut series, name, (of(row) as f64, row.avg_ts));
        }
        series.iter_mut().for_each(|series| series.points.sort_by(|a, b| a.0.total_cmp(&b.0)));
        let y = if rows.iter().all(|row| row.op.is_empty()) { "tokens/s" } else { "tokens or rows/s" };
        Panel { title: title.into(), x: x.into(), y: y.into(), marks: Marks::Lines(series) }
    };
    let length = |row: &Row| row.n_prompt + row.n_gen;
    // without its rows, which are the batch
    let weight = |row: &Row| row.shape.split_once('x').map_or(String::new(), |(_, rest)| rest.to_owned());
    let what = |row: &Row| if row.op.is_empty() { row.kind.to_owned() } else { format!("{} {}", row.op, weight(row)) };
    let mut panels = vec![panel("Throughput over batch", "batch", &|row| row.batch, &|row| match length(row) {
        0 => what(row),
        length => format!("{} {length}", what(row)),
    })];
    if rows.iter().any(|row| length(row) > 0) {
        panels.push(panel("Throughput over length", "tokens", &length, &|row| format!("{} x{}", what(row), row.batch)));
    }
    svg(&panels, 2)
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
        for part in ["Roofline of 2 thread(s)", "encode, one", "decode, two", "f32 roof", "GFLOP/s"] {
            assert!(text.contains(part), "{part:?} is missing in {text}");
        }
        // three points, and a mark for each of two names in the legend
        assert_eq!(text.matches("<circle").count(), 5);
        let text = throughput(&rows).unwrap();
        assert!(text.contains("Throughput over batch") && text.contains("encode 64, one x2"), "{text}");
        assert!(roofline(&[], &machine(false).limits).is_err() && throughput(&[]).is_err());
    }
}
