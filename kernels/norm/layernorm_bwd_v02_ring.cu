// Idea: warps take a block's rows in turn; while one has a row, its next comes to shared memory. It keeps its columns' sums for
// gain and bias in registers, so that nothing is read twice.
// Against: v01_columns: one read of dy and x instead of two, 16 bytes each, under way all the time.
// Bound: memory; tokens * width * (3 * sizeof(X) + sizeof(Y) + 8 / PART_ROWS) bytes, tokens * width * 18 FLOPs.
// Needs: any sm_80+; width <= 1024 and a multiple of 8; grid ceil(tokens / PART_ROWS), block 32 * WARPS, dynamic shared
// memory WARPS * STAGES * width * (2 * sizeof(X) + sizeof(Y)): of eight warps more than sm_89 and sm_120 have.
// Source: as v01_columns; own.
#include "vector.cuh"

#define STAGES 2

// Starts the copy of a row by a warp, 16 bytes at a time.
template <class T> DEVICE void copy_row(T* to, const T* from, int width) {
    const int piece = 16 / sizeof(T);
#pragma unroll
    for (int i = 0; i < ROW_WIDTH; i += 32 * piece) {
        const int c = i + (int)threadIdx.x % 32 * piece;
        if (c < width) cp_async16(to + c, from + c);
    }
}

// A row of each matrix in shared memory.
struct Row {
    X *x, *dx;
    Y* dy;
};

KERNEL BOUNDS(32 * WARPS, 8 / WARPS) layernorm_bwd(X* dx_acc, float* parts, const Y* dy, const X* x, const float* mean,
                                                   const float* rstd, const float* __restrict__ gain, int tokens,
                                                   int width) {
    let_next_begin();
    for (int c = 8 * (int)threadIdx.x; c < width; c += 8 * 32 * WARPS) prefetch_l2(gain + c);
    wait_for_previous();
    DYNAMIC_SHARED(u8, ring);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int row_bytes = width * (2 * sizeof(X) + sizeof(Y)), warp_bytes = STAGES * row_bytes;
    const int first = blockIdx.x * PART_ROWS + warp, end = min(tokens, ((int)blockIdx.x + 1) * PART_ROWS);
    const float share = 1.0f / width;

    // lane i has what is known of the warp's row i
    const int known = first + WARPS * lane;
    const float centres = known < end ? mean[known] : 0.0f, scales = known < end ? rstd[known] : 0.0f;

    auto stage = [&](int i) {
        X* begin = (X*)(ring + warp * warp_bytes + i % STAGES * row_bytes);
        return Row{begin, begin + width, (Y*)(begin + 2 * width)};
    };
    auto fetch = [&](int i) {
        const int n = first + WARPS * i;
        if (n < end) {
            const Row to = stage(i);
            copy_row(to.x, x + (size_t)n * width, width);
            copy_row(to.dy, dy + (size_t)n * width, width);
            copy_row(to.dx, (const X*)dx_acc + (size_t)n * width, width);
        }
        cp_async_commit();
    };

    RowPart gains = {}, biases = {};
    for (int i = 0; i < STAGES - 1; i++) fetch(i);
    for (int i = 0; first + WARPS * i < end; i++) {
        fetch(i + STAGES - 1);
        cp_async_wait<STAGES - 1>();
        __syncwarp();
        const Row row = stage(i);
        const float centre = __shfl_sync(0xffffffffu, centres, i), scale = __shfl_sync(0xffffffffu, scales, i);

        const PackedRow<X> packed_x = load_row((const X*)row.x, width);
        const PackedRow<Y> packed_dy = load_row((const Y*)row.dy, width);
        RowPart normal, slope;
        float sum_g = 0.0f, sum_gx = 0.0f;
#pragma unroll
        for (int v = 0; v < ROW_VECTORS; v++) {
            Vector factor;
            load_reals(factor, gain + (vector_place(v) < width ? vector_place(v) : 0));
            unpack(normal[v], packed_x.part[v]);
            unpack(slope[v], packed_dy.part[v]);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                normal[v][j] = (normal[v][j] - centre) * scale;
                gains[v][j] = fmaf(slope[v][j], normal[v][j], gains[v][j]);
                biases[v][j] += slope[v][j];
                slope[v][j] *= factor[j];
                sum_g += slope[v][j];
                sum_gx = fmaf(slope[v][j], normal[v][j], sum_gx);
            }
        }
        const float mean_g = warp_sum(sum_g) * share;
        const float mean_gx = warp_sum(sum_gx) * share;

        const PackedRow<X> packed_dx = load_row((const X*)row.dx, width);
        X* to = dx_acc + (size_t)(first + WARPS * i) * width;
#pragma unroll
        for (int v = 0; v < ROW_VECTORS; v++) {
            if (vector_place(v) >= width) break;
            Vector sum;
            unpack(sum, packed_dx.part[v]);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                sum[j] = fmaf(scale, fmaf(-normal[v][j], mean_gx, slope[v][j] - mean_g), sum[j]);
            }
            store_vector(to + vector_place(v), sum);
        }
        __syncwarp();  // the stage is free
    }

    // the warps' sums lie where their rows were
    float* sums = (float*)(ring + warp * warp_bytes);
#pragma unroll
    for (int v = 0; v < ROW_VECTORS; v++) {
        if (vector_place(v) >= width) break;
        store_reals(sums + vector_place(v), gains[v]);
        store_reals(sums + width + vector_place(v), biases[v]);
    }
    __syncthreads();
    parts += (size_t)blockIdx.x * 2 * width;
    for (int c = threadIdx.x; c < 2 * width; c += 32 * WARPS) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += ((const float*)(ring + w * warp_bytes))[c];
        parts[c] = sum;
    }
}
