"""OpenVINO: GPT-2 with its key/value cache as the model's state. `--kind prepare` converts it, through PyTorch."""

import time

import common
import numpy as np
import openvino as ov


def convert(args):
    import torch
    import torch.nn.functional as F
    from openvino._offline_transformations import apply_make_stateful_transformation

    shape, w = args.shape, {k: torch.from_numpy(v) for k, v in common.weights(args).items()}
    width, heads, layers = shape["width"], shape["heads"], shape["layers"]
    norm = lambda x, p: F.layer_norm(x, (width,), w[p + ".weight"], w[p + ".bias"], 1e-5)
    linear = lambda x, p: F.linear(x, w[p + ".weight"].T, w[p + ".bias"])

    class Gpt2(torch.nn.Module):
        def forward(self, ids, positions, *past):
            batch, present = ids.shape[0], []
            x = F.embedding(ids, w["wte.weight"]) + F.embedding(positions, w["wpe.weight"])
            for i in range(layers):
                p = f"h.{i}."
                q, k, v = (
                    t.reshape(batch, -1, heads, width // heads).transpose(1, 2)
                    for t in linear(norm(x, p + "ln_1"), p + "attn.c_attn").split(width, -1)
                )
                k, v = torch.cat([past[2 * i], k], 2), torch.cat([past[2 * i + 1], v], 2)
                present += [k, v]
                mask = torch.arange(k.shape[2])[None, :] <= positions[0][:, None]
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                x = x + linear(y.transpose(1, 2).reshape(batch, -1, width), p + "attn.c_proj")
                h = F.gelu(linear(norm(x, p + "ln_2"), p + "mlp.c_fc"), approximate="tanh")
                x = x + linear(h, p + "mlp.c_proj")
            return (F.linear(norm(x, "ln_f"), w["wte.weight"]), *present)

    past = [torch.zeros(1, heads, 3, width // heads) for _ in range(2 * layers)]
    example = (torch.ones(1, 4, dtype=torch.long), torch.arange(3, 7)[None], *past)
    with torch.no_grad():
        model = ov.convert_model(Gpt2(), example_input=example)
    names, shapes = {}, {model.inputs[0]: [-1, -1], model.inputs[1]: [-1, -1]}
    for i in range(2 * layers):
        model.inputs[2 + i].get_tensor().set_names({f"past{i}"})
        model.outputs[1 + i].get_tensor().set_names({f"present{i}"})
        names[f"past{i}"] = f"present{i}"
        shapes[model.inputs[2 + i]] = [-1, heads, -1, width // heads]
    model.reshape(shapes)
    apply_make_stateful_transformation(model, names)
    path = args.data / "openvino.xml"
    ov.save_model(model, path, compress_to_fp16=False)
    try:
        import nncf
    except ImportError:
        return
    mode = nncf.CompressWeightsMode
    # Of four bits are the layers; the table of tokens has eight.
    for dtype, settings in ("int8", {"mode": mode.INT8_SYM}), ("int4", {"mode": mode.INT4_SYM, "group_size": 32}):
        model = nncf.compress_weights(ov.Core().read_model(path), **settings)
        ov.save_model(model, args.data / f"openvino-{dtype}.xml", compress_to_fp16=False)


class Peer:
    version = f"openvino {ov.__version__.split('-')[0]}"

    def __init__(self, args):
        integers = args.dtype in ("int8", "int4")
        path = args.data / (f"openvino-{args.dtype}.xml" if integers else "openvino.xml")
        if not path.exists():
            common.skip(f"no {args.dtype} model: nncf did not work")
        # Beside integer weights, the precision is OpenVINO's own choice for this machine.
        hint = {} if integers else {"INFERENCE_PRECISION_HINT": args.dtype}
        if args.dtype == "bf16" and "BF16" not in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            common.skip("OpenVINO has no bf16 on this machine")
        config = hint | {"INFERENCE_NUM_THREADS": args.threads, "PERFORMANCE_HINT": "LATENCY"}
        self.request = ov.Core().compile_model(path, "CPU", config).create_infer_request()
        self.empty = (args.shape["heads"], 0, args.shape["width"] // args.shape["heads"])

    def reset(self, batch):
        self.request.reset_state()
        for state in self.request.query_state():
            state.state = ov.Tensor(np.zeros((batch, *self.empty), np.float32))

    def step(self, ids, start):
        self.request.infer([ids, np.arange(start, start + ids.shape[1])[None]])
        return self.request.get_output_tensor(0).data

    def forward(self, ids):
        self.reset(len(ids))
        return self.step(ids, 0)

    def array(self, logits):
        return logits

    def decode(self, ids, n):
        self.reset(len(ids))
        start, tokens = time.perf_counter(), []
        for i in range(n):
            ids = self.step(ids, i)[:, -1].argmax(-1)[:, None]
            tokens.append(ids)
        return time.perf_counter() - start, np.concatenate(tokens, 1)


if __name__ == "__main__":
    args = common.arguments()
    convert(args) if args.kind == "prepare" else common.main(Peer)
