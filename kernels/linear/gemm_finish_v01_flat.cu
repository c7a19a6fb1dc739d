// Idea: a thread adds up the parts of four values, in their order, and does what follows the product.
// Against: -
// Bound: memory; m * n * (4 * splits + sizeof(Y)) bytes, and what is added to them; m * n * splits FLOPs.
// Needs: any sm_80+; grid ceil(m * n / 1024), block 256; Y_BF16, ACT_BF16; parts (splits, m, n).
// Source: own.
#include "product.cuh"

template <int N> DEVICE void finish_sums(const Finish& f, const float* parts, int splits, size_t place, size_t len) {
    float v[N] = {}, x[N];
    for (int part = 0; part < splits; part++) load_values(x, parts + part * len + place), add_values(v, x);
    finish_values(v, f, place, (int)(place % f.n));
}

KERNEL BOUNDS(256, 4) gemm_finish(Y* y, const float* parts, const float* __restrict__ bias,
                                  const act* residual, act* u, int gelu, int accumulate, int m, int n, int splits) {
    let_next_begin();
    wait_for_previous();
    const Finish f = make_finish(y, bias, residual, u, gelu, accumulate, m, n);
    const size_t first = 4 * ((size_t)blockIdx.x * 256 + threadIdx.x), len = (size_t)m * n;
    if (f.in_fours) {
        if (first < len) finish_sums<4>(f, parts, splits, first, len);
    } else {
        for (size_t place = first; place < first + 4 && place < len; place++) finish_sums<1>(f, parts, splits, place, len);
    }
}
