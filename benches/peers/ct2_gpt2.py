"""CTranslate2. `--kind prepare` converts the weights."""

import time

import common
import ctranslate2
import numpy as np
from ctranslate2.converters.converter import Converter
from ctranslate2.specs import common_spec, transformer_spec


class Convert(Converter):
    def __init__(self, args):
        self.args = args

    def _load(self):
        shape, w = self.args.shape, common.weights(self.args)
        spec = transformer_spec.TransformerDecoderModelSpec.from_config(
            shape["layers"], shape["heads"], pre_norm=True, activation=common_spec.Activation.GELUTanh
        )

        def norm(target, name):
            target.gamma, target.beta = w[name + ".weight"], w[name + ".bias"]

        def linear(target, name):
            target.weight, target.bias = w[name + ".weight"].T.copy(), w[name + ".bias"]

        decoder = spec.decoder
        decoder.embeddings.weight = decoder.projection.weight = w["wte.weight"]
        decoder.position_encodings.encodings = w["wpe.weight"]
        decoder.scale_embeddings = False
        norm(decoder.layer_norm, "ln_f")
        for i, layer in enumerate(decoder.layer):
            p = f"h.{i}."
            norm(layer.self_attention.layer_norm, p + "ln_1")
            linear(layer.self_attention.linear[0], p + "attn.c_attn")
            linear(layer.self_attention.linear[1], p + "attn.c_proj")
            norm(layer.ffn.layer_norm, p + "ln_2")
            linear(layer.ffn.linear_0, p + "mlp.c_fc")
            linear(layer.ffn.linear_1, p + "mlp.c_proj")
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "t0"
        spec.register_vocabulary([f"t{i}" for i in range(shape["vocab"])])
        return spec


class Peer:
    version = f"ctranslate2 {ctranslate2.__version__}"

    def __init__(self, args):
        if args.dtype == "int4":
            common.skip("CTranslate2 has no int4 on CPUs")
        kind = {"f32": "float32", "bf16": "bfloat16", "int8": "int8_float32"}[args.dtype]
        supported = ctranslate2.get_supported_compute_types("cpu")
        if args.dtype == "int8" and "int8_bfloat16" in supported:
            kind = "int8_bfloat16"
        if kind not in supported:
            common.skip(f"CTranslate2 has no {kind} on this machine")
        directory = str(args.data / "ctranslate2")
        self.generator = ctranslate2.Generator(directory, device="cpu", compute_type=kind, intra_threads=args.threads)

    def forward(self, ids):
        return self.generator.forward_batch(ids.tolist())

    def array(self, logits):
        return np.array(logits.to(ctranslate2.DataType.float32))

    def decode(self, ids, n):
        prompts = [[f"t{i}" for i in row] for row in ids]
        start = time.perf_counter()
        results = self.generator.generate_batch(
            prompts, max_length=n, min_length=n, beam_size=1, sampling_topk=1, max_batch_size=0,
            include_prompt_in_result=False,
        )
        return time.perf_counter() - start, [r.sequences_ids[0] for r in results]


if __name__ == "__main__":
    args = common.arguments()
    if args.kind == "prepare":
        Convert(args).convert(str(args.data / "ctranslate2"), force=True)
    else:
        common.main(Peer)
