//! Every op of the CPU backend, for every instruction set, matrix product and number of threads.

use della::backend::{
    AttentionDims, AttentionOps, CacheRows, EmbedOps, LatentOps, LinearOps, LossOps, Matrix, NormOps, Role, Spans,
    Storage,
};
use della::cpu::{Cpu, Isa, Options, gemm};

use crate::util::close::{Tolerance, assert_close, assert_same_bits};
use crate::util::{normal, plain, wide};

/// A CPU for each instruction set and each number of threads.
fn machines() -> Vec<Cpu> {
    let machine = |isa_cap, threads| Cpu::new(Options { threads, isa_cap, gemm: None }).unwrap();
    Isa::available().flat_map(|isa| [1, 3].map(|threads| machine(Some(isa), Some(threads)))).collect()
}

/// A CPU for each matrix product that can run here.
fn products(threads: usize) -> Vec<Cpu> {
    let product = |entry: &gemm::Entry| {
        Cpu::new(Options { threads: Some(threads), isa_cap: None, gemm: Some(entry.name.into()) }).unwrap()
    };
    gemm::allowed(Isa::best()).map(product).collect()
}

fn name(cpu: &Cpu) -> String {
    format!("{} {} x{}", cpu.isa(), cpu.gemm(), cpu.threads())
}

fn read(cpu: &Cpu, x: &<Cpu as Storage>::Real, len: usize) -> Vec<f32> {
    let mut host = vec![0.0; len];
    cpu.read_real(&mut host, x);
    host
}

/// A buffer filled with what no op may let through.
fn stale(cpu: &Cpu, len: usize) -> <Cpu as Storage>::Real {
    cpu.real_from(&vec![f32::NAN; len]).unwrap()
}

/// Panics unless all results are the same bits; machines of one instruction set may differ in threads only.
fn same_for_all_threads(results: &[(String, Isa, Vec<f32>)]) {
    for pair in results.windows(2).filter(|pair| pair[0].1 == pair[1].1) {
        assert_same_bits(&pair[1].0, &pair[0].2, &pair[1].2);
    }
}

/// Runs `op` on every machine; its results must be within `tolerance` of `reference` and not depend on the threads.
fn check(what: &str, reference: &[f64], tolerance: Tolerance, op: impl Fn(&Cpu) -> Vec<f32>) {
    let run = |cpu: &Cpu| {
        let what = format!("{what} on {}", name(cpu));
        let result = op(cpu);
        assert_close(&what, &result, reference, tolerance);
        (what, cpu.isa(), result)
    };
    same_for_all_threads(&machines().iter().map(run).collect::<Vec<_>>());
}

// Around the vectors' and panels' widths, the register tiles, the depth of a pass and the blocks of rows.
const SHAPES: &[(usize, usize, usize)] = &[
    (0, 3, 5),
    (1, 1, 1),
    (1, 0, 3),
    (1, 7, 3),
    (2, 3, 8),
    (3, 16, 15),
    (4, 5, 17),
    (5, 64, 33),
    (6, 31, 16),
    (7, 191, 31),
    (11, 192, 32),
    (12, 193, 64),
    (13, 385, 65),
    (25, 48, 97),
    (32, 200, 130),
    (145, 260, 70),
    (300, 33, 300),
    (1, 768, 2304),
    (17, 768, 768),
];

#[test]
fn every_matrix_product() {
    for &(rows, inputs, outputs) in SHAPES {
        let (x, w) = (normal(1, rows * inputs), normal(2, inputs * outputs));
        let (b, r) = (normal(3, outputs), normal(4, rows * outputs));
        let w_t = plain::transpose(&w, inputs, outputs);
        let sums =
            if inputs == 0 { vec![0.0; rows * outputs] } else { plain::product(&wide(&x), &wide(&w), inputs, outputs) };
        let with = |f: &dyn Fn(f64, usize, usize) -> f64| -> Vec<f64> {
            sums.iter().enumerate().map(|(i, y)| f(*y, i % outputs, i)).collect()
        };
        let at = |x: &[f32], i: usize| f64::from(x[i]);
        let biased = with(&|y, n, _| y + at(&b, n));
        let activated = with(&|y, n, _| plain::gelu(y + at(&b, n)));
        let residual = with(&|y, n, i| y + at(&b, n) + at(&r, i));
        let accumulated = with(&|y, _, i| y + at(&r, i));
        for cpu in products(1).into_iter().chain(products(3)) {
            let what = format!("{rows}x{inputs}x{outputs} on {}", name(&cpu));
            let len = rows * outputs;
            let tolerance = Tolerance::sum(inputs);
            let (x, b, r) = (cpu.real_from(&x).unwrap(), cpu.real_from(&b).unwrap(), cpu.real_from(&r).unwrap());
            let linear = cpu.weight(Matrix { data: &w, rows: inputs, cols: outputs }, Role::Linear).unwrap();
            let transposed = |role| cpu.weight(Matrix { data: &w_t, rows: outputs, cols: inputs }, role).unwrap();
            let close = |op: &str, y: &<Cpu as Storage>::Real, reference: &[f64]| {
                assert_close(&format!("{op} {what}"), &read(&cpu, y, len), reference, tolerance);
            };

            let mut y = stale(&cpu, len);
            cpu.linear_fwd(&mut y, &x, &linear, &b, rows);
            close("linear", &y, &biased);
            let mut y = stale(&cpu, len);
            cpu.linear_gelu_fwd(&mut y, &x, &linear, &b, rows);
            close("gelu", &y, &activated);
            let mut y = stale(&cpu, len);
            cpu.linear_residual_fwd(&mut y, &r, &x, &linear, &b, rows);
            close("residual", &y, &residual);
            let mut y = stale(&cpu, len);
            cpu.head_fwd(&mut y, &x, &transposed(Role::TiedTable), rows);
            close("head", &y, &sums);
            let latent = transposed(Role::Latent);
            let mut y = stale(&cpu, len);
            cpu.latent_linear_fwd(&mut y, &x, &latent, rows, false);
            close("latent", &y, &sums);
            let mut y = cpu.real_from(&read(&cpu, &r, len)).unwrap();
            cpu.latent_linear_fwd(&mut y, &x, &latent, rows, true);
            close("accumulated", &y, &accumulated);
        }
    }
}

#[test]
fn a_row_alone_has_the_bits_of_the_row_in_a_batch() {
    for (inputs, outputs) in [(70, 50), (768, 2304), (3072, 96)] {
        const ROWS: usize = 32;
        let (x, w, b) = (normal(5, ROWS * inputs), normal(6, inputs * outputs), normal(7, outputs));
        for (one, many) in products(1).into_iter().zip(products(2)) {
            let run = |cpu: &Cpu, first: usize, rows: usize| {
                let w = cpu.weight(Matrix { data: &w, rows: inputs, cols: outputs }, Role::Linear).unwrap();
                let x = cpu.real_from(&x[first * inputs..][..rows * inputs]).unwrap();
                let mut y = stale(cpu, rows * outputs);
                cpu.linear_gelu_fwd(&mut y, &x, &w, &cpu.real_from(&b).unwrap(), rows);
                read(cpu, &y, rows * outputs)
            };
            let what = format!("{inputs}x{outputs} on {}", name(&one));
            let batch = run(&one, 0, ROWS);
            assert_same_bits(&format!("threads {what}"), &run(&many, 0, ROWS), &batch);
            for (first, rows) in [(0, 1), (31, 1), (3, 2), (5, 5), (7, 12), (1, 13), (0, 17)] {
                let part = &batch[first * outputs..][..rows * outputs];
                assert_same_bits(&format!("{rows} rows {what}"), &run(&many, first, rows), part);
            }
        }
    }
}

#[test]
fn embedding_rows_come_out_of_every_layout() {
    for width in [1, 3, 16, 50] {
        let (vocab, positions) = (37, 9);
        let (wte, wpe) = (normal(8, vocab * width), normal(9, positions * width));
        let (ids, places) = ([36, 0, 5, 5, 31, 32], [0, 1, 2, 8, 4, 0]);
        let expected: Vec<f32> = (0..ids.len() * width)
            .map(|i| {
                let (n, c) = (i / width, i % width);
                wte[ids[n] as usize * width + c] + wpe[places[n] as usize * width + c]
            })
            .collect();
        for cpu in machines().into_iter().chain(products(2)) {
            for role in [Role::Table, Role::TiedTable] {
                let wte = cpu.weight(Matrix { data: &wte, rows: vocab, cols: width }, role).unwrap();
                let wpe = cpu.weight(Matrix { data: &wpe, rows: positions, cols: width }, Role::Table).unwrap();
                let (ids, places) = (cpu.ids_from(&ids).unwrap(), cpu.ids_from(&places).unwrap());
                let mut y = stale(&cpu, 6 * width);
                cpu.embed_fwd(&mut y, &ids, &places, &wte, &wpe, 6);
                assert_same_bits(&format!("{role:?} on {}", name(&cpu)), &read(&cpu, &y, 6 * width), &expected);
                let mut picked = stale(&cpu, 2 * width);
                cpu.gather_rows_fwd(&mut picked, &y, &cpu.ids_from(&[4, 1]).unwrap(), 2, width);
                let rows = [&expected[4 * width..5 * width], &expected[width..2 * width]].concat();
                assert_same_bits("gathered", &read(&cpu, &picked, 2 * width), &rows);
            }
        }
    }
}

#[test]
fn layer_norm() {
    for (tokens, width) in [(0, 4), (1, 1), (3, 7), (2, 16), (5, 33), (70, 768)] {
        let (mut x, gain, bias) = (normal(10, tokens * width), normal(11, width), normal(12, width));
        x.iter_mut().for_each(|x| *x = *x * 2.0 + 0.5);
        let (y, mean, rstd) = plain::layernorm(&wide(&x), &wide(&gain), &wide(&bias), 1e-5);
        let what = format!("layer norm {tokens}x{width}");
        // A row of one has variance 0: its reciprocal deviation magnifies what the mean was rounded by.
        let run = |cpu: &Cpu| {
            let (mut y, mut mean, mut rstd) = (stale(cpu, tokens * width), stale(cpu, tokens), stale(cpu, tokens));
            let real = |x: &[f32]| cpu.real_from(x).unwrap();
            let (x, gain, bias) = (real(&x), real(&gain), real(&bias));
            cpu.layernorm_fwd(&mut y, &mut mean, &mut rstd, &x, &gain, &bias, 1e-5, tokens, width);
            [read(cpu, &y, tokens * width), read(cpu, &mean, tokens), read(cpu, &rstd, tokens)]
        };
        check(&format!("{what}: y"), &y, Tolerance::sum(width), |cpu| run(cpu)[0].clone());
        check(&format!("{what}: mean"), &mean, Tolerance::sum(width), |cpu| run(cpu)[1].clone());
        check(&format!("{what}: rstd"), &rstd, Tolerance::sum(width), |cpu| run(cpu)[2].clone());
    }
}

#[test]
fn layer_norm_keeps_its_digits_far_from_zero() {
    let width = 100;
    let x: Vec<f32> = normal(13, width).iter().map(|x| 1000.0 + x).collect();
    let (gain, bias) = (vec![1.0; width], vec![0.0; width]);
    let (y, ..) = plain::layernorm(&wide(&x), &wide(&gain), &wide(&bias), 1e-5);
    // The mean alone is rounded at 1000; a variance from a difference of squares would be off by a tenth.
    check("far from zero", &y, Tolerance { factor: 1000.0, terms: 1 }, |cpu| {
        let (mut y, mut mean, mut rstd) = (stale(cpu, width), stale(cpu, 1), stale(cpu, 1));
        let real = |x: &[f32]| cpu.real_from(x).unwrap();
        cpu.layernorm_fwd(&mut y, &mut mean, &mut rstd, &real(&x), &real(&gain), &real(&bias), 1e-5, 1, width);
        read(cpu, &y, width)
    });
}

#[test]
fn attention_over_spans() {
    for (lengths, heads, head_dim) in [
        (&[1][..], 1, 1),
        (&[3, 1, 2], 2, 5),
        (&[17, 33], 3, 16),
        (&[5, 0, 9], 1, 67),
        (&[40, 130], 2, 64),
        (&[20], 1, 80),
    ] {
        let dims = AttentionDims { heads, head_dim };
        let tokens: usize = lengths.iter().sum();
        let width = dims.width();
        let qkv = normal(14, tokens * 3 * width);
        let mut end = 0;
        let bounds: Vec<_> = lengths
            .iter()
            .map(|len| {
                (end, {
                    end += len;
                    end
                })
            })
            .collect();
        let reference = plain::attention(&wide(&qkv), &bounds, heads, head_dim);
        let what = format!("attention {lengths:?} {heads}x{head_dim}");
        check(&what, &reference, Tolerance { factor: 8.0, terms: head_dim }, |cpu| {
            let spans = Spans::new(cpu, &bounds).unwrap();
            let mut y = stale(cpu, tokens * width);
            cpu.attention_fwd(&mut y, &cpu.real_from(&qkv).unwrap(), &spans, dims);
            read(cpu, &y, tokens * width)
        });
    }
}

/// Two rows are decoded in pieces through a cache, in slots out of order; the bits are those of the whole pass.
#[test]
fn cached_attention_is_attention() {
    for (heads, head_dim) in [(2, 16), (3, 7), (12, 64)] {
        let dims = AttentionDims { heads, head_dim };
        let (width, lengths, capacity) = (dims.width(), [23, 60], 64);
        let qkv = normal(15, (lengths[0] + lengths[1]) * 3 * width);
        for cpu in machines() {
            let mut whole = stale(&cpu, (lengths[0] + lengths[1]) * width);
            let spans = Spans::of_lengths(&cpu, lengths).unwrap();
            cpu.attention_fwd(&mut whole, &cpu.real_from(&qkv).unwrap(), &spans, dims);
            let whole = read(&cpu, &whole, (lengths[0] + lengths[1]) * width);

            let slots = [2, 0];
            let mut keys = stale(&cpu, 3 * capacity * width);
            let mut values = stale(&cpu, 3 * capacity * width);
            let mut past = [0, 0];
            for step in [[10, 1], [1, 40], [1, 1], [0, 1], [11, 17]] {
                let rows = CacheRows {
                    spans: Spans::of_lengths(&cpu, step).unwrap(),
                    slots: cpu.ids_from(&slots).unwrap(),
                    past: cpu.ids_from(&past.map(|p| p as u32)).unwrap(),
                    capacity,
                };
                let place = |row: usize| row * lengths[0] + past[row];
                let part = |row: usize, x: &[f32], width: usize| x[place(row) * width..][..step[row] * width].to_vec();
                let x = [part(0, &qkv, 3 * width), part(1, &qkv, 3 * width)].concat();
                let tokens = step[0] + step[1];
                let mut y = stale(&cpu, tokens * width);
                let x = cpu.real_from(&x).unwrap();
                cpu.attention_cached_fwd(&mut y, &mut keys, &mut values, &x, &rows, dims);
                let expected = [part(0, &whole, width), part(1, &whole, width)].concat();
                let what = format!("{step:?} after {past:?} on {}", name(&cpu));
                assert_same_bits(&what, &read(&cpu, &y, tokens * width), &expected);
                past = [past[0] + step[0], past[1] + step[1]];
            }
            assert_eq!(past, lengths);
        }
    }
}

#[test]
fn pooling_over_spans() {
    // Not all tokens are in a span, and spans need not be in order.
    for (tokens, width, bounds) in
        [(1, 1, &[(0, 1)][..]), (9, 5, &[(6, 9), (0, 4)]), (70, 33, &[(0, 1), (1, 70)]), (300, 768, &[(2, 300)])]
    {
        let (x, w) = (normal(16, tokens * width), normal(17, width));
        let w: Vec<f32> = w.iter().map(|w| w / (width as f32).sqrt()).collect();
        let (y, weights) = plain::pool(&wide(&x), &wide(&w), bounds);
        let longest = bounds.iter().map(|(start, end)| end - start).max().unwrap();
        let run = |cpu: &Cpu| {
            let spans = Spans::new(cpu, bounds).unwrap();
            let (mut y, mut scores) = (stale(cpu, bounds.len() * width), cpu.real(tokens).unwrap());
            cpu.pool_fwd(&mut y, &mut scores, &cpu.real_from(&x).unwrap(), &cpu.real_from(&w).unwrap(), &spans, width);
            (read(cpu, &y, bounds.len() * width), read(cpu, &scores, tokens))
        };
        let tolerance = Tolerance::sum(longest.max(width));
        check(&format!("pool {tokens}x{width}"), &y, tolerance, |cpu| run(cpu).0);
        check(&format!("pool weights {tokens}x{width}"), &weights, tolerance, |cpu| run(cpu).1);
    }
}

#[test]
fn the_latent_chain() {
    for (rows, latent) in [(1, 1), (3, 7), (2, 16), (5, 33), (32, 256)] {
        let what = format!("{rows}x{latent}");
        let (q, p, eps) = (normal(18, rows * 2 * latent), normal(19, rows * 2 * latent), normal(20, rows * latent));
        let element = |x: &[f32], i: usize| f64::from(x[i / latent * 2 * latent + i % latent]);
        let sampled: Vec<f64> = (0..rows * latent)
            .map(|i| element(&q, i) + 0.7 * f64::from(eps[i]) * (0.5 * element(&q[latent..], i)).exp())
            .collect();
        let sample = |cpu: &Cpu, eps: Option<&[f32]>, scale| {
            let mut z = stale(cpu, rows * latent);
            let eps = eps.map(|eps| cpu.real_from(eps).unwrap());
            cpu.reparameterize_fwd(&mut z, &cpu.real_from(&q).unwrap(), eps.as_ref(), scale, rows, latent);
            read(cpu, &z, rows * latent)
        };
        check(&format!("sample {what}"), &sampled, Tolerance { factor: 16.0, terms: 1 }, |cpu| {
            sample(cpu, Some(&eps), 0.7)
        });
        let means: Vec<f32> = (0..rows * latent).map(|i| element(&q, i) as f32).collect();
        for cpu in machines() {
            assert_same_bits("mean", &sample(&cpu, None, 1.0), &means);
            assert_same_bits("no noise", &sample(&cpu, Some(&eps), 0.0), &means);
        }

        let kl = plain::kl(&wide(&q), &wide(&p), latent);
        let divergence = |cpu: &Cpu, q: &[f32], p: &[f32]| {
            let mut kl = stale(cpu, rows);
            cpu.kl_fwd(&mut kl, &cpu.real_from(q).unwrap(), &cpu.real_from(p).unwrap(), rows, latent);
            read(cpu, &kl, rows)
        };
        check(&format!("kl {what}"), &kl, Tolerance::sum(latent), |cpu| divergence(cpu, &q, &p));
        check("kl of equals", &vec![0.0; rows], Tolerance::sum(1), |cpu| divergence(cpu, &q, &q));
        // Almost equal Gaussians, where a sum of the four terms would cancel.
        let near: Vec<f32> = q.iter().zip(&p).map(|(q, p)| q + 1e-3 * p).collect();
        let kl = plain::kl(&wide(&near), &wide(&q), latent);
        let tolerance = Tolerance { factor: 1e4, terms: 1 };
        check(&format!("kl near zero {what}"), &kl, tolerance, |cpu| divergence(cpu, &near, &q));

        let tanh: Vec<f64> = wide(&q).iter().map(|x| x.tanh()).collect();
        check(&format!("tanh {what}"), &tanh, Tolerance::sum(1), |cpu| {
            let mut y = stale(cpu, q.len());
            cpu.tanh_fwd(&mut y, &cpu.real_from(&q).unwrap(), q.len());
            read(cpu, &y, q.len())
        });
    }
}

#[test]
fn concatenation_and_fusion() {
    let (a, b, h) = (normal(21, 3 * 4), normal(22, 3 * 2), normal(23, 9 * 6));
    let bounds = [(0, 2), (2, 3), (4, 9)];
    for cpu in machines() {
        let mut e = stale(&cpu, 18);
        cpu.concat_fwd(&mut e, &[(&cpu.real_from(&a).unwrap(), 4), (&cpu.real_from(&b).unwrap(), 2)], 3);
        let expected: Vec<f32> = (0..3).flat_map(|r| [&a[4 * r..4 * r + 4], &b[2 * r..2 * r + 2]].concat()).collect();
        let e_host = read(&cpu, &e, 18);
        assert_same_bits("concat", &e_host, &expected);

        let mut y = cpu.real_from(&h).unwrap();
        let slots = [2, 0, 1];
        let spans = Spans::new(&cpu, &bounds).unwrap();
        cpu.fuse_fwd(&mut y, &e, &cpu.ids_from(&slots).unwrap(), &spans, 6);
        let mut fused = h.clone();
        for (slot, (start, end)) in slots.into_iter().zip(bounds) {
            for t in start..end {
                (0..6).for_each(|c| fused[t * 6 + c] += e_host[slot as usize * 6 + c]);
            }
        }
        assert_same_bits("fuse", &read(&cpu, &y, 54), &fused);
    }
}

#[test]
fn cross_entropy() {
    for (tokens, vocab) in [(1, 1), (3, 7), (2, 16), (5, 33), (4, 21130)] {
        let logits: Vec<f32> = normal(24, tokens * vocab).iter().map(|x| 3.0 * x).collect();
        let targets: Vec<u32> = (0..tokens).map(|n| (n * 31 % vocab) as u32).collect();
        let reference = plain::cross_entropy(&wide(&logits), &targets);
        check(&format!("loss {tokens}x{vocab}"), &reference, Tolerance::sum(vocab), |cpu| {
            let mut loss = stale(cpu, tokens);
            let targets = cpu.ids_from(&targets).unwrap();
            cpu.cross_entropy_fwd(&mut loss, &cpu.real_from(&logits).unwrap(), &targets, tokens, vocab);
            read(cpu, &loss, tokens)
        });
    }
}

#[test]
fn options_are_checked() {
    let message = |options| Cpu::new(options).err().unwrap().to_string();
    let unknown = message(Options { gemm: Some("fast".into()), ..Options::default() });
    assert!(unknown.contains("fast") && unknown.contains("portable-f32-panel"), "{unknown}");
    assert!(message(Options { threads: Some(0), ..Options::default() }).contains("at least 1"));
    let best = Cpu::new(Options::default()).unwrap();
    assert_eq!((best.isa(), best.gemm()), (Isa::best(), gemm::allowed(Isa::best()).next().unwrap().name));
    let matrix = Matrix { data: &[1.0; 5], rows: 2, cols: 3 };
    assert!(best.weight(matrix, Role::Linear).err().unwrap().to_string().contains("2 x 3"));
}
