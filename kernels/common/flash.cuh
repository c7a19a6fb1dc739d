// What the attention kernels on tensor cores share: tiles of 64 tokens of one head of 64 bf16 in shared memory.
//
// A block has four warps. A warp owns 16 rows of a product of 16 x 64; with g = lane / 4 and t = lane % 4, a lane has
// of each 8 columns the elements (g, 2 t), (g, 2 t + 1), (g + 8, 2 t), (g + 8, 2 t + 1): see mma_bf16_16816.
#pragma once
#include "philox.cuh"

#define HEAD 64   // head_dim
#define TILE 64   // tokens
#define PITCH 72  // elements from row to row, so that eight rows lie in different banks
#define FLASH_THREADS 128
#define SCORE_SCALE 0.125f  // 1 / sqrt(HEAD)
#define LOG2_E 1.44269504f

typedef bf16 Tile[TILE * PITCH];
typedef u32 Operand[4][4];  // 16 rows of a tile as the left operand of a product
typedef float Product[8][4];

DEVICE int lane_in_warp() { return (int)threadIdx.x % 32; }
DEVICE int warp_in_block() { return (int)threadIdx.x / 32; }

// The tokens of a span of which a block has a tile, for one head.
struct Part {
    int start, length, first;  // of the span, in the batch; tokens; the tile's first, in the span
    int head, heads, width;
    size_t stride;        // from token to token of queries, keys and values
    const bf16* of_head;  // the span's queries; keys and values lie `width` and twice that behind
};

DEVICE Part part_of(const bf16* qkv, const u32* bounds, int heads, int tile) {
    const int head = blockIdx.y, row = blockIdx.z, start = bounds[2 * row], width = heads * HEAD;
    const size_t stride = 3 * (size_t)width;
    return {start, (int)bounds[2 * row + 1] - start, tile * TILE, head, heads, width, stride,
            qkv + start * stride + head * HEAD};
}

// The mask's row of a query of the tile.
DEVICE u64 mask_row_of(const Part& at, int query) {
    return (u64)(at.start + at.first + query) * at.heads + at.head;
}

// Starts copies of `rows` tokens, `stride` elements apart; zeros fill the tile.
DEVICE void load_tile(bf16* tile, const bf16* from, size_t stride, int rows) {
    const int first = threadIdx.x / 8, column = threadIdx.x % 8 * 8;
    tile += first * PITCH + column;
    from += first * stride + column;
#pragma unroll
    for (int i = 0; i < TILE; i += FLASH_THREADS / 8) {
        cp_async16_zfill(tile + i * PITCH, from + i * stride, first + i < rows);
    }
}

// Starts copies of the span's tile `k` of keys, and of values, as one group.
DEVICE void load_keys(bf16* keys, bf16* values, const Part& at, int k) {
    const bf16* from = at.of_head + k * TILE * at.stride + at.width;
    load_tile(keys, from, at.stride, at.length - k * TILE);
    load_tile(values, from + at.width, at.stride, at.length - k * TILE);
    cp_async_commit();
}

// Columns 16 k to 16 k + 15 of the warp's rows.
DEVICE void load_part(u32 (&part)[4], const bf16* tile, int k) {
    const int lane = lane_in_warp();
    ldmatrix_x4(part, tile + (16 * warp_in_block() + lane % 16) * PITCH + lane / 16 * 8 + 16 * k);
}

// The warp's rows.
DEVICE void load_operand(Operand& x, const bf16* tile) {
#pragma unroll
    for (int k = 0; k < 4; k++) load_part(x[k], tile, k);
}

// d += a b^T for columns 16 k to 16 k + 15, of which b is 16 STEPS rows of a tile.
template <int STEPS> DEVICE void add_transposed(float (&d)[2 * STEPS][4], const u32 (&a)[4], const bf16* b, int k) {
    const int lane = lane_in_warp();
    const bf16* from = b + (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 8 + 16 * k;
#pragma unroll
    for (int i = 0; i < STEPS; i++) {
        u32 part[4];
        ldmatrix_x4(part, from + 16 * i * PITCH);
        mma_bf16_16816(d[2 * i], a, part[0], part[1]);
        mma_bf16_16816(d[2 * i + 1], a, part[2], part[3]);
    }
}

// d = a b^T
template <int STEPS> DEVICE void multiply_transposed(float (&d)[2 * STEPS][4], const Operand& a, const bf16* b) {
#pragma unroll
    for (int i = 0; i < 2 * STEPS; i++) d[i][0] = d[i][1] = d[i][2] = d[i][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < 4; k++) add_transposed<STEPS>(d, a[k], b, k);
}

// d += a b, of which a is a product of 16 STEPS columns, rounded to bf16, and b as many rows of a tile.
template <int STEPS> DEVICE void add_multiplied(Product& d, const float (&a)[2 * STEPS][4], const bf16* b) {
    const int lane = lane_in_warp();
    const bf16* from = b + lane % 16 * PITCH + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < STEPS; k++) {
        const float(&low)[4] = a[2 * k], (&high)[4] = a[2 * k + 1];
        const u32 left[4] = {pack_bf16x2(low[0], low[1]), pack_bf16x2(low[2], low[3]), pack_bf16x2(high[0], high[1]),
                             pack_bf16x2(high[2], high[3])};
#pragma unroll
        for (int i = 0; i < HEAD / 16; i++) {
            u32 part[4];
            ldmatrix_x4_trans(part, from + 16 * k * PITCH + 16 * i);
            mma_bf16_16816(d[2 * i], left, part[0], part[1]);
            mma_bf16_16816(d[2 * i + 1], left, part[2], part[3]);
        }
    }
}

// Writes the warp's rows, each times its factor, as far as they are within `rows`; through the warp's rows of a tile,
// so that eight lanes write a row.
DEVICE void store_rows(bf16* to, size_t stride, int rows, bf16* tile, const Product& x, float low, float high) {
    const int lane = lane_in_warp(), first = 16 * warp_in_block();
    tile += first * PITCH;
    bf16* at = tile + lane / 4 * PITCH + lane % 4 * 2;
#pragma unroll
    for (int i = 0; i < HEAD / 8; i++) {
        *(u32*)(at + 8 * i) = pack_bf16x2(x[i][0] * low, x[i][1] * low);
        *(u32*)(at + 8 * i + 8 * PITCH) = pack_bf16x2(x[i][2] * high, x[i][3] * high);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int row = lane / 8 + 4 * i, column = lane % 8 * 8;
        if (first + row < rows) {
            *(uint4*)(to + (first + row) * stride + column) = *(const uint4*)(tile + row * PITCH + column);
        }
    }
}

// Sums and maxima over the four lanes that share rows, to each.
DEVICE float quad_sum(float value) {
    value += __shfl_xor_sync(0xffffffffu, value, 1);
    return value + __shfl_xor_sync(0xffffffffu, value, 2);
}
DEVICE float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// The dot product of 16 elements each, at multiples of 16 bytes.
DEVICE float dot_of_16(const bf16* x, const bf16* y) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 2; i++) {
        const uint4 a = ((const uint4*)x)[i], b = ((const uint4*)y)[i];
        const u32 left[4] = {a.x, a.y, a.z, a.w}, right[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
        for (int j = 0; j < 4; j++) {
            sum = fmaf(unpack_low(left[j]), unpack_low(right[j]), sum);
            sum = fmaf(unpack_high(left[j]), unpack_high(right[j]), sum);
        }
    }
    return sum;
}

// Bit i: column 4 * block + i is dropped.
DEVICE u32 dropped_columns(const Mask& mask, u64 row, u32 block) {
    const Words words = mask_words(mask, row, block);
    return (u32)(words.a < mask.threshold) | (u32)(words.b < mask.threshold) << 1 |
           (u32)(words.c < mask.threshold) << 2 | (u32)(words.d < mask.threshold) << 3;
}

// Which elements of a lane's part of 16 queries x 8 TILES keys are dropped, from key `first` on:
// (g + 8 h, 8 j + 2 t + c) if bit 4 j + c of bits[h] is set. `row` is the mask's row of query g, `step` the distance to
// the next one's.
// Two lanes need the same four columns: each makes those of one of its rows.
template <int TILES>
DEVICE void dropped_of_queries(u32 (&bits)[2], const Mask& mask, u64 row, int step, int first) {
    const int t = lane_in_warp() % 4;
    const bool odd = t & 1;
    u32 mine = 0;
#pragma unroll 2
    for (int j = 0; j < TILES; j++) {
        mine |= dropped_columns(mask, odd ? row + 8 * (u64)step : row, (u32)first / 4 + 2 * j + t / 2) << 4 * j;
    }
    const u32 theirs = __shfl_xor_sync(0xffffffffu, mine, 1);
    bits[0] = odd ? theirs >> 2 : mine;
    bits[1] = odd ? mine >> 2 : theirs;
}

// The same with the keys as rows, from key `first` on, and 8 TILES queries as columns: (g + 8 h, 8 j + 2 t + c) if bit
// 4 j of bits[2 h + c] is set. `row` is the mask's row of query 0, `step` the distance to the next one's.
// Four lanes need the same keys of the same queries: each makes four keys of one query.
template <int TILES>
DEVICE void dropped_of_keys(u32 (&bits)[4], const Mask& mask, u64 row, int step, int first) {
    const int lane = lane_in_warp(), part = lane / 4 % 4;  // of the four lanes
    const int query = lane % 4 * 2 + part % 2, block = first / 4 + lane / 16 + part / 2 * 2;
    u32 mine = 0;
#pragma unroll 1
    for (int j = 0; j < TILES; j++) {
        mine |= dropped_columns(mask, row + (u64)(8 * j + query) * step, block) << 4 * j;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bits[i] = __shfl_sync(0xffffffffu, mine, (lane & ~12) | i << 2) >> part;
    }
}
