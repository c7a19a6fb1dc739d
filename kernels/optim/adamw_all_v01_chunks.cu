// Idea: a block has CHUNK neighbours of one of many parameters, and also writes the matrix that products take them from.
// Against: adamw and cast, a launch each for every parameter, of which most are short.
// Bound: memory; of all parameters len * 32 bytes, and 2 or 4 for a matrix; len * 15 FLOPs.
// Needs: any sm_80+; CHUNK a multiple of 1024; grid the sum of ceil(len / CHUNK), block 256; every vector at a multiple of 16 bytes.
// Source: adamw.cuh.
#include "adamw.cuh"
#include "chunks.cuh"
#include "values.cuh"

struct Parameter {
    float *p, *m, *v, *gradient;
    void* weight;  // of bf16 or f32, or none
    u64 len;
    u32 first_block, weight_is_bf16;
    float keep;
    u32 unused;
};

template <int N> DEVICE void step_values(const Parameter& of, const AdamW& step, size_t i) {
    float p[N], m[N], v[N], g[N];
    load_values(g, of.gradient + i), load_values(m, of.m + i), load_values(v, of.v + i), load_values(p, of.p + i);
#pragma unroll
    for (int j = 0; j < N; j++) step_value(step, of.keep, p[j], m[j], v[j], g[j]);
    store_values(of.gradient + i, g), store_values(of.m + i, m), store_values(of.v + i, v), store_values(of.p + i, p);
    if (of.weight && of.weight_is_bf16) {
        store_values((bf16*)of.weight + i, p);
    } else if (of.weight) {
        store_values((float*)of.weight + i, p);
    }
}

KERNEL BOUNDS(256, 4) adamw_all(const Parameter* __restrict__ table, int count, float beta1, float beta2, float rest1,
                                float rest2, float step_size, float root_correction, float epsilon, float factor) {
    const AdamW step = {beta1, beta2, rest1, rest2, step_size, root_correction, epsilon, factor};
    const Parameter of = row_of_block(table, count);
    const Chunk chunk = chunk_of(of);
#pragma unroll 2
    for (size_t i = chunk.first + 4 * threadIdx.x; i < chunk.end; i += 4 * 256) {
        if (i + 4 <= chunk.end) {
            step_values<4>(of, step, i);
        } else {
            for (size_t last = i; last < chunk.end; last++) step_values<1>(of, step, last);
        }
    }
}
