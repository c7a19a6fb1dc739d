// Idea: a warp per token, 16 bytes of f32 a lane, all of a row under way together.
// Against: v01_row: a quarter of the reads, an eighth of the blocks.
// Bound: memory; as v01.
// Needs: any sm_80+; width <= 1024 and a multiple of 8; grid (ceil(longest span / 8), rows), block 256.
// Source: own.
#include "vector.cuh"

KERNEL BOUNDS(256, 2) fuse_fwd(act* h, const float* e, const u32* __restrict__ slots, const u32* __restrict__ bounds,
                               int width) {
    let_next_begin();
    const int row = blockIdx.y;
    const int n = (int)bounds[2 * row] + 8 * (int)blockIdx.x + (int)threadIdx.x / 32;
    if (n >= (int)bounds[2 * row + 1]) return;  // the whole warp
    const float* latent = e + (size_t)slots[row] * width;
    act* to = h + (size_t)n * width;
    wait_for_previous();
    const PackedRow<act> packed = load_row((const act*)to, width);
    const PackedRow<float> added = load_row(latent, width);
#pragma unroll
    for (int i = 0; i < ROW_VECTORS; i++) {
        if (vector_place(i) >= width) break;
        Vector sum, one;
        unpack(sum, packed.part[i]);
        unpack(one, added.part[i]);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) sum[j] += one[j];
        store_vector(to + vector_place(i), sum);
    }
}
