//! The decoding loop: a batch of sequences over a key/value cache.
//!
//! Rows enter and leave one by one: when a row ends, the next one takes its slot. What a row becomes does not depend on
//! the others, so this changes nothing but the time.

use std::collections::VecDeque;
use std::ops::ControlFlow;

use ndarray::ArrayView3;

use super::sampler::{self, Sampler, Sampling};
use crate::backend::{Backend, CacheRows, Spans};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::acts::StackActs;
use crate::model::cache::Cache;
use crate::model::stack::{Fusion, Tokens};
use crate::rng::{Rng, Stream};

/// How the next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Choice {
    /// The most probable one.
    Greedy,
    /// Drawn at random.
    Sample {
        /// From which distribution.
        sampling: Sampling,
        /// The request's seed.
        seed: u64,
    },
}

/// Sequences to continue.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// `(R, L, Z)`: each row's latents.
    pub z: ArrayView3<'a, f32>,
    /// `R` prefixes, at least one token each.
    pub prefixes: &'a [Vec<u32>],
    /// `R` row numbers: a row's draws depend on the seed and on this number only.
    pub rows: &'a [u64],
    /// How tokens are chosen.
    pub choice: Choice,
    /// New tokens at most, `<EOS>` included. The model's positions may end a row earlier.
    pub max_length: usize,
    /// Rows that run at the same time at most.
    pub slots: usize,
}

/// A row that is running.
struct Running {
    row: usize,
    slot: u32,
    /// Prefix and new tokens.
    ids: Vec<u32>,
    /// How many of them the cache holds.
    cached: usize,
}

/// Continues every row until `<EOS>`, which is included, or its limit; returns the new tokens.
///
/// `on_token` sees each new token with the index of its row, and may stop everything.
///
/// # Errors
/// [`Error::Cancelled`] if `on_token` breaks; [`Error::Input`] for a prefix or a setting out of range, and for logits
/// that are not numbers.
pub fn generate<B: Backend>(
    model: &Model<B>,
    request: &Request<'_>,
    on_token: &mut dyn FnMut(usize, u32) -> ControlFlow<()>,
) -> Result<Vec<Vec<u32>>> {
    check(model, request)?;
    let rows = request.prefixes.len();
    let mut session = Session::new(model, request)?;
    let mut chooser = Chooser::new(&request.choice)?;
    let mut outputs = vec![Vec::new(); rows];
    let mut waiting: VecDeque<usize> = (0..rows).collect();
    let mut running: Vec<Running> = Vec::new();
    let mut free: Vec<u32> = (0..session.slots as u32).rev().collect();
    loop {
        session.admit(request, &mut waiting, &mut running, &mut free);
        if running.is_empty() {
            return Ok(outputs);
        }
        session.step(&mut running);
        let mut ended = Vec::new();
        for (i, (run, logits)) in running.iter_mut().zip(session.logits()).enumerate() {
            let output = &mut outputs[run.row];
            let token = chooser.choose(logits, &run.ids, request.rows[run.row], output.len())?;
            output.push(token);
            run.ids.push(token);
            if on_token(run.row, token).is_break() {
                return Err(Error::Cancelled);
            }
            let full = output.len() == request.max_length || run.ids.len() > session.cache.capacity;
            if token == model.config.eos || full {
                ended.push(i);
            }
        }
        for i in ended.into_iter().rev() {
            free.push(running.remove(i).slot);
        }
    }
}

fn check<B: Backend>(model: &Model<B>, request: &Request<'_>) -> Result<()> {
    let dims = &model.config.dims;
    let rows = request.prefixes.len();
    let shape = [rows, dims.layers, dims.latent];
    if request.z.shape() != shape {
        return Err(Error::input("z", format!("latents have shape {:?}; {shape:?} is needed", request.z.shape())));
    }
    if request.rows.len() != rows {
        return Err(Error::input("rows", format!("{} row numbers for {rows} prefixes", request.rows.len())));
    }
    if request.max_length == 0 || request.slots == 0 {
        return Err(Error::input("max_length, slots", "at least 1 each"));
    }
    for prefix in request.prefixes {
        model.check_ids("prefix", prefix)?;
    }
    Ok(())
}

/// Chooses tokens as the request says.
enum Chooser {
    Greedy,
    Sample { sampler: Sampler, seed: u64 },
}

impl Chooser {
    fn new(choice: &Choice) -> Result<Self> {
        Ok(match *choice {
            Choice::Greedy => Chooser::Greedy,
            Choice::Sample { sampling, seed } => Chooser::Sample { sampler: Sampler::new(sampling)?, seed },
        })
    }

    /// The token of row number `row` at `step`, after `ids`.
    fn choose(&mut self, logits: &[f32], ids: &[u32], row: u64, step: usize) -> Result<u32> {
        match self {
            Chooser::Greedy => sampler::greedy(logits),
            Chooser::Sample { sampler, seed } => {
                let draw = Rng::new(*seed, Stream::Token, row).uniform(step as u32);
                sampler.draw(logits, ids, draw)
            }
        }
    }
}

/// Device buffers of a running request.
struct Session<'m, B: Backend> {
    model: &'m Model<B>,
    slots: usize,
    /// Tokens of one step at most.
    budget: usize,
    acts: StackActs<B>,
    cache: Cache<B>,
    fusion: Fusion<B>,
    tokens: Tokens<B>,
    rows: CacheRows<B>,
    /// Which row of the request, for its latents.
    latents: B::Ids,
    /// The last token of each row in the step.
    last: B::Ids,
    last_hidden: B::Act,
    device_logits: B::Real,
    host_logits: Vec<f32>,
}

impl<'m, B: Backend> Session<'m, B> {
    fn new(model: &'m Model<B>, request: &Request<'_>) -> Result<Self> {
        let (backend, dims) = (&model.backend, &model.config.dims);
        let slots = request.slots.min(request.prefixes.len()).max(1);
        let longest = request.prefixes.iter().map(Vec::len).max().unwrap_or(1);
        let budget = longest.max(slots);
        // the last token is never read back, so it needs no place in the cache
        let capacity = longest.saturating_add(request.max_length - 1).min(dims.positions);
        let z = upload_latents(backend, request.z)?;
        Ok(Session {
            model,
            slots,
            budget,
            acts: StackActs::new(backend, dims, budget)?,
            cache: Cache::new(backend, dims, slots, capacity)?,
            fusion: model.fusion(&z, request.prefixes.len())?,
            tokens: Tokens::new(backend, &vec![0; budget], &vec![0; budget])?,
            rows: CacheRows {
                spans: Spans::new(backend, &vec![(0, 0); slots])?,
                slots: backend.ids(slots)?,
                past: backend.ids(slots)?,
                capacity,
            },
            latents: backend.ids(slots)?,
            last: backend.ids(slots)?,
            last_hidden: backend.act(slots * dims.hidden)?,
            device_logits: backend.real(slots * dims.vocab)?,
            host_logits: vec![0.0; slots * dims.vocab],
        })
    }

    /// Starts waiting rows while a slot is free and their prefixes fit into the step.
    fn admit(
        &self,
        request: &Request<'_>,
        waiting: &mut VecDeque<usize>,
        running: &mut Vec<Running>,
        free: &mut Vec<u32>,
    ) {
        let mut tokens: usize = running.len();
        while let Some(&row) = waiting.front() {
            let prefix = &request.prefixes[row];
            tokens += prefix.len();
            if tokens > self.budget {
                break;
            }
            let Some(slot) = free.pop() else { break };
            waiting.pop_front();
            running.push(Running { row, slot, ids: prefix.clone(), cached: 0 });
        }
    }

    /// Runs the decoder over what the cache does not hold yet, and the head over each row's last token.
    fn step(&mut self, running: &mut [Running]) {
        let (backend, dims) = (&self.model.backend, &self.model.config.dims);
        let (mut ids, mut positions, mut bounds) = (Vec::new(), Vec::new(), Vec::new());
        for run in running.iter() {
            let start = ids.len();
            ids.extend_from_slice(&run.ids[run.cached..]);
            positions.extend(run.cached as u32..run.ids.len() as u32);
            bounds.push((start, ids.len()));
        }
        let each = |value: &dyn Fn(&Running) -> u32| running.iter().map(value).collect::<Vec<u32>>();
        self.tokens.set(backend, &ids, &positions);
        self.rows.spans.set(backend, &bounds);
        backend.write_ids(&mut self.rows.slots, &each(&|run| run.slot));
        backend.write_ids(&mut self.rows.past, &each(&|run| run.cached as u32));
        backend.write_ids(&mut self.latents, &each(&|run| run.row as u32));
        let last: Vec<u32> = bounds.iter().map(|(_, end)| *end as u32 - 1).collect();
        backend.write_ids(&mut self.last, &last);

        let Session { acts, cache, tokens, rows, fusion, latents, .. } = self;
        self.model.decoder_cached_fwd(acts, cache, tokens, rows, fusion, latents);
        backend.gather_rows_fwd(&mut self.last_hidden, &self.acts.output, &self.last, running.len(), dims.hidden);
        backend.head_fwd(&mut self.device_logits, &self.last_hidden, &self.model.params.decoder.wte, running.len());
        self.host_logits.resize(running.len() * dims.vocab, 0.0);
        backend.read_real(&mut self.host_logits, &self.device_logits);
        for run in running {
            run.cached = run.ids.len();
        }
    }

    /// The logits of each running row.
    fn logits(&self) -> std::slice::ChunksExact<'_, f32> {
        self.host_logits.chunks_exact(self.model.config.dims.vocab)
    }
}

/// `(R, L, Z)` on the host to `L` of `(R, Z)` on the device.
pub fn upload_latents<B: Backend>(backend: &B, z: ArrayView3<'_, f32>) -> Result<Vec<B::Real>> {
    z.axis_iter(ndarray::Axis(1)).map(|layer| backend.real_from(&layer.iter().copied().collect::<Vec<_>>())).collect()
}
