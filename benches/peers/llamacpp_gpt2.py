"""llama.cpp, by way of llama-cpp-python's plain bindings. `--kind prepare` writes the weights as GGUF."""

import ctypes
import time

import common
import numpy as np

FILE_TYPES = {"f32": "ALL_F32", "bf16": "MOSTLY_BF16", "int8": "MOSTLY_Q8_0", "int4": "MOSTLY_Q4_0"}
TENSOR_TYPES = {"f32": "F32", "bf16": "BF16", "int8": "Q8_0", "int4": "Q4_0"}
TABLE_TYPES = TENSOR_TYPES | {"int4": "Q8_0"}
BLOCK_NAMES = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}


def write(args, dtype):
    import gguf

    shape, weights = args.shape, common.weights(args)
    tensors, tables = (gguf.GGMLQuantizationType[types[dtype]] for types in (TENSOR_TYPES, TABLE_TYPES))
    out = gguf.GGUFWriter(args.data / f"gpt2-{dtype}.gguf", "gpt2")
    out.add_context_length(shape["positions"])
    out.add_embedding_length(shape["width"])
    out.add_block_count(shape["layers"])
    out.add_feed_forward_length(4 * shape["width"])
    out.add_head_count(shape["heads"])
    out.add_layer_norm_eps(1e-5)
    out.add_vocab_size(shape["vocab"])
    out.add_file_type(getattr(gguf.LlamaFileType, FILE_TYPES[dtype]))
    out.add_tokenizer_model("no_vocab")

    def matrix(name, value, kind=tensors):
        out.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)

    matrix("token_embd.weight", weights["wte.weight"], tables)
    matrix("output.weight", weights["wte.weight"], tables)
    out.add_tensor("position_embd.weight", weights["wpe.weight"])
    out.add_tensor("output_norm.weight", weights["ln_f.weight"])
    out.add_tensor("output_norm.bias", weights["ln_f.bias"])
    for i in range(shape["layers"]):
        for theirs, name in BLOCK_NAMES.items():
            weight, bias = (weights[f"h.{i}.{theirs}.{part}"] for part in ("weight", "bias"))
            name = f"blk.{i}.{name}"
            matrix(name + ".weight", weight.T) if weight.ndim == 2 else out.add_tensor(name + ".weight", weight)
            out.add_tensor(name + ".bias", bias)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


class Peer:
    def __init__(self, args):
        import llama_cpp

        self.lib, self.version = llama_cpp, f"llama-cpp-python {llama_cpp.__version__}"
        self.vocab = args.shape["vocab"]
        quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
        self.quiet = quiet
        llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        path = str(args.data / f"gpt2-{args.dtype}.gguf").encode()
        self.model = llama_cpp.llama_model_load_from_file(path, llama_cpp.llama_model_default_params())
        sequences = max(args.batch, 2)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = sequences * (max(args.length, 16) + 64)
        params.n_batch = max(sequences * max(args.length, 16), 32)
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = args.threads
        params.kv_unified = False
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        assert self.model and self.context, "llama.cpp did not load the model"
        self.batch = llama_cpp.llama_batch_init(params.n_batch, 0, 1)

    def step(self, ids, start):
        """Runs one batch, with logits at each of its positions: (rows * tokens, vocabulary), row by row."""
        rows, tokens = ids.shape
        batch = self.batch
        batch.n_tokens = rows * tokens
        for i in range(rows * tokens):
            batch.token[i], batch.pos[i] = int(ids.flat[i]), start + i % tokens
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, i // tokens, 1
        if self.lib.llama_decode(self.context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        logits = self.lib.llama_get_logits(self.context)
        return np.ctypeslib.as_array(logits, (rows * tokens, self.vocab))

    def reset(self):
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)

    def forward(self, ids):
        self.reset()
        return self.step(ids, 0).reshape(*ids.shape, -1)

    def array(self, logits):
        return logits

    def decode(self, ids, n):
        self.reset()
        start, tokens = time.perf_counter(), []
        for i in range(n):
            ids = self.step(ids, i).argmax(-1)[:, None]
            tokens.append(ids)
        return time.perf_counter() - start, np.concatenate(tokens, 1)


if __name__ == "__main__":
    args = common.arguments()
    if args.kind == "prepare":
        for dtype in TENSOR_TYPES:
            write(args, dtype)
    else:
        common.main(Peer)
