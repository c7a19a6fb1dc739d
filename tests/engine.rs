//! Requests to a model: what a row gives depends on the row alone, however it is computed.

use std::path::Path;

use della::backend::{CacheRows, Spans, Storage};
use della::cpu::{Cpu, Options};
use della::engine::Engine;
use della::generate::Sampling;
use della::generate::session::{Choice, Next, Request, generate, unwatched, upload_latents};
use della::model::Model;
use della::model::acts::{Keep, StackActs};
use della::model::cache::Cache;
use della::model::encode::Row;
use della::model::stack::{Context, Tokens};
use della::rng::{Rng, Stream};
use ndarray::{Array3, Axis, s};

use crate::util;
use crate::util::op::{cpus, name};

fn model(threads: usize) -> Model<Cpu> {
    load(Cpu::new(Options { threads: Some(threads), ..Options::default() }).unwrap())
}

fn load(cpu: Cpu) -> Model<Cpu> {
    util::model(Path::new("tests/fixtures/vae"), cpu)
}

/// The model on `threads` threads with each instruction set and matrix product, and their names.
fn models(threads: usize) -> impl Iterator<Item = (String, Model<Cpu>)> {
    cpus(threads).map(|cpu| (name(&cpu), load(cpu)))
}

/// Rows of random ids with many lengths.
fn rows(model: &Model<Cpu>, count: usize) -> Vec<Vec<u32>> {
    let dims = &model.config.dims;
    let draw = |row: usize, step: usize| Rng::new(5, Stream::Init, row as u64).words(step as u32)[0] as usize;
    (0..count)
        .map(|row| (0..1 + draw(row, 0) % dims.positions).map(|t| (draw(row, 1 + t) % dims.vocab) as u32).collect())
        .collect()
}

fn latents(model: &Model<Cpu>, rows: usize) -> Array3<f32> {
    let dims = &model.config.dims;
    let mut z = vec![0.0; rows * dims.layers * dims.latent];
    Rng::new(9, Stream::Latent, 0).fill_normal(&mut z);
    Array3::from_shape_vec((rows, dims.layers, dims.latent), z).unwrap()
}

fn bits(values: impl IntoIterator<Item = f32>) -> Vec<u32> {
    values.into_iter().map(f32::to_bits).collect()
}

#[test]
fn a_row_alone_encodes_to_the_same_bits_as_in_a_batch() {
    for ((_, one), (machine, two)) in models(1).zip(models(2)) {
        let ids = rows(&one, 32);
        let sentence = |ids| Row { condition: &[], sentence: ids };
        let batch: Vec<Row<'_>> = ids.iter().map(|ids| sentence(ids)).collect();
        let together = two.encode(&batch, 1, None, 0.0).unwrap();
        for (i, row) in batch.iter().enumerate() {
            let alone = one.encode(&[*row], 1, None, 0.0).unwrap();
            assert_eq!(
                bits(alone.z),
                bits(together.z.slice(s![i..i + 1, .., ..]).iter().copied()),
                "{machine}: row {i}"
            );
            let kl = together.kl.as_ref().unwrap().slice(s![i..i + 1, ..]).to_owned();
            assert_eq!(bits(alone.kl.unwrap()), bits(kl), "{machine}: row {i}");
        }
    }
}

#[test]
fn a_row_alone_decodes_to_the_same_bits_as_in_a_batch() {
    for ((_, one), (machine, two)) in models(1).zip(models(2)) {
        let ids = rows(&one, 32);
        let z = latents(&one, 32);
        let borrowed: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
        let together = two.logits(&borrowed, z.view()).unwrap();
        for (i, ids) in borrowed.iter().enumerate() {
            let alone = one.logits(&[ids], z.slice_axis(Axis(0), (i..i + 1).into())).unwrap();
            assert_eq!(bits(alone[0].iter().copied()), bits(together[i].iter().copied()), "{machine}: row {i}");
        }
    }
}

#[test]
fn cached_decoding_gives_the_bits_of_uncached_decoding() {
    models(2).for_each(|(machine, model)| check_cached_decoding(&machine, &model));
}

/// Reads each row in pieces of one to three tokens through the cache; the logits are those of the whole row at once.
fn check_cached_decoding(machine: &str, model: &Model<Cpu>) {
    let (backend, dims) = (&model.backend, &model.config.dims);
    let ids: Vec<Vec<u32>> = rows(model, 8).into_iter().filter(|ids| ids.len() >= 6).collect();
    let z = latents(model, ids.len());
    let borrowed: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let whole = model.logits(&borrowed, z.view()).unwrap();

    let mut fusion = model.fusion(ids.len()).unwrap();
    model.fusion_fwd(&mut fusion, &upload_latents(backend, z.view()).unwrap(), ids.len());
    let mut cache = Cache::new(backend, dims, ids.len(), dims.positions).unwrap();
    let mut acts = StackActs::new(backend, dims, 3 * ids.len(), Keep::Last).unwrap();
    let mut done = vec![0; ids.len()];
    for step in 0.. {
        let pieces: Vec<(usize, usize)> = (0..ids.len())
            .filter(|&row| done[row] < ids[row].len())
            .map(|row| (row, (1 + (row + step) % 3).min(ids[row].len() - done[row])))
            .collect();
        if pieces.is_empty() {
            break;
        }
        let slots: Vec<u32> = pieces.iter().map(|(row, _)| *row as u32).collect();
        let new: Vec<u32> = pieces.iter().flat_map(|&(row, n)| ids[row][done[row]..done[row] + n].to_vec()).collect();
        let positions: Vec<u32> =
            pieces.iter().flat_map(|&(row, n)| done[row] as u32..(done[row] + n) as u32).collect();
        let tokens = Tokens::new(backend, &new, &positions).unwrap();
        let rows = CacheRows {
            spans: Spans::of_lengths(backend, pieces.iter().map(|(_, n)| *n)).unwrap(),
            slots: backend.ids_from(&slots).unwrap(),
            capacity: cache.capacity,
        };
        model.decoder_fwd(&mut acts, &tokens, Context::Cached(&mut cache, &rows), &fusion, &rows.slots);
        let mut logits = backend.real(new.len() * dims.vocab).unwrap();
        della::backend::LinearOps::head_fwd(backend, &mut logits, &acts.output, &model.params.decoder.wte, new.len());
        let mut host = vec![0f32; new.len() * dims.vocab];
        backend.read_real(&mut host, &logits);
        let mut host = host.chunks(dims.vocab);
        for (row, n) in pieces {
            for t in done[row]..done[row] + n {
                let wanted = bits(whole[row].row(t).iter().copied());
                assert_eq!(bits(host.next().unwrap().iter().copied()), wanted, "{machine}: row {row}, token {t}");
            }
            done[row] += n;
        }
    }
}

/// Requests for the rows of `z`, with these prefixes.
fn requests<'a>(z: &'a Array3<f32>, prefixes: &'a [Vec<u32>], choice: Choice, max_length: usize) -> Vec<Request<'a>> {
    let rows = z.outer_iter().zip(prefixes).zip(100..);
    rows.map(|((z, prefix), number)| Request { z, prefix, number, choice, max_length }).collect()
}

/// Many rows through few slots, in another order and number than alone: the same tokens.
#[test]
fn a_row_draws_the_same_tokens_in_any_company() {
    for (machine, model) in models(2) {
        let count = 12;
        let z = latents(&model, count);
        let prefixes: Vec<Vec<u32>> =
            rows(&model, count).into_iter().map(|ids| ids[..ids.len().min(5)].to_vec()).collect();
        let sampling = Sampling { top_p: 0.9, temperature: 1.3, ..Sampling::default() };
        let requests = requests(&z, &prefixes, Choice::Sample { sampling, seed: 7 }, 20);
        let together = generate(&model, &requests, 5, &mut unwatched).unwrap();
        let together: Vec<Vec<u32>> = together.into_iter().map(Result::unwrap).collect();
        assert!(together.iter().any(|row| *row != together[0]), "{machine}: every row is the same: nothing was tested");
        for (i, request) in requests.iter().enumerate() {
            let mut streamed = Vec::new();
            let alone = generate(&model, std::slice::from_ref(request), 1, &mut |_, id| {
                streamed.push(id);
                Next::Continue
            });
            assert_eq!(*alone.unwrap()[0].as_ref().unwrap(), together[i], "{machine}: row {i}");
            assert_eq!(streamed, together[i], "{machine}: row {i}");
        }
    }
}

/// Prefixes of several tokens fill all slots at once: the longest row takes no longer than it does alone.
#[test]
fn every_slot_is_used_from_the_first_step() {
    let model = model(1);
    let z = latents(&model, 8);
    let prefixes = vec![vec![1, 2, 3, 4, 5]; 8];
    let requests = requests(&z, &prefixes, Choice::Greedy, 3);
    let mut seen = Vec::new();
    let outputs = generate(&model, &requests, 8, &mut |row, _| {
        seen.push(row);
        Next::Continue
    });
    assert!(outputs.unwrap().iter().all(|row| row.as_ref().unwrap().len() == 3), "a row ended by itself");
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7].repeat(3));
}

#[test]
fn a_row_ends_at_the_models_last_position_and_at_the_limit() {
    let model = model(1);
    let z = latents(&model, 1);
    let positions = model.config.dims.positions;
    let length = |prefix: usize, max_length: usize| {
        let prefixes = [vec![1; prefix]];
        let requests = requests(&z, &prefixes, Choice::Greedy, max_length);
        let ids = generate(&model, &requests, 1, &mut unwatched).unwrap().remove(0).unwrap();
        assert!(!ids.contains(&model.config.eos), "the row ended by itself: nothing was tested");
        ids.len()
    };
    assert_eq!(length(3, 7), 7);
    assert_eq!(length(3, usize::MAX), positions - 2);
    assert_eq!(length(positions, 10), 1);
}

/// A row whose logits are no numbers, one that cannot start and one that its watcher ends leave the others alone.
#[test]
fn a_bad_row_ends_alone() {
    let model = model(1);
    let mut z = latents(&model, 4);
    let prefixes = [vec![1], vec![157], vec![2], vec![3]];
    let wanted = generate(&model, &requests(&z, &prefixes, Choice::Greedy, 6)[3..], 4, &mut unwatched).unwrap();
    z.index_axis_mut(Axis(0), 0).fill(3e38);
    let found = generate(&model, &requests(&z, &prefixes, Choice::Greedy, 6), 4, &mut |row, _| {
        if row == 2 { Next::EndRow } else { Next::Continue }
    });
    let found = found.unwrap();
    assert!(found[0].as_ref().unwrap_err().to_string().contains("NaN"), "{found:?}");
    assert!(found[1].as_ref().unwrap_err().to_string().contains("id 157"), "{found:?}");
    assert_eq!(found[2].as_ref().unwrap().len(), 1);
    assert_eq!(found[3].as_ref().unwrap(), wanted[0].as_ref().unwrap());
}

#[test]
fn cancelling_stops_at_once() {
    let model = model(1);
    let z = latents(&model, 2);
    let prefixes = [vec![1], vec![2]];
    let mut seen = 0;
    let result = generate(&model, &requests(&z, &prefixes, Choice::Greedy, 9), 2, &mut |_, _| {
        seen += 1;
        if seen == 3 { Next::Cancel } else { Next::Continue }
    });
    assert!(matches!(result, Err(della::Error::Cancelled)));
    assert_eq!(seen, 3);
}

/// Samples of one sentence are what the sentence gives alone, read as often.
#[test]
fn samples_share_one_reading() {
    let model = model(2);
    let ids = rows(&model, 3);
    let rows: Vec<Row<'_>> = ids.iter().map(|ids| Row { condition: &[], sentence: ids }).collect();
    let eps = latents(&model, 6);
    let shared = model.encode(&rows, 2, Some(eps.view()), 1.0).unwrap();
    let repeated: Vec<Row<'_>> = rows.iter().flat_map(|row| [*row, *row]).collect();
    assert_eq!(shared, model.encode(&repeated, 1, Some(eps.view()), 1.0).unwrap());
}

#[test]
fn what_the_model_cannot_read_is_refused() {
    let model = model(1);
    let encode = |condition: &[u32], sentence: &[u32]| {
        model.encode(&[Row { condition, sentence }], 1, None, 0.0).unwrap_err().to_string()
    };
    assert!(encode(&[], &[157]).contains("id 157 is outside the vocabulary of 157"));
    assert!(encode(&[], &[1; 41]).contains("41 tokens; this model reads at most 40"));
    assert!(encode(&[], &[]).contains("no tokens"));
    assert!(encode(&[1], &[2]).contains("not a CVAE"));
    let z = latents(&model, 1);
    let wrong = z.slice(s![.., 1.., ..]);
    assert!(model.logits(&[&[1]], wrong).unwrap_err().to_string().contains("[1, 4, 12] is needed"));
    let into = |out: &mut [_]| model.logits_into(&[&[1]], z.view(), out).unwrap_err().to_string();
    assert!(into(&mut []).contains("0 arrays for 1 rows"));
    let message = into(&mut [ndarray::Array2::zeros((2, 157))]);
    assert!(message.contains("out[0]") && message.contains("(2, 157)") && message.contains("(1, 157)"), "{message}");
}

/// The number of elements overflows, to 0 at that, or fits no memory.
#[test]
fn a_cache_that_fits_nowhere_is_an_error() {
    let model = model(1);
    for slots in [usize::MAX / 16 + 1, usize::MAX / 64 / model.config.dims.hidden] {
        let message = Cache::new(&model.backend, &model.config.dims, slots, 16).err().unwrap().to_string();
        assert!(message.contains("fewer rows at a time"), "{message}");
    }
}
