// The softmax of long rows of f32 by a block, two values a read: rows of an even length begin at multiples of 8 bytes.
#pragma once
#include "reduce.cuh"

#define SOFTMAX_THREADS 512
#define SOFTMAX_READS 8  // that a thread has under way

struct Softmax {
    float greatest, sum;  // of the row; of the exponentials of what the greatest exceeds
};

// The pairs of values at first, first + SOFTMAX_THREADS, ...; -inf behind the row.
DEVICE void load_pairs(float2 (&x)[SOFTMAX_READS], const float2* row, int first, int pairs) {
#pragma unroll
    for (int j = 0; j < SOFTMAX_READS; j++) {
        const int v = first + j * SOFTMAX_THREADS;
        x[j] = v < pairs ? row[v] : make_float2(-INF, -INF);
    }
}

// To every thread. A thread's sum is shifted by what is its greatest value so far (Milakov and Gimelshein 2018).
DEVICE Softmax row_softmax(const float2* row, int pairs, float* shared) {
    float greatest = -INF, sum = 0.0f;
    for (int first = threadIdx.x; first < pairs; first += SOFTMAX_READS * SOFTMAX_THREADS) {
        float2 x[SOFTMAX_READS];
        load_pairs(x, row, first, pairs);
        float top = greatest;
#pragma unroll
        for (int j = 0; j < SOFTMAX_READS; j++) top = fmaxf(top, fmaxf(x[j].x, x[j].y));
        const float shift = top == -INF ? 0.0f : top;  // -inf - -inf would be NaN
        sum *= expf(greatest - shift);
#pragma unroll
        for (int j = 0; j < SOFTMAX_READS; j++) sum += expf(x[j].x - shift) + expf(x[j].y - shift);
        greatest = top;
    }
    const float top = block_max<SOFTMAX_THREADS / 32>(greatest, shared);
    sum = block_sum<SOFTMAX_THREADS / 32>(sum * expf(greatest - top), shared);
    return {top, sum};
}
