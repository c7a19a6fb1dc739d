// Idea: a warp reads 16 bytes a lane of every eighth row of a part; the block's warps add up what they have at the end. A copy
// as bf16 is made of the same read.
// Against: v01_columns: an element a read, of which a row's columns fill few sectors; and a cast that reads all again.
// Bound: memory; as v01.
// Needs: any sm_80+; width a multiple of 8; grid (ceil(width / COLUMNS), ceil(rows / PART_ROWS)), block 256; as v01.
// Source: own.
#include "values.cuh"
#include "vector.cuh"

#if ACT_BF16
typedef uint4 Packed;
#else
typedef float4 Packed;
#endif

#define EACH (16 / (int)sizeof(act))  // columns of a lane
#define COLUMNS (32 * EACH)           // of a block: 256 of bf16, 128 of f32
#define WARPS 8
#define TURNS (PART_ROWS / WARPS)  // rows of a lane, all under way together

KERNEL BOUNDS(32 * WARPS, 4) column_parts(float* __restrict__ y, bf16* copy, const act* x, const float* weights, int rows,
                                          int width) {
    let_next_begin();
    wait_for_previous();
    const int warp = (int)threadIdx.x / 32, place = (int)threadIdx.x % 32 * EACH;
    const int column = blockIdx.x * COLUMNS + place, first = blockIdx.y * PART_ROWS, end = min(first + PART_ROWS, rows);
    Packed packed[TURNS] = {};
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int r = first + warp + i * WARPS;
        if (r < end && column < width) packed[i] = *(const Packed*)(x + (size_t)r * width + column);
    }
    float sum[EACH] = {};
#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const int r = first + warp + i * WARPS;
        float part[EACH];
        unpack(part, packed[i]);
        if (copy && r < end && column < width) store_values(copy + (size_t)r * width + column, part);
        const float weight = weights && r < end ? weights[r] : 1.0f;
#pragma unroll
        for (int j = 0; j < EACH; j++) sum[j] = fmaf(weight, part[j], sum[j]);
    }
    __shared__ __align__(16) float sums[WARPS][COLUMNS];
#pragma unroll
    for (int j = 0; j < EACH; j++) sums[warp][place + j] = sum[j];
    __syncthreads();
    const int mine = threadIdx.x;
    if (mine >= COLUMNS || blockIdx.x * COLUMNS + mine >= width) return;
    float all = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++) all += sums[w][mine];
    y[(size_t)blockIdx.y * width + blockIdx.x * COLUMNS + mine] = all;
}
