// Idea: a block has 256 keys of a head, and 8 threads share a key: keys and values are in registers before the kernel in
//       front is done, all loads under way together; warps, and of long rows blocks, leave parts that are added up.
// Against: v02_split, where they are asked for after that kernel, values after keys, by a thread a row of its own; which
//          has five barriers in a block, and four times as many blocks that wait for each other in memory.
// Bound: memory; as v01, and for each 256 keys of a longer row D + 2 floats written and read again.
// Needs: any sm_80+; bf16; at most one new token a row; D = 64; grid (ceil(capacity / 256), heads, rows), block 256; parts,
//        counters as v02_split.
// Source: Dao, Haziza, Massa and Sizov 2023, Flash-Decoding. The order of sums is given by the number of keys alone.
//
// Why keys and values may be read before `wait_for_previous`: within a step, of a layer's cache this kernel alone writes
// the newest tokens' rows, and those are not read here but taken from qkv. All other rows were written in steps before,
// and each step is divided from the next by copies: of its tokens to the device, of what was chosen from it.
#include "attention.cuh"
#include "split.cuh"
#include "vector.cuh"

#define HEAD_DIM 64
#define THREADS 256  // and keys of a block
#define WARPS (THREADS / 32)
#define LANES (HEAD_DIM / 8)        // threads that share a key, 16 bytes each
#define TOGETHER (THREADS / LANES)  // keys side by side
#define TURNS (THREADS / TOGETHER)  // keys of a thread, one after the other
#define LEFT PART_LEN(HEAD_DIM)     // elements of a part

KERNEL BOUNDS(THREADS, 2) attention_decode(act* __restrict__ y, act* keys, act* values, const act* qkv,
                                           const u32* __restrict__ bounds, const u32* __restrict__ slots,
                                           const u32* __restrict__ positions, float* parts, u32* counters, int capacity,
                                           int heads, int) {
    let_next_begin();
    const int block = blockIdx.x, head = blockIdx.y, row = blockIdx.z;
    const int n = bounds[2 * row], slot = slots[row];
    if (n == (int)bounds[2 * row + 1]) return;  // the whole block
    const int count = (int)positions[n] + 1, blocks = (count + THREADS - 1) / THREADS;
    if (block >= blocks) return;  // the whole block
    const int first = block * THREADS, here = count - first < THREADS ? count - first : THREADS;
    const int newest = count - 1 - first;  // beyond this block's keys, if it is another's
    const int group = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES, d = 8 * lane;
    const size_t cached = (((size_t)slot * heads + head) * capacity + first) * HEAD_DIM + d;
    keys += cached;
    values += cached;
    uint4 key[TURNS], value[TURNS];
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int place = group + i * TOGETHER;
        key[i] = value[i] = make_uint4(0, 0, 0, 0);
        if (place < newest) key[i] = *(const uint4*)(keys + place * HEAD_DIM);
        if (place < newest) value[i] = *(const uint4*)(values + place * HEAD_DIM);
    }
    wait_for_previous();

    const int width = heads * HEAD_DIM, of_row = row * heads + head;
    const act* query = qkv + (size_t)n * 3 * width + head * HEAD_DIM + d;
    float q[8];
    load_eight(q, query);
    if (newest < THREADS) {
        const uint4 new_key = *(const uint4*)(query + width), new_value = *(const uint4*)(query + 2 * width);
#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            if (group + i * TOGETHER == newest) key[i] = new_key, value[i] = new_value;
        }
        if (group == newest % TOGETHER) {
            *(uint4*)(keys + newest * HEAD_DIM) = new_key;
            *(uint4*)(values + newest * HEAD_DIM) = new_value;
        }
    }

    const float scale = score_scale(HEAD_DIM);
#pragma unroll
    for (int e = 0; e < 8; e++) q[e] *= scale;
    float scores[TURNS] = {};
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        if (i * TOGETHER >= here) break;
        float x[8];
        unpack(x, key[i]);
#pragma unroll
        for (int e = 0; e < 8; e++) scores[i] = fmaf(q[e], x[e], scores[i]);
    }
    share_sums<LANES / 2, 1>(scores);  // a lane gets the score of the key of its turn
    const float score = group + lane * TOGETHER < here ? scores[0] : -INF;
    const float greatest = warp_max(score);
    const float weight = score == -INF ? 0.0f : expf(score - greatest);
    const float denominator = warp_sum(weight);

    float sums[8] = {};
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        if (i * TOGETHER >= here) break;
        const float of_key = __shfl_sync(0xffffffffu, weight, lane_in_warp() / LANES * LANES + i);
        float x[8];
        unpack(x, value[i]);
#pragma unroll
        for (int e = 0; e < 8; e++) sums[e] = fmaf(of_key, x[e], sums[e]);
    }
    share_sums<16, LANES>(sums);

    __shared__ float of_warps[WARPS * LEFT];
    __shared__ u32 before;
    const int warp = (int)threadIdx.x / 32, thread = threadIdx.x;
    float* of_warp = of_warps + warp * LEFT;
    const int mine = d + lane_in_warp() / LANES * 2;
    of_warp[mine] = sums[0];
    of_warp[mine + 1] = sums[1];
    if (lane_in_warp() == 0) {
        of_warp[HEAD_DIM] = greatest;
        of_warp[HEAD_DIM + 1] = denominator;
    }
    __syncthreads();

    act* result = y + (size_t)n * width + head * HEAD_DIM;
    float* of_head = parts + (size_t)of_row * gridDim.x * LEFT;
    if (thread < HEAD_DIM) {
        const Part all = combined(of_warps, WARPS, HEAD_DIM, thread);
        float* part = of_head + (size_t)block * LEFT;
        if (blocks == 1) {
            result[thread] = convert<act>(all.sum / all.denominator);
        } else {
            part[thread] = all.sum;
        }
        if (blocks > 1 && thread == 0) {
            part[HEAD_DIM] = all.greatest;
            part[HEAD_DIM + 1] = all.denominator;
        }
    }
    if (blocks == 1 || !is_last_block(counters + of_row, blocks, before)) return;  // the whole block
    if (thread < HEAD_DIM) {
        const Part all = combined(of_head, blocks, HEAD_DIM, thread);
        result[thread] = convert<act>(all.sum / all.denominator);
    }
}
