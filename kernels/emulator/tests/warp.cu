// What lanes of a warp do with each other: shuffles, also of part of a warp, votes, sums, and shared memory.
//
//   grid (blocks), block (64), no dynamic shared memory
//   warp(float* out, double* sums, u32* votes, const float* x)
//
// x has 64 values a block, out 6 * 64, sums one for each warp, votes two. Expected, with v the 32 values of a warp and
// l the lane:
//   out[0][t] = v[(l + 1) % 32]
//   out[1][t] = v[l ^ 1] in lanes below 16, else v[l ^ 2]
//   out[2][t] = v[l + 3], v[l] where that is beyond
//   out[3][t] = v[l - 3], v[l] within the first 3 of each 8 lanes
//   out[4][t] = v[31 - l]
//   out[5][t] = the sum of v, added in pairs 16, 8, 4, 2 and 1 lanes apart
//   sums      = the sum of v in double
//   votes[0]  = the lanes where v > 0
//   votes[1]  = 1 if any v > 1.5, plus 2 if all are < 1.5
//
// MUTATION 1: lanes read what others put into shared memory without __syncwarp
// MUTATION 2: half of a warp shuffles with the mask of all
// MUTATION 3: the two halves of a warp are in different operations of one mask
// MUTATION 4: a lane reads from one that its mask does not name
#include "device.cuh"

KERNEL BOUNDS(64, 1) warp(float* __restrict__ out, double* __restrict__ sums, u32* __restrict__ votes,
                          const float* __restrict__ x) {
    __shared__ float mirror[2][32];
    const u32 all = 0xffffffffu;
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const float value = x[blockIdx.x * 64 + thread];
    float* to = out + blockIdx.x * 6 * 64 + thread;

    to[0 * 64] = __shfl_sync(all, value, lane + 1);

    float neighbour;
#if MUTATION == 2
    const u32 low = all, high = 0xffff0000u;
#else
    const u32 low = 0x0000ffffu, high = 0xffff0000u;
#endif
    if (lane < 16) {
        neighbour = __shfl_xor_sync(low, value, 1);
    } else {
#if MUTATION == 4
        neighbour = __shfl_xor_sync(high, value, 16);
#else
        neighbour = __shfl_xor_sync(high, value, 2);
#endif
    }
    to[1 * 64] = neighbour;

#if MUTATION == 3
    if (lane < 16) {
        to[2 * 64] = __shfl_down_sync(all, value, 3);
        to[3 * 64] = __shfl_up_sync(all, value, 3, 8);
    } else {
        to[3 * 64] = __shfl_up_sync(all, value, 3, 8);
        to[2 * 64] = __shfl_down_sync(all, value, 3);
    }
#else
    to[2 * 64] = __shfl_down_sync(all, value, 3);
    to[3 * 64] = __shfl_up_sync(all, value, 3, 8);
#endif

    mirror[warp][lane] = value;
#if MUTATION != 1
    __syncwarp();
#endif
    to[4 * 64] = mirror[warp][31 - lane];

    to[5 * 64] = warp_sum(value);
    double sum = warp_sum((double)value);
    u32 positive = __ballot_sync(all, value > 0.0f);
    u32 bounds = (__any_sync(all, value > 1.5f) ? 1 : 0) + (__all_sync(all, value < 1.5f) ? 2 : 0);
    if (lane == 0) {
        sums[blockIdx.x * 2 + warp] = sum;
        votes[(blockIdx.x * 2 + warp) * 2] = positive;
        votes[(blockIdx.x * 2 + warp) * 2 + 1] = bounds;
    }
}
