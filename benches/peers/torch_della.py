"""PyTorch doing DELLA's own work: encoding to latents, and a training step. `--compile` goes through torch.compile.

Attention is PyTorch's fused one, the optimiser its fused AdamW: this is faster than the published code. No dropout.
"""

import math

import common
import torch
import torch.nn as nn
import torch.nn.functional as F


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        heads = (t.view(batch, tokens, self.heads, -1).transpose(1, 2) for t in self.qkv(self.ln_1(x)).split(width, -1))
        y = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class Stack(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width = shape["width"]
        self.wte, self.wpe = nn.Embedding(shape["vocab"], width), nn.Embedding(shape["positions"], width)
        self.blocks = nn.ModuleList(Block(width, shape["heads"]) for _ in range(shape["layers"]))
        self.ln_f = nn.LayerNorm(width)

    def embed(self, ids):
        return self.wte(ids) + self.wpe.weight[: ids.shape[1]]


class Della(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width, latent, layers = shape["width"], shape["latent"], shape["layers"]
        each = lambda i, o, n=layers: nn.ModuleList(nn.Linear(i, o, bias=False) for _ in range(n))
        self.latent, self.encoder, self.decoder = latent, Stack(shape), Stack(shape)
        self.fuse = each(latent, width)
        self.posterior, self.prior = each(width + latent, 2 * latent), each(latent, 2 * latent)
        self.from_state, self.from_z = each(latent, latent, layers - 1), each(latent, latent, layers - 1)
        self.pooling = nn.Parameter(torch.randn(layers, width) * 0.02)
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Embedding)):
                nn.init.normal_(m.weight, std=0.02)

    def encode(self, ids):
        """The latents, one a layer, drawn from the posterior, and the chain's KL for each sentence."""
        x, stack, kl, zs = self.encoder.embed(ids), self.encoder, 0.0, []
        state = torch.zeros(len(ids), self.latent)
        for i, block in enumerate(stack.blocks):
            x = block(x)
            h = stack.ln_f(x) if i + 1 == len(stack.blocks) else x
            attention = torch.tanh(h @ self.pooling[i].to(h.dtype)).softmax(-1)
            pooled = (h * attention[..., None]).sum(1)
            q_mean, q_log = self.posterior[i](torch.cat([pooled, state], 1)).float().chunk(2, -1)
            p_mean, p_log = self.prior[i](state).float().chunk(2, -1)
            z = q_mean + torch.randn_like(q_mean) * (0.5 * q_log).exp()
            ratio = q_log - p_log
            kl = kl - 0.5 * (ratio - (q_mean - p_mean) ** 2 / p_log.exp() - ratio.exp() + 1).sum(-1)
            zs.append(z)
            if i + 1 < len(stack.blocks):
                state = torch.tanh(self.from_state[i](state).float() + self.from_z[i](z).float())
        return torch.stack(zs), kl

    def decode(self, ids, zs):
        x = self.decoder.embed(ids)
        for z, fuse, block in zip(zs, self.fuse, self.decoder.blocks):
            x = block(x + fuse(z)[:, None])
        return F.linear(self.decoder.ln_f(x), self.decoder.wte.weight)

    def forward(self, ids):
        zs, kl = self.encode(ids)
        logits = self.decode(ids, zs)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()), kl.mean()


def main():
    args = common.arguments()
    if args.kind not in ("encode", "train") or args.dtype == "int8":
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
