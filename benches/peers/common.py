"""What the peers' scripts share: the random GPT-2 that all of them run, the check of their results, and the timing."""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

# The decoder of Randeng-DELLA, and a small one for --quick.
FULL = {"vocab": 21130, "width": 768, "layers": 12, "heads": 12, "positions": 1024, "latent": 256}
QUICK = {"vocab": 1000, "width": 64, "layers": 2, "heads": 2, "positions": 128, "latent": 16}

# How far a peer's logits may be from the reference, in units of its rms. Another model differs by more than 1.
TOLERANCE = {"f32": 0.01, "bf16": 0.1, "int8": 0.2, "int4": 0.7}
CHECKED_TOKENS = 8


def make_weights(shape, path):
    """Random weights under the names of Hugging Face's GPT-2 (matrices are stored input by output)."""
    rng = np.random.default_rng(0)
    width = shape["width"]

    def normal(*dims, std=0.05):
        return rng.standard_normal(dims, dtype=np.float32) * np.float32(std)

    def norm(name):
        weights[name + ".weight"], weights[name + ".bias"] = 1 + normal(width), normal(width)

    weights = {"wte.weight": normal(shape["vocab"], width), "wpe.weight": normal(shape["positions"], width)}
    for layer in range(shape["layers"]):
        p = f"h.{layer}."
        for name, rows, cols in [
            ("attn.c_attn", width, 3 * width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", width, 4 * width),
            ("mlp.c_proj", 4 * width, width),
        ]:
            weights[f"{p}{name}.weight"], weights[f"{p}{name}.bias"] = normal(rows, cols), normal(cols)
        norm(p + "ln_1")
        norm(p + "ln_2")
    norm("ln_f")
    save_file(weights, path)
    return weights


def reference_logits(shape, weights, ids):
    """GPT-2 in plain f64: (tokens,) -> (tokens, vocabulary)."""

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w(name + ".weight") + w(name + ".bias")

    def linear(x, name):
        return x @ w(name + ".weight") + w(name + ".bias")

    w = lambda name: weights[name].astype(np.float64)
    tokens, heads = len(ids), shape["heads"]
    x = w("wte.weight")[ids] + w("wpe.weight")[:tokens]
    for layer in range(shape["layers"]):
        p = f"h.{layer}."
        q, k, v = np.split(linear(norm(x, p + "ln_1"), p + "attn.c_attn").reshape(tokens, 3 * heads, -1), 3, axis=1)
        scores = np.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v)
        x = x + linear(mixed.reshape(tokens, -1), p + "attn.c_proj")
        h = linear(norm(x, p + "ln_2"), p + "mlp.c_fc")
        h = 0.5 * h * (1 + np.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + linear(h, p + "mlp.c_proj")
    return norm(x, "ln_f") @ w("wte.weight").T


def prepare(data, quick):
    """Writes into `data` the weights and what a right implementation computes with them."""
    shape = QUICK if quick else FULL
    weights = make_weights(shape, data / "weights.safetensors")
    ids = np.random.default_rng(1).integers(1, shape["vocab"], (2, 16))
    logits = np.stack([reference_logits(shape, weights, row) for row in ids])
    greedy = [int(ids[0, 0])]
    for _ in range(CHECKED_TOKENS):
        greedy.append(int(reference_logits(shape, weights, np.array(greedy))[-1].argmax()))
    np.savez(data / "reference.npz", ids=ids, logits=logits.astype(np.float32), greedy=greedy)
    (data / "shape.json").write_text(json.dumps(shape))


def arguments():
    """The command line that `run.py` gives to every peer's script."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--kind", choices=["prepare", "decode", "prefill", "encode", "train"], required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16", "int8", "int4"], default="f32")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    args, rest = parser.parse_known_args()
    args.rest = rest
    args.shape = json.loads((args.data / "shape.json").read_text())
    return args


def weights(args):
    return load_file(args.data / "weights.safetensors")


def skip(reason):
    """Ends a script that cannot do what it was asked."""
    print(json.dumps({"skip": reason}))
    sys.exit(0)


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(args, version, samples, units):
    """One measurement: what each repetition took, and how many tokens (or sentences) it did."""
    print(json.dumps({"seconds": samples, "units": units, "version": version}), flush=True)


def check(peer, args):
    """The peer must compute the model: finite logits of the right shape, near the reference, with a cache too."""
    expected = np.load(args.data / "reference.npz")
    logits = peer.array(peer.forward(expected["ids"]))
    if logits.shape != expected["logits"].shape or not np.isfinite(logits).all():
        sys.exit(f"wrong result: shape {logits.shape}, finite: {np.isfinite(logits).all()}")
    error = np.sqrt(((logits - expected["logits"]) ** 2).mean() / (expected["logits"] ** 2).mean())
    if error > TOLERANCE[args.dtype]:
        sys.exit(f"wrong result: logits differ from the reference by {error:.3g} of their rms")
    _, tokens = peer.decode(np.repeat(expected["greedy"][None, :1], 2, 0), CHECKED_TOKENS)
    tokens = np.asarray(tokens)
    if tokens.shape != (2, CHECKED_TOKENS) or (tokens[0] != tokens[1]).any():
        sys.exit(f"wrong result: decoded {tokens.tolist()}")
    if args.dtype == "f32" and (tokens[0] != expected["greedy"][1:]).any():
        sys.exit(f"wrong result: decoded {tokens[0].tolist()} instead of {expected['greedy'][1:].tolist()}")


def main(make):
    """Measures the GPT-2 `make(args)`, which has `version`; `forward(ids)`, the logits at every position, and `array`
    to see them; and `decode(ids, n)`: the seconds that `n` greedy steps with a cache took, and their tokens."""
    args = arguments()
    if args.kind not in ("decode", "prefill"):
        skip(f"does not {args.kind}")
    peer = make(args)
    check(peer, args)
    rng = np.random.default_rng(2)
    tokens = args.batch * args.length
    if args.kind == "decode":
        ids = rng.integers(1, args.shape["vocab"], (args.batch, 1))
        run = lambda: peer.decode(ids, args.length)[0]
    else:
        ids = rng.integers(1, args.shape["vocab"], (args.batch, args.length))
        run = lambda: seconds(lambda: peer.forward(ids))
    run()
    report(args, peer.version, [run() for _ in range(args.repetitions)], tokens)


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), "--quick" in sys.argv)
