// What the attention kernels share: a warp has one vector of a head, lane l its elements l, l + 32, ...
//
// `attend` serves whole sequences and the cache. It has no product followed by a plain addition, which a compiler may
// contract in one kernel and not in the other: attention_fwd_v01 and attention_decode_v01 give the same bits.
#pragma once
#include "act.cuh"
#include "philox.cuh"

#ifndef LANE_ELEMENTS
#define LANE_ELEMENTS 8  // head_dim <= 32 * LANE_ELEMENTS
#endif
#define ATTENTION_WARPS 4  // in a block

typedef float HeadPart[LANE_ELEMENTS];

DEVICE int lane_in_warp() { return (int)threadIdx.x % 32; }

DEVICE void load_head(HeadPart& x, const act* from, int head_dim, float scale) {
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++) {
        const int d = lane_in_warp() + 32 * i;
        x[i] = d < head_dim ? to_float(from[d]) * scale : 0.0f;
    }
}

DEVICE void load_head(HeadPart& x, const act* from, int head_dim) {
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++) {
        const int d = lane_in_warp() + 32 * i;
        x[i] = d < head_dim ? to_float(from[d]) : 0.0f;
    }
}

DEVICE void store_head(act* to, const HeadPart& x, int head_dim) {
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++) {
        const int d = lane_in_warp() + 32 * i;
        if (d < head_dim) to[d] = convert<act>(x[i]);
    }
}

DEVICE void clear_head(HeadPart& x) {
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++) x[i] = 0.0f;
}

// x += weight * y
DEVICE void add_head(HeadPart& x, float weight, const HeadPart& y) {
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++) x[i] = fmaf(weight, y[i], x[i]);
}

// The dot product, to every lane.
DEVICE float dot_head(const HeadPart& x, const HeadPart& y) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++) sum = fmaf(x[i], y[i], sum);
    return warp_sum(sum);
}

// Adds up each of eight values over the lanes that differ in the bits of their numbers from FROM down to TO, which share
// the results: the higher its bits, the later are those that a lane has, in front.
template <int FROM, int TO> DEVICE void share_sums(float (&v)[8]) {
    const int lane = lane_in_warp();
    int count = 8;
#pragma unroll
    for (int distance = FROM; distance >= TO; distance /= 2) {
        count /= 2;
        const bool upper = lane & distance;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i >= count) continue;
            const float mine = upper ? v[i + count] : v[i], other = upper ? v[i] : v[i + count];
            v[i] = mine + __shfl_xor_sync(0xffffffffu, other, distance);
        }
    }
}

// 1 / sqrt(D): queries are multiplied with it when they are loaded.
DEVICE float score_scale(int head_dim) { return 1.0f / sqrtf((float)head_dim); }

// y = softmax(q k) v over `count` keys, `stride` elements apart; returns the logarithm of the denominator.
// The online softmax (Milakov and Gimelshein 2018) takes 32 keys at a time, one per lane.
DEVICE float attend(HeadPart& y, const HeadPart& q, const act* keys, const act* values, size_t stride, int count,
                    const Mask& mask, u64 mask_row, int head_dim) {
    const int lane = lane_in_warp();
    float greatest = -INF, sum = 0.0f;
    HeadPart x;
    clear_head(y);
    for (int first = 0; first < count; first += 32) {
        const int keys_here = count - first < 32 ? count - first : 32;
        float score = -INF;
        for (int j = 0; j < keys_here; j++) {
            load_head(x, keys + (first + j) * stride, head_dim);
            const float dot = dot_head(q, x);
            if (lane == j) score = dot;
        }
        const float top = fmaxf(greatest, warp_max(score));
        const float keep = expf(greatest - top);
        float weight = expf(score - top);
        sum = fmaf(sum, keep, warp_sum(weight));
        greatest = top;
        if (mask.threshold != 0) weight *= mask_factor(mask, mask_row, first + lane);
#pragma unroll
        for (int i = 0; i < LANE_ELEMENTS; i++) y[i] *= keep;
        for (int j = 0; j < keys_here; j++) {
            load_head(x, values + (first + j) * stride, head_dim);
            add_head(y, __shfl_sync(0xffffffffu, weight, j), x);
        }
    }
#pragma unroll
    for (int i = 0; i < LANE_ELEMENTS; i++) y[i] /= sum;
    return greatest + logf(sum);
}

// Writes a token's key and value, which lie one and two `width` behind its query, to `place` in the cache of their head. The
// `threads` threads of a group call it, and meet before they read the cache.
DEVICE void append_to_cache(act* keys, act* values, const act* query, int place, int width, int head_dim, int thread,
                            int threads) {
    for (int d = thread; d < head_dim; d += threads) {
        keys[(size_t)place * head_dim + d] = query[width + d];
        values[(size_t)place * head_dim + d] = query[2 * width + d];
    }
}
