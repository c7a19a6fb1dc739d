// A step of AdamW: Loshchilov and Hutter 2019.
#pragma once
#include "device.cuh"

// rest = 1 - beta, rounded once; step_size = lr / (1 - beta1^t), root_correction = 1 / sqrt(1 - beta2^t).
struct AdamW {
    float beta1, beta2, rest1, rest2, step_size, root_correction, epsilon, factor;
};

// Of a parameter, whose gradient becomes 0; keep = 1 - lr decay.
DEVICE void step_value(const AdamW& step, float keep, float& p, float& m, float& v, float& gradient) {
    const float g = step.factor * gradient;
    m = step.beta1 * m + step.rest1 * g;
    v = step.beta2 * v + step.rest2 * g * g;
    p = keep * p - step.step_size * m / (sqrtf(v) * step.root_correction + step.epsilon);
    gradient = 0.0f;
}
