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

// Whether every fourth value of what begins at x begins at a multiple of four values. Of null, it does.
template <class T> DEVICE bool rows_in_fours(const T* x) { return (u64)x % (4 * sizeof(T)) == 0; }

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
    bool in_fours;  // every fourth value of all of them begins at a multiple of four values
};

DEVICE Finish make_finish(Out* y, const float* bias, const act* residual, act* u, int gelu, int accumulate, int m,
                          int n) {
    const bool in_fours =
        n % 4 == 0 && rows_in_fours(y) && rows_in_fours(bias) && rows_in_fours(residual) && rows_in_fours(u);
    return {y, bias, residual, u, gelu, accumulate, m, n, in_fours};
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

DEVICE void add_values(float (&v)[4], const float (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) v[i] += x[i];
}

// Where a strip, some rows of a warp's part of a tile in shared memory, has (row, column): the tensor cores leave two
// neighbours to a lane, and by the XOR those of 4 rows lie in different banks.
template <int COLUMNS> DEVICE int strip_place(int row, int column) { return row * COLUMNS + (column ^ row % 4 * 8); }

// Finishes a strip. Its warp calls it, after __syncwarp, and four values side by side are each lane's: so a row is
// written in one piece, and the code is as short as the strip, not as the tile. Code of a whole tile's length would not
// stay in the instruction cache.
template <int ROWS, int COLUMNS>
DEVICE void finish_strip(const Finish& f, const float* strip, int first_row, int first_column) {
    constexpr int LANES = COLUMNS / 4, STEP = 32 / LANES, BATCH = ROWS / STEP / 2;
    static_assert(ROWS % (BATCH * STEP) == 0, "every lane has as many batches");
    const int lane = (int)threadIdx.x % 32;
    if (!f.in_fours) {
#pragma unroll 1
        for (int row = 0; row < ROWS; row++) {
            for (int column = lane; column < COLUMNS; column += 32) {
                const int y_row = first_row + row, y_column = first_column + column;
                const float value = strip[strip_place<COLUMNS>(row, column)];
                finish_value(f, y_row, y_column, value, bias_of(f, y_row, y_column), added_to(f, y_row, y_column));
            }
        }
        return;
    }
    const int inside = lane % LANES * 4, column = first_column + inside;
    if (column >= f.n) return;
    float bias[4] = {};
    if (f.bias) load_values(bias, f.bias + column);
#pragma unroll 1
    for (int first = lane / LANES; first < ROWS; first += BATCH * STEP) {
        float added[BATCH][4] = {};
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int row = first_row + first + b * STEP;
            const size_t place = (size_t)row * f.n + column;
            if (row >= f.m) continue;
            if (f.residual) load_values(added[b], f.residual + place);
            if (f.accumulate) {
                float before[4];
                load_values(before, f.y + place);
                add_values(added[b], before);
            }
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            const int row = first_row + first + b * STEP;
            const size_t place = (size_t)row * f.n + column;
            if (row >= f.m) continue;
            float v[4];
            load_values(v, strip + strip_place<COLUMNS>(first + b * STEP, inside));
            add_values(v, bias);
            if (f.u) store_values(f.u + place, v);
            if (f.gelu) {
#pragma unroll
                for (int i = 0; i < 4; i++) v[i] = gelu_new(v[i]);
            }
            add_values(v, added[b]);
            store_values(f.y + place, v);
        }
    }
}
