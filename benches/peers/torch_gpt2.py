"""PyTorch: GPT-2 of transformers with scaled dot-product attention and a key/value cache."""

import time

import common
import torch
import transformers


class Peer:
    version = f"torch {torch.__version__}, transformers {transformers.__version__}"

    def __init__(self, args):
        if args.dtype in ("int8", "int4"):
            common.skip("transformers' GPT-2 has no integers on CPUs")
        torch.set_num_threads(args.threads)
        transformers.logging.set_verbosity_error()
        shape = args.shape
        config = transformers.GPT2Config(
            vocab_size=shape["vocab"], n_positions=shape["positions"], n_embd=shape["width"], n_layer=shape["layers"],
            n_head=shape["heads"], attn_implementation="sdpa", bos_token_id=None, eos_token_id=None,
        )
        self.model = transformers.GPT2LMHeadModel(config).eval()
        weights = {k: torch.from_numpy(v) for k, v in common.weights(args).items()}
        self.model.transformer.load_state_dict(weights)
        self.model.tie_weights()
        self.model.to({"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype])

    @torch.inference_mode()
    def forward(self, ids):
        return self.model(torch.from_numpy(ids), use_cache=True).logits

    def array(self, logits):
        return logits.float().numpy()

    @torch.inference_mode()
    def decode(self, ids, n):
        start, step, cache, tokens = time.perf_counter(), torch.from_numpy(ids), None, []
        for _ in range(n):
            out = self.model(step, past_key_values=cache, use_cache=True)
            cache, step = out.past_key_values, out.logits[:, -1:].argmax(-1)
            tokens.append(step)
        return time.perf_counter() - start, torch.cat(tokens, 1).numpy()


if __name__ == "__main__":
    common.main(Peer)
