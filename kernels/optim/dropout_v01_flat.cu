// Idea: a thread per four columns, which have one call of the generator.
// Against: -
// Bound: memory; tokens * width * 2 (3 with a residual) * sizeof(act) bytes, tokens * width / 4 generator calls.
// Needs: any sm_80+; grid ceil(tokens * ceil(width / 4) / 256), block 256; residual may be null, y may be x.
// Source: y = residual + mask x, the mask by Philox (Salmon et al. 2011).
#include "act.cuh"
#include "philox.cuh"

KERNEL BOUNDS(256, 1) dropout(act* y, const act* residual, const act* x, u32 key0, u32 key1, u32 threshold,
                              float factor, int tokens, int width) {
    const int groups = (width + 3) / 4;
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    const int n = i / groups, group = i % groups;
    if (n >= tokens) return;
    const Mask mask = {key0, key1, threshold, factor};
    const Words words = mask_words(mask, n, group);
    const u32 word[4] = {words.a, words.b, words.c, words.d};
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const int c = 4 * group + j;
        if (c >= width) break;
        const size_t place = (size_t)n * width + c;
        const float value = mask_value(mask, word[j]) * to_float(x[place]);
        y[place] = convert<act>(residual ? to_float(residual[place]) + value : value);
    }
}
