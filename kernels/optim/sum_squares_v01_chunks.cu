// Idea: a block has CHUNK neighbours of one of many vectors, and leaves the sum of their squares in double.
// Against: -
// Bound: memory; of all vectors len * 4 bytes, and 8 a block; len * 2 FLOPs in double.
// Needs: any sm_80+; grid the sum of ceil(len / CHUNK), block 256: the order of a sum is given by the lengths alone.
// Source: own.
#include "chunks.cuh"
#include "reduce.cuh"

struct Vector {
    const float* x;
    u64 len, first_block;
};

KERNEL BOUNDS(256, 4) sum_squares(double* __restrict__ partial, const Vector* __restrict__ table, int count) {
    __shared__ double shared[8];
    const Vector of = row_of_block(table, count);
    const Chunk chunk = chunk_of(of);
    double sum = 0.0;
#pragma unroll 8
    for (size_t i = chunk.first + threadIdx.x; i < chunk.end; i += 256) {
        const double value = of.x[i];
        sum = fma(value, value, sum);
    }
    sum = block_sum<8>(sum, shared);
    if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}
