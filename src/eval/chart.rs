//! A report's layers as bars.

use super::Report;
use crate::chart::{Marks, Panel, svg};
use crate::error::Result;

/// KL and active units of each layer, and what is known of the sentence up to it where that was measured; an SVG file's
/// content.
///
/// # Errors
/// As [`svg`].
pub fn chart(report: &Report) -> Result<String> {
    let bars = |values: &mut dyn Iterator<Item = f64>| {
        Marks::Bars(values.enumerate().map(|(l, value)| ((l + 1).to_string(), value)).collect())
    };
    let panel = |title: String, y: &str, values: &mut dyn Iterator<Item = f64>| Panel {
        title,
        x: "layer".into(),
        y: y.into(),
        marks: bars(values),
    };
    let layers = || report.layers.iter();
    let mut panels = vec![
        panel("KL of posterior from prior".into(), "nats a sentence", &mut layers().map(|layer| layer.kl)),
        panel(
            format!("Active units of {} (variance > {})", report.latent, report.delta),
            "units",
            &mut layers().map(|layer| layer.active_units as f64),
        ),
    ];
    if let Some(information) = &report.information {
        let title = format!("Mutual information up to the layer (at most {:.2})", information.bound);
        panels.push(panel(title, "nats", &mut information.layers.iter().copied()));
    }
    svg(&panels, 3)
}
