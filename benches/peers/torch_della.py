"""PyTorch doing DELLA's own work: encoding to latents, and a training step. `--compile` goes through torch.compile.

Attention is PyTorch's fused one, the optimiser its fused AdamW: this is faster than the published code. No dropout.
"""

import math
import sys
from pathlib import Path

import common
import torch
import torch.nn as nn

sys.path.append(str(Path(__file__).resolve().parents[1]))
from torch_model import Della


def main():
    args = common.arguments()
    if args.kind not in ("encode", "train") or args.dtype in ("int8", "int4"):
        common.skip("encodes and trains in f32 and bf16 only")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    shape, model = args.shape, Della(args.shape)
    ids = torch.randint(1, shape["vocab"], (args.batch, args.length))
    compile = torch.compile if "--compile" in args.rest else lambda f: f
    autocast = lambda: torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bf16")
    version = f"torch {torch.__version__}"

    if args.kind == "encode":
        encode = compile(model.encode)

        @torch.no_grad()
        def run():
            with autocast():
                return encode(ids)[0]

        zs = run()
        assert zs.shape == (shape["layers"], args.batch, shape["latent"]) and zs.isfinite().all(), "wrong latents"
        units = args.batch
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.01, fused=True)
        loss_of = compile(model)

        def run():
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                reconstruction, kl = loss_of(ids)
            (reconstruction + kl).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            return reconstruction.item(), kl.item()

        # Random weights guess: each token costs about log(vocabulary).
        (reconstruction, kl), guess = run(), math.log(shape["vocab"])
        right = 0.9 * guess < reconstruction < 1.2 * guess and math.isfinite(kl) and kl > 0
        assert right, f"wrong loss: {reconstruction} and KL {kl}, where a guess has {guess}"
        units = args.batch * args.length
    common.report(args, version, [common.seconds(run) for _ in range(args.repetitions)], units)


if __name__ == "__main__":
    main()
