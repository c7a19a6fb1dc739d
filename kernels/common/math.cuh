// Elementary functions that the C library lacks, by the formulas of the CPU.
#pragma once
#include "device.cuh"

#define MAX_FLOAT 3.4028235e38f
// -2 sqrt(2/pi), and its product with 0.044715.
#define GELU_LINEAR (-1.595769121605731f)
#define GELU_CUBIC (-0.0713548162726f)

// 1 / x, and below an exponential, in one instruction where the result is rounded to bf16, which has 8 bits of it, or was
// made of such.
#if ACT_BF16 || A_BF16
#define TO_8_BITS 1
#define LOG2_E 1.44269504088896f
DEVICE float inverse_of_act(float x) { return reciprocal(x); }
#else
DEVICE float inverse_of_act(float x) { return 1.0f / x; }
#endif

// exp(-2u) with u = sqrt(2/pi) (x + 0.044715 x^3), given x^2.
DEVICE float gelu_exp(float x, float square) {
#if TO_8_BITS
    return exp2_flushed(x * fmaf(square, GELU_CUBIC * LOG2_E, GELU_LINEAR * LOG2_E));
#else
    return expf(x * fmaf(square, GELU_CUBIC, GELU_LINEAR));
#endif
}

// x / (1 + exp(-2u)) with u = sqrt(2/pi) (x + 0.044715 x^3): x (1 + tanh(u)) / 2 without its cancellation.
DEVICE float gelu_new(float x) {
    x = x < -MAX_FLOAT ? -MAX_FLOAT : x;  // -inf / inf would be NaN
    return x * inverse_of_act(1.0f + gelu_exp(x, x * x));
}

// With e = exp(-2u) and s = 1 / (1 + e): s + x 2u' s es, where es = 1 - s without its cancellation.
DEVICE float gelu_new_slope(float x) {
    // Beyond these bounds it is 0 or 1 to 35 digits, and e would overflow.
    x = x > 10.0f ? 10.0f : x < -10.0f ? -10.0f : x;
    const float square = x * x;
    const float e = gelu_exp(x, square);
    const float sigma = inverse_of_act(1.0f + e);
    const float slope = fmaf(square, -3.0f * GELU_CUBIC, -GELU_LINEAR);
    return fmaf(x * slope * sigma, e * sigma, sigma);
}

// exp(x) - 1 - x, never negative; near zero, where the difference would cancel, by a polynomial (Cephes).
DEVICE float exp_excess(float x) {
    if (fabsf(x) < 0.34f) {
        float p = 1.98756915e-4f;
        p = fmaf(p, x, 1.3981999507e-3f);
        p = fmaf(p, x, 8.3334519073e-3f);
        p = fmaf(p, x, 4.1665795894e-2f);
        p = fmaf(p, x, 1.6666665459e-1f);
        p = fmaf(p, x, 5.0000001201e-1f);
        return p * (x * x);
    }
    const float finite = x > MAX_FLOAT ? MAX_FLOAT : x;  // inf - inf would be NaN
    return expf(finite) - 1.0f - finite;
}
