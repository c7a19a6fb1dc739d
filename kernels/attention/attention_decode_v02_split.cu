// Idea: a block takes 64 keys of a head, a thread a key, and the last one of them also writes the new key and value to the
//       cache; whichever block of a head is done last adds up what they left.
// Against: v01, where one warp passes over all keys of a head: few rows with long caches leave most of the device idle.
// Bound: memory; as v01, and for each 64 keys D + 2 floats written and read again.
// Needs: any sm_80+; at most one new token a row; D <= 256, a multiple of 8; grid (ceil(capacity / 64), heads, rows), block
//        64; parts: for each block D + 2 floats, rounded up to 8; counters: one for each head of each row, 0 before and after.
// Source: Dao, Haziza, Massa and Sizov 2023, Flash-Decoding. The order of sums is given by the number of keys alone.
#include "attention.cuh"
#include "reduce.cuh"
#include "split.cuh"
#include "vector.cuh"

#define SPLIT_KEYS 64
#define SPLIT_WARPS (SPLIT_KEYS / 32)
#define HEAD_DIM 256  // at most

KERNEL BOUNDS(SPLIT_KEYS, 1) attention_decode(act* __restrict__ y, act* keys, act* values, const act* qkv,
                                              const u32* __restrict__ bounds, const u32* __restrict__ slots,
                                              const u32* __restrict__ positions, float* parts, u32* counters,
                                              int capacity, int heads, int head_dim) {
    let_next_begin();
    const int thread = threadIdx.x, block = blockIdx.x, head = blockIdx.y, row = blockIdx.z;
    const int n = bounds[2 * row];
    if (n == (int)bounds[2 * row + 1]) return;  // the whole block
    const int count = (int)positions[n] + 1, blocks = (count + SPLIT_KEYS - 1) / SPLIT_KEYS;
    if (block >= blocks) return;  // the whole block
    const int first = block * SPLIT_KEYS, here = count - first < SPLIT_KEYS ? count - first : SPLIT_KEYS;
    const int width = heads * head_dim, of_row = row * heads + head;
    const size_t cached = (((size_t)slots[row] * heads + head) * capacity + first) * head_dim;
    keys += cached;
    values += cached;
    // of the tokens before: see v03_ahead
    const int older = count - 1 - first < here ? count - 1 - first : here, sector = 32 / (int)sizeof(act);
    for (int i = thread * sector; i < older * head_dim; i += SPLIT_KEYS * sector) {
        prefetch_l2(keys + i);
        prefetch_l2(values + i);
    }
    __shared__ float q[HEAD_DIM], weights[SPLIT_KEYS], sums[8 * SPLIT_KEYS], reduced[SPLIT_WARPS];
    __shared__ u32 before;
    wait_for_previous();

    const act* query = qkv + (size_t)n * 3 * width + head * head_dim;
    const float scale = score_scale(head_dim);
    for (int d = thread; d < head_dim; d += SPLIT_KEYS) q[d] = to_float(query[d]) * scale;
    if (block == blocks - 1) append_to_cache(keys, values, query, here - 1, width, head_dim, thread, SPLIT_KEYS);
    __syncthreads();

    float score = -INF;
    if (thread < here) {
        const act* key = keys + (size_t)thread * head_dim;
        float sum = 0.0f;
#pragma unroll 8
        for (int d = 0; d < head_dim; d += 8) {
            float x[8];
            load_eight(x, key + d);
#pragma unroll
            for (int i = 0; i < 8; i++) sum = fmaf(q[d + i], x[i], sum);
        }
        score = sum;
    }
    const float greatest = block_max<SPLIT_WARPS>(score, reduced);
    const float weight = expf(score - greatest);
    const float denominator = block_sum<SPLIT_WARPS>(weight, reduced);
    weights[thread] = weight;
    __syncthreads();

    // Eight neighbouring elements a thread; as many keys at the same time as there are threads for.
    const int vectors = head_dim / 8, together = SPLIT_KEYS / vectors, mine = thread / vectors;
    if (mine < together) {
        const int d = thread % vectors * 8;
        float sum[8] = {0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 8
        for (int key = mine; key < here; key += together) {
            float x[8];
            load_eight(x, values + (size_t)key * head_dim + d);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] = fmaf(weights[key], x[i], sum[i]);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) sums[mine * head_dim + d + i] = sum[i];
    }
    __syncthreads();

    act* result = y + (size_t)n * width + head * head_dim;
    float* of_head = parts + (size_t)of_row * gridDim.x * PART_LEN(head_dim);
    float* part = of_head + (size_t)block * PART_LEN(head_dim);
    for (int d = thread; d < head_dim; d += SPLIT_KEYS) {
        float sum = 0.0f;
        for (int i = 0; i < together; i++) sum += sums[i * head_dim + d];
        if (blocks == 1) {
            result[d] = convert<act>(sum / denominator);
        } else {
            part[d] = sum;
        }
    }
    if (blocks == 1) return;  // the whole block
    if (thread == 0) {
        part[head_dim] = greatest;
        part[head_dim + 1] = denominator;
    }
    if (!is_last_block(counters + of_row, blocks, before)) return;  // the whole block
    for (int d = thread; d < head_dim; d += SPLIT_KEYS) {
        const Part all = combined(of_head, blocks, head_dim, d);
        result[d] = convert<act>(all.sum / all.denominator);
    }
}
