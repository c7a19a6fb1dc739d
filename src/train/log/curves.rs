//! A run's log as curves.

use super::Record;
use crate::chart::{Marks, Panel, Series, svg};
use crate::error::Result;

/// Reconstruction and KL, the KL of each layer, and accuracy on the validation data, by step; an SVG file's content.
///
/// # Errors
/// There is nothing to draw.
pub fn curves(records: &[Record]) -> Result<String> {
    let series = |name: &str, value: &dyn Fn(&Record) -> Option<f64>| Series {
        name: name.into(),
        points: records.iter().filter_map(|record| Some((record.step as f64, value(record)?))).collect(),
    };
    let measured = |name: &'static str| move |record: &Record| record.valid.get(name).copied();
    let layers = records.iter().map(|record| record.kl_layers.len()).max().unwrap_or(0);
    let of_layer =
        |l: usize| series(&format!("layer {}", l + 1), &move |record: &Record| record.kl_layers.get(l).copied());
    let panel = |title: &str, y: &str, mut lines: Vec<Series>| {
        lines.retain(|line| line.points.iter().any(|(_, y)| y.is_finite()));
        Panel { title: title.into(), x: "step".into(), y: y.into(), marks: Marks::Lines(lines) }
    };
    let mut panels = vec![
        panel(
            "Reconstruction and KL",
            "as the objective has them, nats",
            vec![
                series("reconstruction", &|record| Some(record.rec)),
                series("KL", &|record| Some(record.kl)),
                series("KL, validation", &measured("kl")),
            ],
        ),
        panel("KL of each layer", "nats a sentence", (0..layers).map(of_layer).collect()),
        panel(
            "Token accuracy at the means, validation",
            "share of tokens",
            vec![series("accuracy", &measured("token_accuracy"))],
        ),
    ];
    panels.retain(|panel| matches!(&panel.marks, Marks::Lines(lines) if !lines.is_empty()));
    svg(&panels, 3)
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::curves;

    #[test]
    fn what_was_logged_is_drawn() {
        let plain = |step| super::Record { valid: Default::default(), ..record(step) };
        let text = curves(&[plain(1), plain(2)]).unwrap();
        assert!(text.contains("Reconstruction and KL") && text.contains("KL of each layer"), "{text}");
        assert!(!text.contains("validation"), "{text}");
        assert!(curves(&[]).is_err());
    }
}
