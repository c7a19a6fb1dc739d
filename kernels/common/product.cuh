// What products share: their types, the order of their tiles, and what follows a product.
#pragma once
#include "act.cuh"
#include "math.cuh"
#include "values.cuh"

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

// v = the product + bias; u = v; v = gelu(v); y = v + residual, or y += v: each where there is one. Of u or gelu, residual
// and accumulate there is one kind at most.
struct Finish {
    Out* y;
    const float* bias;
    const act* residual;
    act* u;
    int gelu, accumulate, m, n;
    bool in_pairs, in_fours;  // all rows begin at multiples of two, or four, values
};

DEVICE Finish make_finish(Out* y, const float* bias, const act* residual, act* u, int gelu, int accumulate, int m,
                          int n) {
    return {y, bias, residual, u, gelu, accumulate, m, n, n % 2 == 0, n % 4 == 0};
}

DEVICE bool is_inside(const Finish& f, int row, int column) { return row < f.m && column < f.n; }

// The bias of a value.
DEVICE float bias_of(const Finish& f, int row, int column) {
    return f.bias && is_inside(f, row, column) ? f.bias[column] : 0.0f;
}

// What is added to a value at the end.
DEVICE float added_to(const Finish& f, int row, int column) {
    const size_t place = (size_t)row * f.n + column;
    float added = 0.0f;
    if (!is_inside(f, row, column)) return added;
    if (f.residual) added += to_float(f.residual[place]);
    if (f.accumulate) added += to_float(f.y[place]);
    return added;
}

// Finishes a value, given what `bias_of` and `added_to` say of it: who has them early need not wait for them here.
DEVICE void finish_value(const Finish& f, int row, int column, float value, float bias, float added) {
    if (!is_inside(f, row, column)) return;
    const size_t place = (size_t)row * f.n + column;
    value += bias;
    if (f.u) f.u[place] = convert<act>(value);
    if (f.gelu) value = gelu_new(value);
    f.y[place] = convert<Out>(value + added);
}

template <int N> DEVICE void add_values(float (&v)[N], const float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] += x[i];
}

template <int N> DEVICE void gelu_values(float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] = gelu_new(v[i]);
}

// Finishes N values side by side, the first at `place` in its matrix and in `column`. Four only where rows are `in_fours`.
template <int N> DEVICE void finish_values(float (&v)[N], const Finish& f, size_t place, int column) {
    float x[N];
    if (f.bias) load_values(x, f.bias + column), add_values(v, x);
    if (f.u) store_values(f.u + place, v);
    if (f.gelu) gelu_values(v);
    if (f.residual) load_values(x, f.residual + place), add_values(v, x);
    if (f.accumulate) load_values(x, f.y + place), add_values(v, x);
    store_values(f.y + place, v);
}

// ---- The same for fragments -----------------------------------------------------------------------------------------

// A fragment is what the tensor cores have in a warp's registers of 16 rows, by 8 columns for each four values of a lane:
// v[4 j + 2 h + c] of lane l belongs to row l / 4 + 8 h and column 8 j + 2 (l % 4) + c. What is added to a product the sums
// begin with, so that it is loaded while there is other work; the rest goes from registers to memory, by whole sectors of
// 32 bytes.

// Where a lane's first value is.
struct FragmentPlace {
    int row, column;
};

DEVICE FragmentPlace fragment_place(int first_row, int first_column) {
    const int lane = (int)threadIdx.x % 32;
    return {first_row + lane / 4, first_column + 2 * (lane % 4)};
}

// How much of a fragment is known: PAIRS, all rows begin at multiples of two values; WHOLE, all columns are inside.
template <bool PAIRS, bool WHOLE> struct Known {};

// Values side by side at `column` of a row; beyond the matrix they are anything.
template <bool PAIRS, bool WHOLE, class T>
DEVICE void load_pair(float (&pair)[2], const T* row, int column, int n, Known<PAIRS, WHOLE>) {
    const int at = WHOLE || column < n ? column : 0;
    if constexpr (PAIRS) {
        load_values(pair, row + at);
    } else {
        pair[0] = to_float(row[at]), pair[1] = to_float(row[WHOLE || at + 1 < n ? at + 1 : at]);
    }
}

template <int N, class Known> DEVICE void begin_with(float (&v)[N], const Finish& f, FragmentPlace at, Known known) {
    const bool adds = f.residual || f.accumulate;
    const Out* added = f.residual ? (const Out*)f.residual : f.y;
    const Out* const rows[2] = {added + (at.row < f.m ? (size_t)at.row * f.n : 0),
                                added + (at.row + 8 < f.m ? (size_t)(at.row + 8) * f.n : 0)};
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        float pair[2] = {0.0f, 0.0f};
        if (adds) load_pair(pair, rows[i / 2 % 2], at.column + i / 4 * 8, f.n, known);
        v[i] = pair[0], v[i + 1] = pair[1];
    }
#pragma unroll
    for (int i = 0; i < N; i += 4) {
        float pair[2] = {0.0f, 0.0f};
        if (f.bias) load_pair(pair, f.bias, at.column + i / 4 * 8, f.n, known);
        v[i] += pair[0], v[i + 1] += pair[1], v[i + 2] += pair[0], v[i + 3] += pair[1];
    }
}

// What the sums of a product begin with.
template <int N> DEVICE void begin_fragment(float (&v)[N], const Finish& f, FragmentPlace at) {
    const bool whole = at.column + (N / 4 - 1) * 8 + 1 < f.n;
    if (f.in_pairs && whole) {
        begin_with(v, f, at, Known<true, true>());
    } else if (f.in_pairs) {
        begin_with(v, f, at, Known<true, false>());
    } else {
        begin_with(v, f, at, Known<false, false>());
    }
}

template <bool WHOLE, class T>
DEVICE void store_pair(T* y, float first, float second, const Finish& f, int row, int column) {
    if (!WHOLE && !is_inside(f, row, column)) return;
    y += (size_t)row * f.n + column;
    if (f.in_pairs) {
        const float pair[2] = {first, second};
        store_values(y, pair);
    } else {
        y[0] = convert<T>(first);
        if (WHOLE || column + 1 < f.n) y[1] = convert<T>(second);
    }
}

template <bool WHOLE, int N, class T>
DEVICE void store_fragment(T* y, const float (&v)[N], const Finish& f, FragmentPlace at) {
#pragma unroll
    for (int i = 0; i < N; i += 2) {
        store_pair<WHOLE>(y, v[i], v[i + 1], f, at.row + i / 2 % 2 * 8, at.column + i / 4 * 8);
    }
}

// Of two times 8 columns in bf16 two lanes side by side exchange a pair: each has four values of one of them.
template <bool WHOLE, int N> DEVICE void store_fragment(bf16* y, const float (&v)[N], const Finish& f, FragmentPlace at) {
    if (!f.in_fours) return store_fragment<WHOLE, N, bf16>(y, v, f, at);
    const bool odd = threadIdx.x % 2;
#pragma unroll
    for (int i = 0; i < N; i += 8) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const u32 left = pack_bf16x2(v[i + 2 * h], v[i + 2 * h + 1]);
            const u32 right = pack_bf16x2(v[i + 4 + 2 * h], v[i + 5 + 2 * h]);
            const u32 other = __shfl_xor_sync(0xffffffffu, odd ? left : right, 1);
            const int row = at.row + 8 * h, column = at.column + (odd ? 6 : 0) + i / 4 * 8;
            if (!WHOLE && !is_inside(f, row, column)) continue;
            *(uint2*)(y + (size_t)row * f.n + column) = odd ? make_uint2(other, right) : make_uint2(left, other);
        }
    }
}

// Finishes a fragment of sums that began by `begin_fragment`; if it is WHOLE, all of it is inside of the matrix. PART values
// at a time have what goes on in registers: of small fragments 8, as their kernels have no registers left for more.
template <bool WHOLE, int N> DEVICE void finish_fragment(const float (&v)[N], const Finish& f, FragmentPlace at) {
    constexpr int PART = N < 64 ? 8 : 16;
#pragma unroll
    for (int first = 0; first < N; first += PART) {
        const FragmentPlace part_at = {at.row, at.column + first / 4 * 8};
        float part[PART];
#pragma unroll
        for (int i = 0; i < PART; i++) part[i] = v[first + i];
        if (f.u) store_fragment<WHOLE>(f.u, part, f, part_at);
        if (f.gelu) gelu_values(part);
        store_fragment<WHOLE>(f.y, part, f, part_at);
    }
}
