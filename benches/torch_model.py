"""DELLA in PyTorch, for the benchmarks: attention is PyTorch's fused one. No dropout."""

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

    def attend(self, x, cache, place):
        batch, tokens, width = x.shape
        q, k, v = (t.view(batch, tokens, self.heads, -1).transpose(1, 2) for t in self.qkv(x).split(width, -1))
        if cache is None:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            cache[0].index_copy_(2, place, k)
            cache[1].index_copy_(2, place, v)
            mask = torch.arange(cache[0].shape[2], device=x.device)[None] <= place[:, None]
            y = F.scaled_dot_product_attention(q, cache[0], cache[1], attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))

    def forward(self, x, cache=None, place=None):
        x = x + self.attend(self.ln_1(x), cache, place)
        return x + self.down(F.gelu(self.up(self.ln_2(x)), approximate="tanh"))


class Stack(nn.Module):
    def __init__(self, shape):
        super().__init__()
        width = shape["width"]
        self.wte, self.wpe = nn.Embedding(shape["vocab"], width), nn.Embedding(shape["positions"], width)
        self.blocks = nn.ModuleList(Block(width, shape["heads"]) for _ in range(shape["layers"]))
        self.ln_f = nn.LayerNorm(width)

    def embed(self, ids, place=None):
        return self.wte(ids) + (self.wpe.weight[: ids.shape[1]] if place is None else self.wpe(place))


class Della(nn.Module):
    """Of a shape with vocab, width, layers, heads, positions and latent."""

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
        state = torch.zeros(len(ids), self.latent, device=ids.device)
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

    def decode(self, ids, zs, caches=None, place=None):
        """Logits; with caches, `(2, batch, heads, length, width of a head)` a layer, for tokens at `place`."""
        x = self.decoder.embed(ids, place)
        for i, (z, fuse, block) in enumerate(zip(zs, self.fuse, self.decoder.blocks)):
            x = block(x + fuse(z.to(x.dtype))[:, None], None if caches is None else caches[i], place)
        return F.linear(self.decoder.ln_f(x), self.decoder.wte.weight)

    def forward(self, ids):
        """Cross-entropy of a token and KL of a sentence."""
        zs, kl = self.encode(ids)
        logits = self.decode(ids, zs)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten()), kl.mean()
