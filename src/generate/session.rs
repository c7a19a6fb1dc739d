//! The decoding loop: a batch of sequences over a key/value cache.
//!
//! Rows enter and leave one by one: when a row ends, the next one takes its slot. What a row becomes does not depend on
//! the others, so this changes nothing but the time.

use std::collections::VecDeque;

use ndarray::{ArrayView2, ArrayView3, Axis};

use super::sampler::{self, Mode, Sampler, Sampling};
use crate::backend::{Backend, CacheRows, Draw, NO_TOKEN, Recordings, Rules, Spans};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::acts::{Keep, StackActs};
use crate::model::cache::Cache;
use crate::model::stack::{Context, Fusion, Tokens};
use crate::rng::{Rng, Stream};

/// Tokens of prefixes that one step reads at most, if more than one row begins in it.
const PREFIX_TOKENS: usize = 2048;

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

/// A sequence to continue.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// `(L, Z)`: its latents.
    pub z: ArrayView2<'a, f32>,
    /// Where it starts, at least one token.
    pub prefix: &'a [u32],
    /// Its draws depend on the seed and on this number only.
    pub number: u64,
    /// How tokens are chosen.
    pub choice: Choice,
    /// New tokens at most, `<EOS>` included. The model's positions may end the row earlier.
    pub max_length: usize,
}

/// What to do after a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on.
    Continue,
    /// This row has what it needs; the others go on.
    EndRow,
    /// Stop everything.
    Cancel,
}

/// For `on_token`: nobody watches.
pub fn unwatched(_row: usize, _token: u32) -> Next {
    Next::Continue
}

/// A row that is running.
struct Running {
    row: usize,
    slot: usize,
    /// Prefix and new tokens.
    ids: Vec<u32>,
    /// How many of them the cache holds.
    cached: usize,
    chooser: Chooser,
}

/// Continues every row until `<EOS>`, which is included, or its limit; at most `slots` rows run at the same time.
/// Returns the new tokens of each row, or why it has none.
///
/// `on_token` sees each new token with the index of its row, and may end the row or everything.
///
/// # Errors
/// [`Error::Cancelled`] if `on_token` says so; [`Error::Unsupported`] if the device lacks memory for so many slots;
/// [`Error::Device`] if it fails. A
/// prefix or a setting that is out of range, and logits that are not numbers, end only their own row.
pub fn generate<B: Backend>(
    model: &Model<B>,
    requests: &[Request<'_>],
    slots: usize,
    on_token: &mut dyn FnMut(usize, u32) -> Next,
) -> Result<Vec<Result<Vec<u32>>>> {
    let mut outputs: Vec<Result<Vec<u32>>> =
        requests.iter().map(|request| check(model, request).map(|()| Vec::new())).collect();
    let mut waiting: VecDeque<usize> = (0..requests.len()).filter(|&row| outputs[row].is_ok()).collect();
    if waiting.is_empty() {
        return Ok(outputs);
    }
    let most = |of: &dyn Fn(&Request<'_>) -> usize| waiting.iter().map(|&row| of(&requests[row])).max().unwrap_or(1);
    let longest = most(&|request| request.prefix.len());
    // the last token is never read back, so it needs no place in the cache
    let capacity = most(&|request| request.prefix.len().saturating_add(request.max_length - 1));
    let mut session = Session::new(model, slots.clamp(1, waiting.len()), longest, capacity)?;
    let mut running: Vec<Running> = Vec::new();
    loop {
        session.admit(requests, &mut waiting, &mut running)?;
        if running.is_empty() {
            return Ok(outputs);
        }
        session.step(&mut running);
        let mut choices = session.choose(requests, &mut running).into_iter();
        model.backend.status()?;
        let mut cancelled = false;
        running.retain_mut(|run| {
            if cancelled {
                return true;
            }
            let (request, output) = (&requests[run.row], &mut outputs[run.row]);
            let choice = choices.next().expect("a token for every running row");
            let ended = run.advance(choice, request, output, on_token);
            cancelled |= ended == Some(Next::Cancel);
            let full = run.ids.len() > session.cache.capacity;
            if ended.is_some() || full || run.ids.last() == Some(&model.config.eos) {
                session.free.push(run.slot);
                return false;
            }
            true
        });
        if cancelled {
            return Err(Error::Cancelled);
        }
    }
}

fn check<B: Backend>(model: &Model<B>, request: &Request<'_>) -> Result<()> {
    let dims = &model.config.dims;
    let shape = [dims.layers, dims.latent];
    if request.z.shape() != shape {
        return Err(Error::input("z", format!("latents have shape {:?}; {shape:?} is needed", request.z.shape())));
    }
    if request.max_length == 0 {
        return Err(Error::input("max_length", "0 new tokens are none; at least 1"));
    }
    if let Choice::Sample { sampling, .. } = &request.choice {
        sampling.validate()?;
    }
    model.check_ids("prefix", request.prefix)
}

impl Running {
    /// Takes the next token; says why the row ends, if it does before `<EOS>`.
    fn advance(
        &mut self,
        choice: Result<u32>,
        request: &Request<'_>,
        output: &mut Result<Vec<u32>>,
        on_token: &mut dyn FnMut(usize, u32) -> Next,
    ) -> Option<Next> {
        let step = self.ids.len() - request.prefix.len();
        let token = match choice {
            Ok(token) => token,
            Err(e) => {
                *output = Err(e);
                return Some(Next::EndRow);
            }
        };
        self.ids.push(token);
        if let Ok(output) = output {
            output.push(token);
        }
        let next = on_token(self.row, token);
        (next != Next::Continue || step + 1 == request.max_length).then_some(next)
    }
}

/// Chooses tokens as a request says.
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

    /// The same choice, for a device.
    fn draw<'a>(&self, ids: &'a [u32], number: u64, step: usize) -> Draw<'a> {
        let (sampling, rules, seed) = match self {
            Chooser::Greedy => (Sampling::default(), Rules::Greedy, 0),
            Chooser::Sample { sampler, seed } => {
                let sampling = sampler.sampling();
                let rules = if sampling.mode == Mode::Usual { Rules::Usual } else { Rules::Reference };
                (sampling, rules, *seed)
            }
        };
        let Sampling { top_k, top_p, temperature, repetition_penalty, .. } = sampling;
        Draw { rules, top_k, top_p, temperature, repetition_penalty, seed, number, step: step as u32, history: ids }
    }

    /// The token of row number `number` at `step`, after `ids`.
    fn choose(&mut self, logits: &[f32], ids: &[u32], number: u64, step: usize) -> Result<u32> {
        match self {
            Chooser::Greedy => sampler::greedy(logits),
            Chooser::Sample { sampler, seed } => {
                let draw = Rng::new(*seed, Stream::Token, number).uniform(step as u32);
                sampler.draw(logits, ids, draw)
            }
        }
    }
}

/// Device buffers of running rows.
struct Session<'m, B: Backend> {
    model: &'m Model<B>,
    /// Slots without a row.
    free: Vec<usize>,
    slots: usize,
    /// Tokens of one step at most.
    budget: usize,
    acts: StackActs<B>,
    cache: Cache<B>,
    /// `L` of `(slots, Z)`, on the host and on the device.
    host_z: Vec<Vec<f32>>,
    z: Vec<B::Real>,
    /// `L` of `(slots, C)`.
    fusion: Fusion<B>,
    tokens: Tokens<B>,
    rows: CacheRows<B>,
    /// The last token of each row in the step.
    last: B::Ids,
    last_hidden: B::Act,
    device_logits: B::Real,
    host_logits: Vec<f32>,
    /// Of the last step, as the device has it.
    layout: Layout,
    /// Of steps, by what they are made of.
    recordings: Recordings,
}

/// Where the rows of a step lie; while no row begins or ends, the same from step to step.
#[derive(Default, PartialEq)]
struct Layout {
    /// Each row's first token in the step, and the one behind its last.
    bounds: Vec<(usize, usize)>,
    /// Each row's slot in the cache.
    slots: Vec<u32>,
}

impl<'m, B: Backend> Session<'m, B> {
    /// For prefixes of at most `longest` tokens and rows that need `capacity` places in the cache.
    fn new(model: &'m Model<B>, slots: usize, longest: usize, capacity: usize) -> Result<Self> {
        let (backend, dims) = (&model.backend, &model.config.dims);
        let capacity = capacity.min(dims.positions);
        // room for every running row, and for several to begin
        let budget = slots + longest.max(PREFIX_TOKENS.min(slots.saturating_mul(longest)));
        let latents = || (0..dims.layers).map(|_| backend.real(slots * dims.latent)).collect::<Result<_>>();
        Ok(Session {
            model,
            free: (0..slots).rev().collect(),
            slots,
            budget,
            acts: StackActs::new(backend, dims, budget, Keep::Last)?,
            cache: Cache::new(backend, dims, slots, capacity)?,
            host_z: vec![vec![0.0; slots * dims.latent]; dims.layers],
            z: latents()?,
            fusion: model.fusion(slots)?,
            tokens: Tokens::new(backend, &vec![0; budget], &vec![0; budget])?,
            rows: CacheRows { spans: Spans::new(backend, &vec![(0, 0); slots])?, slots: backend.ids(slots)?, capacity },
            last: backend.ids(slots)?,
            last_hidden: backend.act(slots * dims.hidden)?,
            device_logits: backend.real(slots * dims.vocab)?,
            host_logits: Vec::new(),
            layout: Layout::default(),
            recordings: Recordings::default(),
        })
    }

    /// Starts waiting rows while a slot is free and their prefixes fit into the step.
    fn admit(
        &mut self,
        requests: &[Request<'_>],
        waiting: &mut VecDeque<usize>,
        running: &mut Vec<Running>,
    ) -> Result<()> {
        let before = running.len();
        let mut tokens = before;
        while let Some(&row) = waiting.front() {
            let request = &requests[row];
            tokens += request.prefix.len();
            if tokens > self.budget {
                break;
            }
            let Some(slot) = self.free.pop() else { break };
            waiting.pop_front();
            for (host, layer) in self.host_z.iter_mut().zip(request.z.outer_iter()) {
                let width = layer.len();
                host[slot * width..][..width].iter_mut().zip(layer).for_each(|(host, &z)| *host = z);
            }
            let chooser = Chooser::new(&request.choice)?;
            running.push(Running { row, slot, ids: request.prefix.to_vec(), cached: 0, chooser });
        }
        if running.len() > before {
            for (z, host) in self.z.iter_mut().zip(&self.host_z) {
                self.model.backend.write_real(z, host);
            }
            self.model.fusion_fwd(&mut self.fusion, &self.z, self.slots);
        }
        Ok(())
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
        self.tokens.set(backend, &ids, &positions);
        let layout = Layout { bounds, slots: running.iter().map(|run| run.slot as u32).collect() };
        if layout != self.layout {
            self.rows.spans.set(backend, &layout.bounds);
            backend.write_ids(&mut self.rows.slots, &layout.slots);
            let last: Vec<u32> = layout.bounds.iter().map(|(_, end)| *end as u32 - 1).collect();
            backend.write_ids(&mut self.last, &last);
            self.layout = layout;
        }

        let Session { model, acts, cache, tokens, rows, fusion, last, last_hidden, device_logits, recordings, .. } =
            self;
        // once every row has begun, each step reads one token of each
        let one_each = ids.len() == running.len();
        let mut decode = || {
            model.decoder_fwd(acts, tokens, Context::Cached(cache, rows), fusion, &rows.slots);
            let last_hidden = match one_each {
                true => &acts.output,
                false => {
                    backend.gather_rows_fwd(last_hidden, &acts.output, last, running.len(), dims.hidden);
                    &*last_hidden
                }
            };
            backend.head_fwd(device_logits, last_hidden, &model.params.decoder.wte, running.len());
        };
        match one_each {
            true => backend.repeat(recordings, &[running.len()], &mut decode),
            false => decode(),
        }
        for run in running {
            run.cached = run.ids.len();
        }
    }

    /// The next token of each row, by the device if it does that; rows whose logits are no numbers by the host, which says
    /// what is wrong with them.
    fn choose(&mut self, requests: &[Request<'_>], running: &mut [Running]) -> Vec<Result<u32>> {
        let (backend, vocab) = (&self.model.backend, self.model.config.dims.vocab);
        let place = |run: &Running| (requests[run.row].number, run.ids.len() - requests[run.row].prefix.len());
        let mut tokens = vec![NO_TOKEN; running.len()];
        let draws = running.iter().map(|run| {
            let (number, step) = place(run);
            run.chooser.draw(&run.ids, number, step)
        });
        backend.sample(&mut tokens, &self.device_logits, draws, vocab);
        if tokens.contains(&NO_TOKEN) {
            self.host_logits.resize(running.len() * vocab, 0.0);
            backend.read_real(&mut self.host_logits, &self.device_logits);
        }
        let logits = &self.host_logits;
        let mut choices: Vec<_> = running.iter_mut().zip(tokens.into_iter().map(Ok)).collect();
        backend.for_each(&mut choices, |i, (run, choice)| {
            if matches!(choice, Ok(NO_TOKEN)) {
                let (number, step) = place(run);
                *choice = run.chooser.choose(&logits[i * vocab..][..vocab], &run.ids, number, step);
            }
        });
        choices.into_iter().map(|(_, choice)| choice).collect()
    }
}

/// `(R, L, Z)` on the host to `L` of `(R, Z)` on the device.
pub fn upload_latents<B: Backend>(backend: &B, z: ArrayView3<'_, f32>) -> Result<Vec<B::Real>> {
    z.axis_iter(Axis(1)).map(|layer| backend.real_from(&layer.iter().copied().collect::<Vec<_>>())).collect()
}
