// What products share: their types, the order of their tiles, and what follows a product in registers.
#pragma once
#include "act.cuh"
#include "math.cuh"

#if A_BF16
typedef bf16 A;
#else
typedef float A;
#endif
#if B_BF16
typedef bf16 B;
#else
typedef float B;
#endif

// Blocks that share a sum: each leaves its part in f32, and gemm_finish adds them up.
#ifndef SPLITS
#define SPLITS 1
#endif
#if SPLITS > 1
typedef float Out;
#else
typedef Y Out;
#endif

// ---- Neighbouring values --------------------------------------------------------------------------------------------

// Loads and stores 1, 2, 4 or 8 values at once; the address is a multiple of their size, or of 16.
template <int N> DEVICE void load_values(float (&x)[N], const float* from) {
    if (N >= 4) {
#pragma unroll
        for (int i = 0; i + 3 < N; i += 4) {
            const float4 part = *(const float4*)(from + i);
            x[i] = part.x, x[i + 1] = part.y, x[i + 2] = part.z, x[i + 3] = part.w;
        }
    } else if (N == 2) {
        const float2 both = *(const float2*)from;
        x[0] = both.x, x[N - 1] = both.y;
    } else {
        x[0] = *from;
    }
}

template <int N> DEVICE void unpack_values(float (&x)[N], int i, u32 pair) {
    x[i] = unpack_low(pair), x[i + 1] = unpack_high(pair);
}

template <int N> DEVICE void load_values(float (&x)[N], const bf16* from) {
    if constexpr (N == 8) {
        const uint4 all = *(const uint4*)from;
        unpack_values(x, 0, all.x), unpack_values(x, 2, all.y), unpack_values(x, 4, all.z), unpack_values(x, 6, all.w);
    } else if constexpr (N == 4) {
        const uint2 all = *(const uint2*)from;
        unpack_values(x, 0, all.x), unpack_values(x, 2, all.y);
    } else if constexpr (N == 2) {
        unpack_values(x, 0, *(const u32*)from);
    } else {
        x[0] = to_float(*from);
    }
}

template <int N> DEVICE void store_values(float* to, const float (&x)[N]) {
    if constexpr (N >= 4) {
#pragma unroll
        for (int i = 0; i < N; i += 4) *(float4*)(to + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
    } else if constexpr (N == 2) {
        *(float2*)to = make_float2(x[0], x[1]);
    } else {
        *to = x[0];
    }
}

template <int N> DEVICE void store_values(bf16* to, const float (&x)[N]) {
    if constexpr (N == 8) {
        *(uint4*)to = make_uint4(pack_bf16x2(x[0], x[1]), pack_bf16x2(x[2], x[3]), pack_bf16x2(x[4], x[5]),
                                 pack_bf16x2(x[6], x[7]));
    } else if constexpr (N == 4) {
        *(uint2*)to = make_uint2(pack_bf16x2(x[0], x[1]), pack_bf16x2(x[2], x[3]));
    } else if constexpr (N == 2) {
        *(u32*)to = pack_bf16x2(x[0], x[1]);
    } else {
        *to = to_bf16(x[0]);
    }
}

// Whether all rows of `columns` values begin at multiples of 16 bytes. Of null, they do.
template <class T> DEVICE bool rows_aligned(const T* x, int columns) {
    return ((u64)x | (u64)columns * sizeof(T)) % 16 == 0;
}

// Whether all rows of `columns` values begin at multiples of two values.
template <class T> DEVICE bool rows_even(const T* x, int columns) {
    return ((u64)x | (u64)columns * sizeof(T)) % (2 * sizeof(T)) == 0;
}

// ---- Tiles ----------------------------------------------------------------------------------------------------------

struct TilePlace {
    int row, column;
};

// The tile that comes at `index`: down 8 rows of tiles, then to the next column, so that blocks that run together share
// rows of a and columns of b.
DEVICE TilePlace tile_place(int index, int rows, int columns) {
    const int group = index / (8 * columns), inside = index % (8 * columns), first = 8 * group;
    const int height = rows - first < 8 ? rows - first : 8;
    return {first + inside % height, inside / height};
}

// The place of a tile among those of all parts of the sums, part after part.
struct PartPlace {
    TilePlace tile;
    int part;
};

DEVICE PartPlace part_place(int index, int rows, int columns) {
    const int part = SPLITS == 1 ? 0 : index / (rows * columns);
    return {tile_place(index - part * rows * columns, rows, columns), part};
}

// Steps of `step` along k that each part has; the last ones may lie beyond k, where there are zeros.
DEVICE int steps_of_part(int k, int step) { return ((k + step - 1) / step + SPLITS - 1) / SPLITS; }

// ---- What follows a product -----------------------------------------------------------------------------------------

// v = the product + bias; u = v; v = gelu(v); y = v + residual, or y += v: each where there is one.
struct Finish {
    Out* y;
    const float* bias;
    const act* residual;
    act* u;
    int gelu, accumulate, m, n;
    int width;  // of an access, in values: 8, 2 or 1
};

DEVICE Finish make_finish(Out* y, const float* bias, const act* residual, act* u, int gelu, int accumulate, int m,
                          int n) {
    const bool even = rows_even(y, n) && rows_even(bias, 0) && rows_even(residual, n) && rows_even(u, n);
    const bool aligned = n % 8 == 0 && rows_aligned(y, n) && rows_aligned(bias, 0) && rows_aligned(residual, n) &&
                         rows_aligned(u, n);
    return {y, bias, residual, u, gelu, accumulate, m, n, aligned ? 8 : even ? 2 : 1};
}

// A part of a row, 32 columns, in the registers of four neighbouring lanes. As the tensor cores leave it, the lane with
// t = lane % 4 has in v[2 * q + c] the value of column 8 * q + 2 * t + c.
struct Fragment {
    int row, column;
    float v[8];
};

// Hands v round among the four lanes: afterwards lane t has columns 8 * t to 8 * t + 7.
DEVICE void gather_columns(float (&v)[8], int t) {
#pragma unroll
    for (int bit = 1; bit < 4; bit *= 2) {
#pragma unroll
        for (int q = 0; q < 4; q++) {
            if (q & bit) continue;
#pragma unroll
            for (int c = 0; c < 2; c++) {
                float &low = v[2 * q + c], &high = v[2 * (q | bit) + c];
                const float other = __shfl_xor_sync(0xffffffffu, t & bit ? low : high, bit);
                if (t & bit) {
                    low = other;
                } else {
                    high = other;
                }
            }
        }
    }
}

// A lane's 8 values of a row of n: neighbours from `column` on, or, if `width` is not 8, pairs that lie 8 columns
// apart. Those beyond the row are left alone.
template <class T> DEVICE void load_part(float (&v)[8], const T* row, int column, int n, int width) {
    if (width == 8) {
        if (column < n) load_values(v, row + column);
        return;
    }
#pragma unroll
    for (int q = 0; q < 4; q++) {
        const int c = column + 8 * q;
        if (width == 2) {
            float both[2];
            if (c < n) load_values(both, row + c), v[2 * q] = both[0], v[2 * q + 1] = both[1];
        } else {
            if (c < n) v[2 * q] = to_float(row[c]);
            if (c + 1 < n) v[2 * q + 1] = to_float(row[c + 1]);
        }
    }
}

template <class T> DEVICE void store_part(T* row, const float (&v)[8], int column, int n, int width) {
    if (width == 8) {
        if (column < n) store_values(row + column, v);
        return;
    }
#pragma unroll
    for (int q = 0; q < 4; q++) {
        const int c = column + 8 * q;
        if (width == 2) {
            const float both[2] = {v[2 * q], v[2 * q + 1]};
            if (c < n) store_values(row + c, both);
        } else {
            if (c < n) row[c] = convert<T>(v[2 * q]);
            if (c + 1 < n) row[c + 1] = convert<T>(v[2 * q + 1]);
        }
    }
}

DEVICE void add_part(float (&v)[8], const float (&x)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] += x[i];
}

// Finishes parts of rows; the whole warp calls it. What is added to them is loaded for all together.
template <int PARTS> DEVICE void finish(const Finish& f, Fragment (&parts)[PARTS]) {
    const int t = (int)threadIdx.x % 4;
    float added[PARTS][8] = {};
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        Fragment& part = parts[p];
        if (f.width == 8) gather_columns(part.v, t);
        part.column += f.width == 8 ? 8 * t : 2 * t;
        const size_t row = (size_t)part.row * f.n;
        if (part.row >= f.m) continue;
        if (f.residual) load_part(added[p], f.residual + row, part.column, f.n, f.width);
        if (f.accumulate) {
            float before[8] = {};
            load_part(before, f.y + row, part.column, f.n, f.width);
            add_part(added[p], before);
        }
    }
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        Fragment& part = parts[p];
        const size_t row = (size_t)part.row * f.n;
        if (part.row >= f.m) continue;
        if (f.bias) {
            float bias[8] = {};
            load_part(bias, f.bias, part.column, f.n, f.width);
            add_part(part.v, bias);
        }
        if (f.u) store_part(f.u + row, part.v, part.column, f.n, f.width);
        if (f.gelu) {
#pragma unroll
            for (int i = 0; i < 8; i++) part.v[i] = gelu_new(part.v[i]);
        }
        if (f.residual || f.accumulate) add_part(part.v, added[p]);
        store_part(f.y + row, part.v, part.column, f.n, f.width);
    }
}
