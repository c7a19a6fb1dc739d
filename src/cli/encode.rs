//! `della encode`: sentences to latents.

use std::borrow::Cow;
use std::path::Path;

use anyhow::Context;
use della::io::ElementType;
use della::io::safetensors::{self, Header};
use della::latent::Latents;
use della::{Options, SentenceIds};
use ndarray::{Array3, s};
use serde::Serialize;

use super::args::{DrawArgs, EncodeArgs, ModelArgs};
use super::input::{BATCH, InputArgs, Sentence, batches, good};
use super::output::OutputArgs;
use super::{BadLines, Usage};

/// Encode sentences to latents
///
/// Prints one JSON object per sentence; with --output FILE.safetensors, one file with `z`, `mean`, `log_variance`,
/// `prior_mean`, `prior_log_variance` (R, L, Z), `kl` (R, L) and `index` (R), the sentences' numbers. `della decode` reads
/// both; a CVAE's latents are decoded with their entities, for which only JSONL has a place.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    input: InputArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    encode: EncodeArgs,
    #[command(flatten)]
    draw: DrawArgs,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Serialize)]
struct Object<'a> {
    id: &'a serde_json::Value,
    index: usize,
    text: &'a str,
    ids: &'a [u32],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    entities: &'a [della::text::Entity],
    kl: Vec<f32>,
    layers: Vec<Layer>,
}

/// One layer's latent.
#[derive(Serialize)]
struct Layer {
    mean: Vec<f32>,
    log_variance: Vec<f32>,
    z: Vec<f32>,
    kl: f32,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut options = Options::default();
    args.draw.apply(&mut options)?;
    args.encode.apply(&mut options);
    let tensors = args.output.output.as_ref().filter(|path| path.extension().is_some_and(|e| e == "safetensors"));
    if tensors.is_some() && args.output.json {
        return Err(Usage("--json writes text, but --output names a safetensors file; drop one of them".into()).into());
    }
    let input = args.input.open()?;
    let della = args.model.open()?;
    if let Some(path) = tensors {
        if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty() && !dir.is_dir()) {
            return Err(della::Error::io(dir, std::io::ErrorKind::NotFound.into()).into());
        }
        if path.symlink_metadata().is_ok() {
            return Err(della::Error::Exists(path.clone()).into());
        }
        if della.config().dims.conditional {
            let message = "--output: a safetensors file has no place for the entities of a CVAE; name a .jsonl file";
            return Err(Usage(message.into()).into());
        }
    }
    let mut output =
        OutputArgs { output: args.output.output.clone().filter(|_| tensors.is_none()), json: true }.open()?;
    let mut all: Option<Latents> = None;
    let (mut indices, mut bad_lines) = (Vec::new(), 0);
    for batch in batches(&della, input, &options, BATCH) {
        let rows = good(&batch);
        let latents = match rows.is_empty() {
            true => None,
            false => Some(della.encode_ids(&rows, 0..1, &options)?),
        };
        if tensors.is_some() {
            for bad in batch.iter().filter_map(|item| item.as_ref().err()) {
                remark!("error: {}", bad.message);
                bad_lines += 1;
            }
            match (&mut all, latents) {
                (Some(all), Some(latents)) => all.append(latents),
                (all, latents) => *all = all.take().or(latents),
            }
            indices.extend(rows.iter().map(|row| row.index as i64));
            continue;
        }
        let mut row = 0;
        for item in &batch {
            match (item, &latents) {
                (Ok((sentence, ids)), Some(latents)) => {
                    output.object(&object(sentence, ids, latents, row)?)?;
                    row += 1;
                }
                (Err(bad), _) => output.bad_line(bad)?,
                (Ok(_), None) => unreachable!("a batch with a sentence has latents"),
            }
        }
    }
    if let Some(path) = tensors {
        write_tensors(path, &all.context("no sentence could be encoded; no file was written")?, &indices)?;
        return if bad_lines == 0 { Ok(()) } else { Err(BadLines(bad_lines).into()) };
    }
    output.finish()
}

fn object<'a>(
    sentence: &'a Sentence,
    ids: &'a SentenceIds,
    latents: &'a Latents,
    row: usize,
) -> anyhow::Result<Object<'a>> {
    let posterior = latents.posterior.as_ref().context("a sentence has a posterior")?;
    let kl = latents.kl.as_ref().context("a sentence has a divergence")?.row(row).to_vec();
    let (mean, log_variance, z) = (&posterior.mean, &posterior.log_variance, &latents.z);
    let layer = |l: usize| Layer {
        mean: values(mean, row, l),
        log_variance: values(log_variance, row, l),
        z: values(z, row, l),
        kl: kl[l],
    };
    let layers = (0..kl.len()).map(layer).collect();
    let (id, index) = (&sentence.id, sentence.index);
    let della::Sentence { text, entities } = &sentence.sentence;
    Ok(Object { id, index, text, ids: &ids.sentence, entities, kl, layers })
}

/// One latent of one row.
fn values(array: &Array3<f32>, row: usize, layer: usize) -> Vec<f32> {
    array.slice(s![row, layer, ..]).to_vec()
}

fn write_tensors(path: &Path, latents: &Latents, indices: &[i64]) -> anyhow::Result<()> {
    let mut tensors = vec![
        ("z", latents.z.view().into_dyn()),
        ("prior_mean", latents.prior.mean.view().into_dyn()),
        ("prior_log_variance", latents.prior.log_variance.view().into_dyn()),
    ];
    if let Some(posterior) = &latents.posterior {
        tensors.push(("mean", posterior.mean.view().into_dyn()));
        tensors.push(("log_variance", posterior.log_variance.view().into_dyn()));
    }
    if let Some(kl) = &latents.kl {
        tensors.push(("kl", kl.view().into_dyn()));
    }
    let header = |name: &str, dtype, shape: &[usize]| Header { name: name.into(), dtype, shape: shape.to_vec() };
    let mut headers: Vec<Header> =
        tensors.iter().map(|(name, array)| header(name, ElementType::F32, array.shape())).collect();
    headers.push(header("index", ElementType::I64, &[indices.len()]));
    safetensors::write(path, &[("format", "pt")], &headers, |i| {
        Ok(Cow::Owned(match tensors.get(i) {
            Some((_, array)) => array.iter().flat_map(|x| x.to_le_bytes()).collect(),
            None => indices.iter().flat_map(|x| x.to_le_bytes()).collect(),
        }))
    })?;
    Ok(())
}
