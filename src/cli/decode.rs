//! `della decode`: latents to sentences.

use std::path::{Path, PathBuf};

use della::generate::session::unwatched;
use della::io::checkpoint::Checkpoint;
use della::text::{Entity, training_condition_ids};
use della::{Della, Error, Options, Start};
use ndarray::{Array3, ArrayView2, ArrayView3, Axis};
use serde::Deserialize;

use super::args::{DecodeArgs, ModelArgs};
use super::input::{BATCH, BadLine, Lines};
use super::output::{Output, OutputArgs};

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
    index: Option<u32>,
    #[serde(default)]
    entities: Vec<Entity>,
    layers: Vec<Layer>,
}

#[derive(Deserialize)]
struct Layer {
    z: Vec<f32>,
}

/// A row that can be decoded.
struct Row {
    id: serde_json::Value,
    start: Start,
    z: Vec<f32>,
    /// Where it stands, for messages.
    place: String,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let options = args.decode.options(Options::default())?;
    let della = args.model.open()?;
    if args.file.extension().is_some_and(|extension| extension == "safetensors") {
        let (z, indices) = read_tensors(&args.file, &della)?;
        let mut output = args.output.open()?;
        let prefix = della.start(&[])?;
        for (z, indices) in z.axis_chunks_iter(Axis(0), BATCH).zip(indices.chunks(BATCH)) {
            let row = |(z, &index): (ArrayView2<'_, f32>, &usize)| {
                let start = Start { prefix: prefix.clone(), index, sample: 0 };
                let place = format!("{}, row {index}", args.file.display());
                Ok(Row { id: index.into(), start, z: z.iter().copied().collect(), place })
            };
            decode(&della, z.outer_iter().zip(indices).map(row).collect(), &options, &mut output)?;
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

/// `z`, and the number of each row.
fn read_tensors(path: &Path, della: &Della) -> anyhow::Result<(Array3<f32>, Vec<usize>)> {
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
    let z = Array3::from_shape_vec((shape[0], shape[1], shape[2]), file.read_f32("z")?)?;
    if file.get("index").is_none() {
        return Ok((z, (0..shape[0]).collect()));
    }
    let number = |index: i64| u32::try_from(index).ok().map(|index| index as usize);
    let indices: Option<Vec<usize>> = file.read_i64("index")?.into_iter().map(number).collect();
    let indices = indices.filter(|indices| indices.len() == shape[0]);
    let message = || format!("index does not hold a row number for each of the {} rows of z", shape[0]);
    Ok((z, indices.ok_or_else(|| Error::format(path, message()))?))
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
    let index = record.index.map_or(line.index, |index| index as usize);
    let start = Start { prefix: della.start(&condition).map_err(|e| line.bad(e))?, index, sample: 0 };
    let z = record.layers.into_iter().flat_map(|layer| layer.z).collect();
    Ok(Row { id: record.id.unwrap_or_else(|| line.index.into()), start, z, place: line.place })
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
    let starts: Vec<Start> = good.iter().map(|row| row.start.clone()).collect();
    let mut results = della.decode_ids(z, &starts, options, &mut unwatched)?.into_iter();
    for row in &batch {
        let decoded = row.as_ref().map_err(BadLine::clone).and_then(|row| {
            let result = results.next().expect("a result for each row");
            let ids = result.map_err(|e| BadLine { id: row.id.clone(), message: format!("{}: {e}", row.place) })?;
            Ok((row, ids))
        });
        match decoded {
            Err(bad) => output.bad_line(&bad)?,
            Ok((row, ids)) => output.decoded(&row.id, &della.text(&ids, options)?, &ids)?,
        }
    }
    Ok(())
}
