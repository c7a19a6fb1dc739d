// Products of few rows: b passes through registers once, in 16-byte loads, and meets MOST_ROWS rows of a at a time.
#pragma once
#include "product.cuh"

#define CHUNK (16 / (int)sizeof(B))  // values of b in 16 bytes
#define MOST_ROWS (LAYOUT == 0 && CHUNK == 8 ? 4 : 8)  // of a block; more would not fit into its registers
#if LAYOUT == 1
#define THREADS 128
#define WARP_COLUMNS 2
#define COLUMNS (THREADS / 32 * WARP_COLUMNS)
#else
#define THREADS 256
#define COLUMNS (2 * CHUNK)  // two threads side by side: a sector of 32 bytes
#endif
// Chunks of a thread under way together; of a single row all, where there is a MOST_DEPTH.
#if LAYOUT == 1
#define AHEAD (!ALIGNED ? 1 : ROWS < MOST_ROWS ? 3 : 2)
#elif defined(MOST_DEPTH)
#define AHEAD (!ALIGNED ? 1 : ROWS == 1 ? MOST_DEPTH / (THREADS / 2) : 4)
#else
#define AHEAD (!ALIGNED ? 1 : ROWS == 1 ? 12 : 4)
#endif
#define RESIDENT (LAYOUT == 1 ? 384 : 512)  // threads at once on a multiprocessor

// The order of every sum is given by k alone: a row comes out the same however many others there are.

// N neighbours of a row of `count` values, zero beyond it.
template <bool ALIGNED, int N, class T> DEVICE void load_chunk(float (&x)[N], const T* row, int first, int count) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = 0.0f;
    if constexpr (ALIGNED) {
        if (first < count) load_values(x, row + first);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if (first + i < count) x[i] = to_float(row[first + i]);
        }
    }
}

// A chunk of b as it lies in memory.
struct Raw {
    u32 words[4];
};

// What a row of `count` values has at `first`, zero beyond it.
template <bool ALIGNED> DEVICE Raw load_raw(const B* row, int first, int count) {
    Raw raw = {};
    if constexpr (ALIGNED) {
        if (first < count) {
            const uint4 all = *(const uint4*)(row + first);
            raw = {{all.x, all.y, all.z, all.w}};
        }
    } else {
#pragma unroll
        for (int i = 0; i < CHUNK; i++) {
            if (first + i >= count) continue;
#if B_BF16
            raw.words[i / 2] |= (u32)row[first + i].bits << 16 * (i % 2);
#else
            raw.words[i] = __float_as_uint(row[first + i]);
#endif
        }
    }
    return raw;
}

DEVICE void unpack(float (&x)[CHUNK], const Raw& raw) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
#if B_BF16
        x[2 * i] = unpack_low(raw.words[i]), x[2 * i + 1] = unpack_high(raw.words[i]);
#else
        x[i] = __uint_as_float(raw.words[i]);
#endif
    }
}

#if LAYOUT == 1

template <int ROWS, bool ALIGNED, class Ready>
DEVICE void add_up(float (&sums)[ROWS][WARP_COLUMNS], const A* a, const B* b, int first_row, int first_column, int m,
                   int n, int k, int a_stride, Ready ready) {
    int depth = (int)threadIdx.x % 32 * CHUNK;
    Raw raw[AHEAD][WARP_COLUMNS];
    auto load = [&] {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
#pragma unroll
            for (int c = 0; c < WARP_COLUMNS; c++) {
                const int column = first_column + c < n ? first_column + c : n - 1;
                raw[i][c] = load_raw<ALIGNED>(b + (size_t)column * k, depth + i * 32 * CHUNK, k);
            }
        }
    };
    load();
    ready();
    while (depth < k) {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            float b_part[WARP_COLUMNS][CHUNK];
#pragma unroll
            for (int c = 0; c < WARP_COLUMNS; c++) unpack(b_part[c], raw[i][c]);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const int row = first_row + r < m ? first_row + r : m - 1;
                float a_part[CHUNK];
                load_chunk<ALIGNED>(a_part, a + (size_t)row * a_stride, depth + i * 32 * CHUNK, k);
#pragma unroll
                for (int c = 0; c < WARP_COLUMNS; c++) {
#pragma unroll
                    for (int e = 0; e < CHUNK; e++) sums[r][c] = fmaf(a_part[e], b_part[c][e], sums[r][c]);
                }
            }
        }
        depth += AHEAD * 32 * CHUNK;
        if (depth < k) load();
    }
}

// A warp computes WARP_COLUMNS columns, its lanes share k.
template <int ROWS, class Ready>
DEVICE void multiply(const Finish& f, const A* a, const B* b, int first_row, int k, int a_stride, Ready ready) {
    const int lane = (int)threadIdx.x % 32;
    const int first_column = ((int)blockIdx.y * (THREADS / 32) + (int)threadIdx.x / 32) * WARP_COLUMNS;
    const int row = first_row + lane / WARP_COLUMNS, column = first_column + lane % WARP_COLUMNS;
    const bool finishes = lane < ROWS * WARP_COLUMNS;
    const float bias = finishes ? bias_of(f, row, column) : 0.0f;
    float added = 0.0f, sums[ROWS][WARP_COLUMNS] = {};
    auto begin = [&] {
        ready();
        if (finishes) added = added_to(f, row, column);
    };
    if (rows_aligned(a, a_stride) && rows_aligned(b, k)) {
        add_up<ROWS, true>(sums, a, b, first_row, first_column, f.m, f.n, k, a_stride, begin);
    } else {
        add_up<ROWS, false>(sums, a, b, first_row, first_column, f.m, f.n, k, a_stride, begin);
    }
    float mine = 0.0f;
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int c = 0; c < WARP_COLUMNS; c++) {
            const float sum = warp_sum(sums[r][c]);
            if (lane == r * WARP_COLUMNS + c) mine = sum;
        }
    }
    if (finishes) finish_value(f, row, column, mine, bias, added);
}

#else

// Adds up each of N values over the 16 lanes that have this lane's parity, which share the results: returns where this
// lane's begin. They are N / 16; of fewer than 16 values several lanes have the same.
template <int N> DEVICE int reduce_scatter(float (&v)[N]) {
    const int lane = (int)threadIdx.x % 32;
    int first = 0;
    int count = N;
#pragma unroll
    for (int distance = 16; distance > 1; distance /= 2) {
        if (count == 1) {
            v[0] += __shfl_xor_sync(0xffffffffu, v[0], distance);
            continue;
        }
        count /= 2;
        const bool upper = lane & distance;
#pragma unroll
        for (int i = 0; i < N / 2; i++) {
            if (i >= count) continue;
            const float mine = upper ? v[i + count] : v[i], other = upper ? v[i] : v[i + count];
            v[i] = mine + __shfl_xor_sync(0xffffffffu, other, distance);
        }
        first += upper ? count : 0;
    }
    return first;
}

template <int ROWS, bool ALIGNED, class Ready>
DEVICE void add_up(float (&sums)[ROWS * CHUNK], const A* a, const B* b, int first_row, int first_column, int m, int n,
                   int k, int a_stride, Ready ready) {
    int first = (int)threadIdx.x / 2;
    Raw raw[AHEAD];
    auto load = [&] {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            const int depth = first + i * (THREADS / 2);
            raw[i] = load_raw<ALIGNED>(b + (size_t)depth * n, first_column, depth < k ? n : 0);
        }
    };
    load();
    ready();
    while (first < k) {
        auto value = [&](int i, int r) {
            const int depth = first + i * (THREADS / 2), row = first_row + r < m ? first_row + r : m - 1;
            return depth < k ? to_float(a[(size_t)row * a_stride + depth]) : 0.0f;
        };
        float values[AHEAD];  // of a single row all are under way together
#pragma unroll
        for (int i = 0; i < AHEAD; i++) values[i] = ROWS == 1 ? value(i, 0) : 0.0f;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            float b_part[CHUNK];
            unpack(b_part, raw[i]);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                const float here = ROWS == 1 ? values[i] : value(i, r);
#pragma unroll
                for (int e = 0; e < CHUNK; e++) sums[r * CHUNK + e] = fmaf(here, b_part[e], sums[r * CHUNK + e]);
            }
        }
        first += AHEAD * (THREADS / 2);
        if (first < k) load();
    }
}

// A block computes COLUMNS columns, its pairs of threads share k.
template <int ROWS, class Ready>
DEVICE void multiply(const Finish& f, const A* a, const B* b, int first_row, int k, int a_stride, Ready ready) {
    __shared__ float parts[THREADS / 32][2][MOST_ROWS * CHUNK];
    const int thread = threadIdx.x, side = thread % 2, first_column = (int)blockIdx.y * COLUMNS;
    const int inside = thread % COLUMNS, row = first_row + thread / COLUMNS, column = first_column + inside;
    const bool finishes = thread < ROWS * COLUMNS;
    const float bias = finishes ? bias_of(f, row, column) : 0.0f;
    float added = 0.0f, sums[ROWS * CHUNK] = {};
    auto begin = [&] {
        ready();
        if (finishes) added = added_to(f, row, column);
    };
    if (rows_aligned(b, f.n)) {
        add_up<ROWS, true>(sums, a, b, first_row, first_column + side * CHUNK, f.m, f.n, k, a_stride, begin);
    } else {
        add_up<ROWS, false>(sums, a, b, first_row, first_column + side * CHUNK, f.m, f.n, k, a_stride, begin);
    }
    constexpr int HELD = ROWS * CHUNK < 16 ? 1 : ROWS * CHUNK / 16;
    const int first = reduce_scatter(sums);
#pragma unroll
    for (int i = 0; i < HELD; i++) parts[thread / 32][side][first + i] = sums[i];
    __syncthreads();
    if (!finishes) return;
    const int place = thread / COLUMNS * CHUNK + inside % CHUNK;
    float sum = 0.0f;
    for (int warp = 0; warp < THREADS / 32; warp++) sum += parts[warp][inside / CHUNK][place];
    finish_value(f, row, column, sum, bias, added);
}

#endif

// Has the L2 cache fetch what this block reads of b, while the kernel before is still busy.
DEVICE void fetch_ahead(const B* b, int n, int k) {
    const int first_column = (int)blockIdx.y * COLUMNS;
#if LAYOUT == 1
    const int sector = 32 / (int)sizeof(B), columns = n - first_column < COLUMNS ? n - first_column : COLUMNS;
    b += (size_t)first_column * k;
    for (int i = threadIdx.x * sector; i < columns * k; i += THREADS * sector) prefetch_l2(b + i);
#else
    for (int depth = threadIdx.x; depth < k; depth += THREADS) prefetch_l2(b + (size_t)depth * n + first_column);
#endif
}

// Multiplies the rows of a from `first_row` on, at most MOST_ROWS. `ready` waits for a; what is first needed of b, the
// parameter, is asked for before.
template <class Ready>
DEVICE void multiply_few(const Finish& f, const A* a, const B* b, int first_row, int k, int a_stride, Ready ready) {
    const int rows = f.m - first_row;
    fetch_ahead(b, f.n, k);
    if (rows == 1) {
        multiply<1>(f, a, b, first_row, k, a_stride, ready);
    } else if (rows == 2) {
        multiply<2>(f, a, b, first_row, k, a_stride, ready);
    } else if (MOST_ROWS == 4 || rows <= 4) {
        multiply<4>(f, a, b, first_row, k, a_stride, ready);
    } else {
        multiply<MOST_ROWS>(f, a, b, first_row, k, a_stride, ready);
    }
}
