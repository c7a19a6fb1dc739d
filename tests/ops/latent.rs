//! Pooling, the latent chain and fusion.

use della::backend::{Backend, ChainLayer, ChainScratch, Drive, Matrix, Norm, NormScratch, Role, RowLatents};
use della::dims::Dims;

use crate::util::close::Tolerance;
use crate::util::normal;
use crate::util::op::{Op, Outputs, act, check, ids, machines, read, read_act, real, spans, stale, stale_act};

/// Pooling over spans, which need not hold all tokens, nor be in order.
struct Pool<'a> {
    tokens: usize,
    width: usize,
    bounds: &'a [(usize, usize)],
}

impl Op for Pool<'_> {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let Pool { tokens, width, bounds } = *self;
        let w: Vec<f32> = normal(17, width).iter().map(|w| w / (width as f32).sqrt()).collect();
        let x = act(b, &normal(16, tokens * width));
        let (mut y, mut scores) = (stale(b, bounds.len() * width), b.real(tokens).unwrap());
        b.pool_fwd(&mut y, &mut scores, &x, &real(b, &w), &spans(b, bounds), width);
        vec![("y", read(b, &y, bounds.len() * width)), ("scores", read(b, &scores, tokens))]
    }
}

#[test]
fn pooling() {
    for (tokens, width, bounds) in
        [(1, 1, &[(0, 1)][..]), (9, 5, &[(6, 9), (0, 4)]), (70, 33, &[(0, 1), (1, 70)]), (300, 768, &[(2, 300)])]
    {
        let longest = bounds.iter().map(|(start, end)| end - start).max().unwrap();
        let op = Pool { tokens, width, bounds };
        check(&format!("pool {tokens}x{width}"), &op, Tolerance::sum(longest.max(width)), &machines());
    }
}

/// Draws from a Gaussian, with and without noise, and tanh.
struct Draw {
    rows: usize,
    latent: usize,
}

impl Op for Draw {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let Draw { rows, latent } = *self;
        let len = rows * latent;
        let gaussian = real(b, &normal(18, 2 * len));
        let eps = real(b, &normal(20, len));
        let draw = |eps, scale| {
            let mut z = stale(b, len);
            b.reparameterize_fwd(&mut z, &gaussian, eps, scale, rows, latent);
            read(b, &z, len)
        };
        let mut boundless = normal(18, 2 * len);
        boundless.chunks_exact_mut(2 * latent).for_each(|row| row[latent..].fill(1500.0));
        let mut mean_of_boundless = stale(b, len);
        b.reparameterize_fwd(&mut mean_of_boundless, &real(b, &boundless), Some(&eps), 0.0, rows, latent);
        let mut tanh = stale(b, 2 * len);
        b.tanh_fwd(&mut tanh, &gaussian, 2 * len);
        vec![
            ("sample", draw(Some(&eps), 0.7)),
            ("mean", draw(None, 1.0)),
            ("without noise", draw(Some(&eps), 0.0)),
            ("mean of what has no bounds", read(b, &mean_of_boundless, len)),
            ("tanh", read(b, &tanh, 2 * len)),
        ]
    }
}

/// Divergence of Gaussians that differ by `distance`.
struct Divergence {
    rows: usize,
    latent: usize,
    distance: f32,
}

impl Op for Divergence {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let Divergence { rows, latent, distance } = *self;
        let (p, direction) = (normal(18, rows * 2 * latent), normal(19, rows * 2 * latent));
        let q: Vec<f32> = p.iter().zip(direction).map(|(p, d)| p + distance * d).collect();
        let mut kl = stale(b, rows);
        b.kl_fwd(&mut kl, &real(b, &q), &real(b, &p), rows, latent);
        vec![("kl", read(b, &kl, rows))]
    }
}

#[test]
fn the_latent_chain() {
    for (rows, latent) in [(1, 1), (3, 7), (2, 16), (5, 33), (32, 256)] {
        let what = format!("{rows}x{latent}");
        check(&what, &Draw { rows, latent }, Tolerance { factor: 16.0, terms: 1 }, &machines());
        // near 0, where a sum of the four terms would cancel, the difference of the inputs is what is rounded
        for (distance, factor) in [(1.0, 4.0), (1e-3, 1e4), (0.0, 1.0)] {
            let terms = if distance == 1.0 { latent } else { 1 };
            let op = Divergence { rows, latent, distance };
            check(&format!("kl {what} at {distance}"), &op, Tolerance { factor, terms }, &machines());
        }
    }
}

/// Parts side by side, added to the tokens of spans.
struct ConcatFuse;

impl Op for ConcatFuse {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let mut e = stale(b, 18);
        b.concat_fwd(&mut e, &[(&real(b, &normal(21, 12)), 4), (&real(b, &normal(22, 6)), 2)], 3);
        let mut h = act(b, &normal(23, 54));
        b.fuse_fwd(&mut h, &e, &ids(b, &[2, 0, 1]), &spans(b, &[(0, 2), (2, 3), (4, 9)]), 6);
        vec![("concat", read(b, &e, 18)), ("fuse", read_act(b, &h, 54))]
    }
}

#[test]
fn concatenation_and_fusion() {
    check("parts", &ConcatFuse, Tolerance::sum(1), &machines());
}

/// Latents added to the tokens of rows, and a product behind a norm of that: a device may take one token of each at once.
struct FusedProduct<'a> {
    bounds: &'a [(usize, usize)],
    width: usize,
}

impl Op for FusedProduct<'_> {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let (width, outputs, rows) = (self.width, 40, self.bounds.len());
        let spans = spans(b, self.bounds);
        let (tokens, len) = (spans.end, spans.end * width);
        let (mut h, mut room) = (b.stream(len).unwrap(), b.stream(len).unwrap());
        b.write_act(&mut h, &normal(24, len));
        b.write_act(&mut room, &vec![f32::NAN; len]);
        let e = real(b, &normal(25, (rows + 2) * width));
        let slots = ids(b, &(0..rows as u32).map(|row| (row + 3) % (rows as u32 + 2)).collect::<Vec<_>>());
        let data: Vec<f32> = normal(26, width * outputs).iter().map(|w| w / (width as f32).sqrt()).collect();
        let w = b.weight(Matrix { data: &data, rows: width, cols: outputs }, Role::Linear).unwrap();
        let [gain, shift, bias] =
            [(27, width), (28, width), (29, outputs)].map(|(seed, len)| real(b, &normal(seed, len)));
        let (mut y, mut normed) = (stale_act(b, tokens * outputs), stale_act(b, len));
        let (mut mean, mut rstd) = (stale(b, tokens), stale(b, tokens));
        let scratch = NormScratch { y: &mut normed, mean: &mut mean, rstd: &mut rstd };
        let norm = Norm { gain: &gain, bias: &shift, epsilon: 1e-5, width };
        let latents = RowLatents { e: &e, slots: &slots, spans: &spans };
        let sum = b.fuse_norm_linear_fwd(&mut y, scratch, &mut room, &mut h, &latents, norm, (&w, &bias), tokens);
        vec![("sum", read_act(b, sum, len)), ("y", read_act(b, &y, tokens * outputs))]
    }
}

#[test]
fn products_of_fused_rows() {
    let one_each: Vec<(usize, usize)> = (0..9).map(|n| (n, n + 1)).collect();
    for (bounds, width) in
        [(&one_each[..1], 96), (&one_each[..5], 132), (&one_each[..8], 64), (&one_each, 64), (&[(0, 2), (2, 3)], 64)]
    {
        let what = format!("{} fused rows of {width}", bounds.len());
        check(&what, &FusedProduct { bounds, width }, Tolerance::sum(4 * width), &machines());
    }
}

/// The chain through all layers, with and without a condition.
struct Chain {
    rows: usize,
    dims: Dims,
    drive: Drive,
    noise: bool,
}

impl Chain {
    fn new(rows: usize, [layers, hidden, latent]: [usize; 3], conditional: bool) -> Self {
        let dims = Dims { vocab: 1, positions: 1, hidden, heads: 1, inner: 1, layers, latent, conditional };
        Chain { rows, dims, drive: Drive::Posterior, noise: true }
    }
}

impl Op for Chain {
    fn run<B: Backend>(&self, b: &B) -> Outputs {
        let Chain { rows, dims, drive, noise } = *self;
        let (hidden, latent) = (rows * dims.hidden, rows * dims.latent);
        let net = |seed: usize, outputs: usize, inputs: usize| {
            let data: Vec<f32> =
                normal(seed as u64, outputs * inputs).iter().map(|w| w / (inputs as f32).sqrt()).collect();
            b.weight(Matrix { data: &data, rows: outputs, cols: inputs }, Role::Latent).unwrap()
        };
        let layers = |make: &dyn Fn(usize) -> B::Real| (0..dims.layers).map(make).collect::<Vec<_>>();
        let numbers = |first: u64, len: usize| layers(&|l| real(b, &normal(first + l as u64, len)));
        let priors: Vec<_> = (0..dims.layers).map(|l| net(200 + l, 2 * dims.latent, dims.prior_inputs())).collect();
        let posteriors: Vec<_> =
            (0..dims.layers).map(|l| net(220 + l, 2 * dims.latent, dims.posterior_inputs())).collect();
        let [hh, ih] = [240, 260]
            .map(|seed| (1..dims.layers).map(|l| net(seed + l, dims.latent, dims.latent)).collect::<Vec<_>>());
        let (pooled, condition, eps) = (numbers(280, hidden), numbers(300, hidden), numbers(320, latent));
        let mut states = layers(&|l| if l == 0 { b.real(latent).unwrap() } else { stale(b, latent) });
        let (mut prior, mut posterior) = (layers(&|_| stale(b, 2 * latent)), layers(&|_| stale(b, 2 * latent)));
        let mut z = if drive == Drive::Given { numbers(340, latent) } else { layers(&|_| stale(b, latent)) };
        let mut kl = layers(&|_| stale(b, rows));
        let written = states.iter_mut().zip(&mut prior).zip(&mut posterior).zip(&mut z).zip(&mut kl);
        let mut chain: Vec<_> = written
            .enumerate()
            .map(|(l, ((((state, prior), posterior), z), kl))| ChainLayer {
                prior_net: &priors[l],
                posterior_net: &posteriors[l],
                step: hh.get(l).zip(ih.get(l)).map(|(hh, ih)| [hh, ih]),
                pooled: &pooled[l],
                pooled_condition: dims.conditional.then(|| &condition[l]),
                eps: noise.then(|| &eps[l]),
                state,
                prior,
                posterior,
                z,
                kl,
            })
            .collect();
        let inputs = [latent, rows * dims.prior_inputs(), rows * dims.posterior_inputs()];
        let [mut state_in, mut prior_in, mut posterior_in] = inputs.map(|len| stale(b, len));
        let scratch =
            ChainScratch { state_in: &mut state_in, prior_in: &mut prior_in, posterior_in: &mut posterior_in };
        b.chain_fwd(&mut chain, scratch, drive, 0.7, &dims, rows);
        let all = |buffers: &[B::Real], len| buffers.iter().flat_map(|x| read(b, x, len)).collect::<Vec<_>>();
        let mut outputs = vec![("states", all(&states, latent)), ("prior", all(&prior, 2 * latent))];
        outputs.push(("z", all(&z, latent)));
        if drive != Drive::Prior {
            outputs.extend([("posterior", all(&posterior, 2 * latent)), ("kl", all(&kl, rows))]);
        }
        outputs
    }
}

#[test]
fn the_chain_through_all_layers() {
    for (rows, sizes) in
        [(1, [1, 1, 1]), (3, [2, 5, 3]), (5, [3, 16, 8]), (9, [2, 33, 7]), (4, [4, 48, 12]), (6, [2, 200, 40])]
    {
        for conditional in [false, true] {
            for (drive, noise) in
                [(Drive::Posterior, true), (Drive::Posterior, false), (Drive::Prior, true), (Drive::Given, false)]
            {
                let op = Chain { drive, noise, ..Chain::new(rows, sizes, conditional) };
                let what = format!("chain {rows}x{sizes:?} by {drive:?}, condition {conditional}, noise {noise}");
                // what a layer is off, the ones above it are off too
                let tolerance = Tolerance { factor: 32.0, terms: sizes[0] * op.dims.posterior_inputs() };
                check(&what, &op, tolerance, &machines());
            }
        }
    }
}
