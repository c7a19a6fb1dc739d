// Idea: a thread per element.
// Against: -
// Bound: memory; len * 3 * sizeof(act) bytes, len * 20 FLOPs.
// Needs: any sm_80+; grid ceil(len / 256), block 256.
// Source: du = dy gelu_new'(u); own.
#include "act.cuh"
#include "math.cuh"

KERNEL BOUNDS(256, 1) gelu_bwd(act* du, const act* dy, const act* u, int len) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < len) du[i] = convert<act>(to_float(dy[i]) * gelu_new_slope(to_float(u[i])));
}
