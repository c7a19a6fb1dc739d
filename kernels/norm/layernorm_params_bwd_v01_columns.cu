// Idea: a block sums 32 columns; 8 threads share the rows of a column.
// Against: -
// Bound: memory; tokens * width * (sizeof(X) + sizeof(Y) + 1 / 4) + 16 * width bytes, tokens * width * 5 FLOPs.
// Needs: any sm_80+; grid ceil(width / 32), block 256.
// Source: dgain += sum(dy (x - mean) rstd), dbias += sum(dy); own.
#include "act.cuh"
#include "reduce.cuh"

KERNEL BOUNDS(256, 1) layernorm_params_bwd(float* __restrict__ dgain, float* __restrict__ dbias,
                                           const Y* __restrict__ dy, const X* __restrict__ x,
                                           const float* __restrict__ mean, const float* __restrict__ rstd,
                                           int tokens, int width) {
    __shared__ float shared[COLUMN_LANES][32];
    const ColumnThread at = column_thread();
    float gain = 0.0f, bias = 0.0f;
    if (at.column < width) {
        for (int n = at.lane; n < tokens; n += COLUMN_LANES) {
            const size_t place = (size_t)n * width + at.column;
            const float slope = to_float(dy[place]);
            gain += slope * ((to_float(x[place]) - mean[n]) * rstd[n]);
            bias += slope;
        }
    }
    gain = column_sum(gain, shared);
    bias = column_sum(bias, shared);
    if (at.lane == 0 && at.column < width) {
        dgain[at.column] += gain;
        dbias[at.column] += bias;
    }
}
