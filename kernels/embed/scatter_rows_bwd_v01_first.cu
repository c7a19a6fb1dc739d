// Idea: the block of the first row with an index adds all rows with it, in their order; the other blocks return.
// Against: -
// Bound: memory; rows * width * sizeof(act) + distinct * width * 2 * sizeof(Y) bytes; the index again per row, cached.
// Needs: any sm_80+; grid rows, block 256; Y is bf16 if Y_BF16.
// Source: own.
#include "act.cuh"

KERNEL BOUNDS(256, 1) scatter_rows_bwd(Y* __restrict__ y_acc, const act* __restrict__ dy,
                                       const u32* __restrict__ index, int rows, int width) {
    __shared__ int earlier;
    const int r = blockIdx.x;
    if (r >= rows) return;
    const u32 mine = index[r];
    if (threadIdx.x == 0) earlier = 0;
    __syncthreads();
    for (int s = threadIdx.x; s < r; s += blockDim.x) {
        if (index[s] == mine) earlier = 1;
    }
    __syncthreads();
    if (earlier) return;
    for (int c = threadIdx.x; c < width; c += blockDim.x) {
        Y* y = y_acc + (size_t)mine * width + c;
        float sum = to_float(*y);
        for (int s = r; s < rows; s++) {
            if (index[s] == mine) sum += to_float(dy[(size_t)s * width + c]);
        }
        *y = convert<Y>(sum);
    }
}
