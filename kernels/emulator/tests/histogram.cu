// A histogram and its running sums: atomics and a barrier of the whole grid.
//
//   cooperative, grid (blocks, at least 2), block (96), no dynamic shared memory
//   histogram(float* share, int* count, u32* largest, u32* counter, const int* x, int n)
//
// count (64), largest (1) and counter (1) are zero at first; x has n values from 0 to 63. Expected: count[v] = how
// often v is in x; share[v] = how many values are at most v, divided by n; largest = the largest value in x.
//
// MUTATION 1: some threads meet a barrier of their own
// MUTATION 2: counts begin before all are zero
// MUTATION 3: counts are published before all are complete
// MUTATION 4: blocks overwrite each other's counts
// MUTATION 5: one block does not come to the barrier of the grid
// MUTATION 6: running sums of the last 32 values begin at zero
#include "device.cuh"

KERNEL BOUNDS(96, 1) histogram(float* __restrict__ share, int* count, u32* largest, u32* counter,
                               const int* __restrict__ x, int n) {
    __shared__ int local[64];
    __shared__ int low_sum;
    const int thread = threadIdx.x;
    if (thread < 64) {
        local[thread] = 0;
#if MUTATION == 1
        __syncthreads();
#endif
    }
#if MUTATION != 2
    __syncthreads();
#endif
    for (int i = blockIdx.x * 96 + thread; i < n; i += gridDim.x * 96) {
        atomicAdd(&local[x[i]], 1);
        atomicMax(largest, (u32)x[i]);
    }
#if MUTATION != 3
    __syncthreads();
#endif
#if MUTATION == 4
    if (thread < 64) atomicExch(&count[thread], local[thread]);
#else
    if (thread < 64) atomicAdd(&count[thread], local[thread]);
#endif
#if MUTATION == 5
    if (blockIdx.x == 1) return;
#endif
    grid_sync(counter);
    if (blockIdx.x > 0) return;

    // The first two warps add up 32 counts each; the second adds the sum of the first.
    int sum = thread < 64 ? count[thread] : 0;
    for (int distance = 1; distance < 32; distance *= 2) {
        int below = __shfl_up_sync(0xffffffffu, sum, distance);
        if (thread % 32 >= distance) sum += below;
    }
    if (thread == 31) low_sum = sum;
    __syncthreads();
#if MUTATION != 6
    if (thread >= 32) sum += low_sum;
#endif
    if (thread < 64) share[thread] = (float)sum / n;
}
