// Idea: a thread has eight neighbours of each at a time.
// Against: v01_flat: an eighth of the reads under way for as many bytes.
// Bound: memory; len * 3 * sizeof(act) bytes, len * 20 FLOPs.
// Needs: any sm_80+; len a multiple of 8; grid ceil(len / 2048), block 256.
// Source: du = dy gelu_new'(u); own.
#include "math.cuh"
#include "values.cuh"

KERNEL BOUNDS(256, 4) gelu_bwd(act* du, const act* dy, const act* u, int len) {
    let_next_begin();
    wait_for_previous();
    const int first = (blockIdx.x * 256 + threadIdx.x) * 8;
    if (first >= len) return;
    float slope[8], x[8];
    load_values(x, u + first);
    load_values(slope, dy + first);
#pragma unroll
    for (int i = 0; i < 8; i++) slope[i] *= gelu_new_slope(x[i]);
    store_values(du + first, slope);
}
