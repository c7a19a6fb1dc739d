// Keys of a head divided among blocks, or among the warps of one: each leaves a part, and one adds them up.
#pragma once
#include "device.cuh"

// Elements of a part: its sums of values, the greatest score, and the denominator that goes with it.
#define PART_LEN(head_dim) (((head_dim) + 2 + 7) / 8 * 8)

// Whether this is the last of `blocks` to come here; it then sees what the others wrote before, and the counter is 0 again.
DEVICE bool is_last_block(u32* counter, int blocks, u32& shared) {
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        shared = atomicAdd(counter, 1u);
        __threadfence();
    }
    __syncthreads();
    const bool last = shared + 1 == (u32)blocks;
    if (last && threadIdx.x == 0) *counter = 0;
    return last;
}

// One element of a part.
struct Part {
    float sum, greatest, denominator;
};

// Element d of `count` parts together, in their order. A part without keys has the score -INF, and zeros.
DEVICE Part combined(const float* parts, int count, int head_dim, int d) {
    const int len = PART_LEN(head_dim);
    Part all = {0.0f, -INF, 0.0f};
    for (int i = 0; i < count; i++) all.greatest = fmaxf(all.greatest, parts[(size_t)i * len + head_dim]);
    for (int i = 0; i < count; i++) {
        const float* part = parts + (size_t)i * len;
        const float keep = expf(part[head_dim] - all.greatest);
        all.sum = fmaf(keep, part[d], all.sum);
        all.denominator = fmaf(keep, part[head_dim + 1], all.denominator);
    }
    return all;
}
