// Sums and maxima over a block. The order of a sum is given by the block's size alone.
#pragma once
#include "device.cuh"

// The sum of every thread's value, to every thread. `shared` holds one value per warp.
template <int WARPS, class T> DEVICE T block_sum(T value, T* shared) {
    const int thread = threadIdx.x;
    value = warp_sum(value);
    __syncthreads();  // the previous reduction was read
    if (thread % 32 == 0) shared[thread / 32] = value;
    __syncthreads();
    T sum = shared[0];
    for (int warp = 1; warp < WARPS; warp++) sum += shared[warp];
    return sum;
}

// The maximum of every thread's value, to every thread. `shared` holds one value per warp.
template <int WARPS> DEVICE float block_max(float value, float* shared) {
    const int thread = threadIdx.x;
    value = warp_max(value);
    __syncthreads();  // the previous reduction was read
    if (thread % 32 == 0) shared[thread / 32] = value;
    __syncthreads();
    float greatest = shared[0];
    for (int warp = 1; warp < WARPS; warp++) greatest = fmaxf(greatest, shared[warp]);
    return greatest;
}

// The sum of the values of the threads before this one. `shared` holds one value per warp.
template <int WARPS> DEVICE double block_before(double value, double* shared) {
    const int thread = threadIdx.x, lane = thread % 32;
    double before = 0.0;
    for (int other = 0; other < 32; other++) {
        const double theirs = __shfl_sync(0xffffffffu, value, other);
        if (other < lane) before += theirs;
    }
    __syncthreads();  // the previous reduction was read
    if (lane == 31) shared[thread / 32] = before + value;
    __syncthreads();
    double sum = 0.0;
    for (int warp = 0; warp < WARPS; warp++) {
        if (warp < thread / 32) sum += shared[warp];
    }
    return sum + before;
}

// Sums down columns by a block of 256: 32 columns, each with 8 threads that share its rows.
struct ColumnThread {
    int column;  // of the matrix
    int lane;    // which of the 8
};

#define COLUMN_LANES 8

DEVICE ColumnThread column_thread() {
    const int thread = threadIdx.x;
    return {(int)blockIdx.x * 32 + thread % 32, thread / 32};
}

// The sum of a column's 8 values in the order of the lanes, to the thread of lane 0.
DEVICE float column_sum(float value, float (&shared)[COLUMN_LANES][32]) {
    const int thread = threadIdx.x;
    __syncthreads();  // the previous reduction was read
    shared[thread / 32][thread % 32] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int lane = 0; lane < COLUMN_LANES; lane++) sum += shared[lane][thread % 32];
    return sum;
}
