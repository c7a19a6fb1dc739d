// Idea: a thread adds up the parts of four values, in their order, and does what follows the product.
// Against: -
// Bound: memory; m * n * (4 * splits + sizeof(Y)) bytes, and what is added to them; m * n * splits FLOPs.
// Needs: any sm_80+; grid ceil(m * n / 1024), block 256; Y_BF16, ACT_BF16; parts (splits, m, n).
// Source: own.
#include "product.cuh"

template <int N>
DEVICE void finish_values(Y* y, const float* parts, const float* bias, const act* residual, act* u, int gelu,
                          int accumulate, int n, int splits, size_t place, size_t len) {
    float v[N] = {}, x[N];
    for (int part = 0; part < splits; part++) {
        load_values(x, parts + part * len + place);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] += x[i];
    }
    if (bias) {
        load_values(x, bias + place % n);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] += x[i];
    }
    if (u) store_values(u + place, v);
    if (gelu) {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = gelu_new(v[i]);
    }
    if (residual) {
        load_values(x, residual + place);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] += x[i];
    }
    if (accumulate) {
        load_values(x, y + place);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] += x[i];
    }
    store_values(y + place, v);
}

KERNEL BOUNDS(256, 4) gemm_finish(Y* y, const float* parts, const float* __restrict__ bias,
                                  const act* residual, act* u, int gelu, int accumulate, int m, int n, int splits) {
    let_next_begin();
    wait_for_previous();
    const size_t first = 4 * ((size_t)blockIdx.x * 256 + threadIdx.x), len = (size_t)m * n;
    if (n % 4 == 0) {
        if (first >= len) return;
        finish_values<4>(y, parts, bias, residual, u, gelu, accumulate, n, splits, first, len);
    } else {
        for (size_t place = first; place < first + 4 && place < len; place++) {
            finish_values<1>(y, parts, bias, residual, u, gelu, accumulate, n, splits, place, len);
        }
    }
}
