//! `della decode`: latents to sentences.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use della::io::checkpoint::Checkpoint;
use della::text::{Entity, training_condition_ids};
use della::{Della, Error, Options, row_number};
use ndarray::{Array3, ArrayView3, Axis};
use serde::{Deserialize, Serialize};

use super::args::{DecodeArgs, ModelArgs};
use super::input::{BadLine, Lines};
use super::output::{Output, OutputArgs};

/// Rows that are decoded together.
const BATCH: usize = 256;

/// Decode latents to sentences
///
/// Reads what `della encode` writes: JSONL, or a safetensors file with `z` (R, L, Z).
#[derive(clap::Args)]
pub struct Args {
    /// Latents: a .safetensors file, a JSONL file, or - for JSONL on standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    decode: DecodeArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// What is read of a line; `della encode` writes more.
#[derive(Deserialize)]
struct Record {
    id: Option<serde_json::Value>,
    #[serde(default)]
    entities: Vec<Entity>,
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    z: Vec<f32>,
}

#[derive(Serialize)]
struct Object<'a> {
    id: &'a serde_json::Value,
    text: &'a str,
    ids: &'a [u32],
}

/// A row that can be decoded.
struct Row {
    index: usize,
    id: serde_json::Value,
    prefix: Vec<u32>,
    z: Vec<f32>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let options = args.decode.options(Options::default())?;
    let della = args.model.open()?;
    if args.file.extension().is_some_and(|extension| extension == "safetensors") {
        let z = read_tensor(&args.file, &della)?;
        let mut output = args.output.open()?;
        let prefix = della.start(&[])?;
        for start in (0..z.len_of(Axis(0))).step_by(BATCH) {
            let rows = z.outer_iter().enumerate().skip(start).take(BATCH).map(|(index, z)| {
                Ok(Row { index, id: index.into(), prefix: prefix.clone(), z: z.iter().copied().collect() })
            });
            decode(&della, rows.collect(), &options, &mut output)?;
        }
        return output.finish();
    }
    let mut lines = Lines::open(&args.file)?;
    let mut output = args.output.open()?;
    loop {
        let batch: Vec<_> = lines.by_ref().take(BATCH).map(|line| row(&della, line)).collect();
        if batch.is_empty() {
            return output.finish();
        }
        decode(&della, batch, &options, &mut output)?;
    }
}

fn read_tensor(path: &Path, della: &Della) -> anyhow::Result<Array3<f32>> {
    let file = Checkpoint::open_as_is(path)?;
    let dims = &della.config().dims;
    let Some(shape) = file.get("z").map(|info| info.shape.clone()) else {
        return Err(Error::format(path, "has no tensor z; `della encode` writes one").into());
    };
    let wanted = [dims.layers, dims.latent];
    if shape.len() != 3 || shape[1..] != wanted {
        let message = format!("z has shape {shape:?}; this model decodes (R, {}, {})", dims.layers, dims.latent);
        return Err(Error::format(path, message).into());
    }
    Ok(Array3::from_shape_vec((shape[0], shape[1], shape[2]), file.read_f32("z")?)?)
}

/// A line's latents, checked against the model.
fn row(della: &Della, line: Result<super::input::Line, BadLine>) -> Result<Row, BadLine> {
    let line = line?;
    let record: Record = line.json()?;
    let dims = &della.config().dims;
    if record.layers.len() != dims.layers || record.layers.iter().any(|layer| layer.z.len() != dims.latent) {
        let found: Vec<usize> = record.layers.iter().map(|layer| layer.z.len()).collect();
        let message = format!("latents of widths {found:?}; this model has {} of {}", dims.layers, dims.latent);
        return Err(line.bad(message));
    }
    if record.layers.iter().any(|layer| layer.z.iter().any(|z| !z.is_finite())) {
        return Err(line.bad("z holds a number that is too large"));
    }
    let condition = match dims.conditional {
        true => training_condition_ids(della.tokenizer(), &record.entities).map_err(|e| line.bad(e))?,
        false => Vec::new(),
    };
    let prefix = della.start(&condition).map_err(|e| line.bad(e))?;
    let id = record.id.unwrap_or_else(|| line.index.into());
    Ok(Row { index: line.index, id, prefix, z: record.layers.into_iter().flat_map(|layer| layer.z).collect() })
}

fn decode(
    della: &Della,
    batch: Vec<Result<Row, BadLine>>,
    options: &Options,
    output: &mut Output,
) -> anyhow::Result<()> {
    let dims = &della.config().dims;
    let good: Vec<&Row> = batch.iter().filter_map(|row| row.as_ref().ok()).collect();
    let z: Vec<f32> = good.iter().flat_map(|row| row.z.iter().copied()).collect();
    let z = ArrayView3::from_shape((good.len(), dims.layers, dims.latent), &z)?;
    let prefixes: Vec<Vec<u32>> = good.iter().map(|row| row.prefix.clone()).collect();
    let numbers: Vec<u64> = good.iter().map(|row| row_number(row.index, 0)).collect();
    let ids = della.decode_ids(z, &prefixes, &numbers, options, &mut |_, _| ControlFlow::Continue(()))?;
    let mut ids = ids.iter();
    for row in &batch {
        match row {
            Err(bad) => output.bad_line(bad)?,
            Ok(row) => {
                let ids = ids.next().map_or(&[][..], Vec::as_slice);
                let text = &della.text(ids, options)?;
                match output.json {
                    true => output.object(&Object { id: &row.id, text, ids })?,
                    false => output.line(text)?,
                }
            }
        }
    }
    Ok(())
}
