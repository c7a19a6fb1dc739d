// Normalised rows: __syncthreads and named barriers.
//
//   grid (rows), block (128), no dynamic shared memory
//   barriers(float* out, float* peaks, const float* x, int columns)
//
// Expected: out[r][c] = (x[r][c] - mean) / sqrt(variance + 1e-5) with the mean and the variance (divided by the number
// of columns) of row r; peaks[r] is the largest out[r][c].
//
// MUTATION 1: the sums of the warps are read without a barrier
// MUTATION 2: mean and deviation of the row are read without a barrier
// MUTATION 3: one warp meets a barrier of its own
// MUTATION 4: the last warp does not wait for the peaks of the others
// MUTATION 5: the named barrier waits for one warp too few
// MUTATION 6: lanes return before their warp adds its sums
#include "device.cuh"

KERNEL BOUNDS(128, 1) barriers(float* __restrict__ out, float* __restrict__ peaks, const float* __restrict__ x,
                               int columns) {
    __shared__ float sums[2][4];
    __shared__ float mean, scale;
    __shared__ float warp_peaks[4];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const float* row = x + (size_t)blockIdx.x * columns;

    float sum = 0.0f, squares = 0.0f;
    for (int c = threadIdx.x; c < columns; c += 128) {
        sum += row[c];
        squares += row[c] * row[c];
    }
#if MUTATION == 6
    if (lane >= 16) return;
#endif
    sum = warp_sum(sum);
    squares = warp_sum(squares);
    if (lane == 0) {
        sums[0][warp] = sum;
        sums[1][warp] = squares;
    }
#if MUTATION != 1
    __syncthreads();
#endif
    if (warp == 0) {
        sum = warp_sum(lane < 4 ? sums[0][lane] : 0.0f);
        squares = warp_sum(lane < 4 ? sums[1][lane] : 0.0f);
        if (lane == 0) {
            mean = sum / columns;
            scale = rsqrtf(squares / columns - mean * mean + 1e-5f);
        }
#if MUTATION == 3
        __syncthreads();
#endif
    }
#if MUTATION != 2
    __syncthreads();
#endif

    float peak = -INF;
    for (int c = threadIdx.x; c < columns; c += 128) {
        float value = (row[c] - mean) * scale;
        out[(size_t)blockIdx.x * columns + c] = value;
        peak = fmaxf(peak, value);
    }
    peak = warp_max(peak);
    if (lane == 0) warp_peaks[warp] = peak;
#if MUTATION == 5
    const u32 threads = 96;
#else
    const u32 threads = 128;
#endif
    // The first three warps have nothing to wait for.
    if (warp < 3) {
        named_barrier_arrive(1, threads);
        return;
    }
#if MUTATION == 4
    named_barrier_arrive(1, threads);
#else
    named_barrier(1, threads);
#endif
    if (lane == 0) peaks[blockIdx.x] = fmaxf(fmaxf(warp_peaks[0], warp_peaks[1]), fmaxf(warp_peaks[2], warp_peaks[3]));
}
