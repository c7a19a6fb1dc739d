// Several elements at a time: 16 bytes of f32 and 8 of bf16 or, where there is only bf16, 16 bytes of it.
#pragma once
#include "act.cuh"

#if X_BF16 && Y_BF16
#define VECTOR 8
typedef uint4 PackedBf16;
#else
#define VECTOR 4
typedef uint2 PackedBf16;
#endif

// Elements in registers.
typedef float Vector[VECTOR];

// As they are in memory: many can be under way before the first is unpacked.
template <class T> struct Packing;
template <> struct Packing<float> {
    typedef float4 type;
};
template <> struct Packing<bf16> {
    typedef PackedBf16 type;
};
template <class T> DEVICE typename Packing<T>::type load_packed(const T* from) {
    return *(const typename Packing<T>::type*)from;
}

DEVICE void unpack(float* x, const float4& four) {
    x[0] = four.x;
    x[1] = four.y;
    x[2] = four.z;
    x[3] = four.w;
}
DEVICE void unpack(float* x, const uint2& words) {
    x[0] = unpack_low(words.x);
    x[1] = unpack_high(words.x);
    x[2] = unpack_low(words.y);
    x[3] = unpack_high(words.y);
}
DEVICE void unpack(float* x, const uint4& words) {
    unpack(x, make_uint2(words.x, words.y));
    unpack(x + 4, make_uint2(words.z, words.w));
}

// Eight elements of either type.
DEVICE void load_eight(float* x, const bf16* from) { unpack(x, *(const uint4*)from); }
DEVICE void load_eight(float* x, const float* from) {
    unpack(x, ((const float4*)from)[0]);
    unpack(x + 4, ((const float4*)from)[1]);
}

DEVICE void store_vector(float* to, const Vector& x) { *(float4*)to = make_float4(x[0], x[1], x[2], x[3]); }
DEVICE void store_vector(bf16* to, const Vector& x) {
#if VECTOR == 8
    *(uint4*)to = make_uint4(pack_bf16x2(x[0], x[1]), pack_bf16x2(x[2], x[3]), pack_bf16x2(x[4], x[5]),
                             pack_bf16x2(x[6], x[7]));
#else
    *(uint2*)to = make_uint2(pack_bf16x2(x[0], x[1]), pack_bf16x2(x[2], x[3]));
#endif
}

// Parameters and their gradients, which are f32 always.
DEVICE void load_reals(Vector& x, const float* from) {
#pragma unroll
    for (int i = 0; i < VECTOR; i += 4) unpack(x + i, *(const float4*)(from + i));
}
DEVICE void store_reals(float* to, const Vector& x) {
#pragma unroll
    for (int i = 0; i < VECTOR; i += 4) *(float4*)(to + i) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
}

// A row that a warp has in registers: vector i of lane l is the row's vector l + 32 i.
#define ROW_WIDTH 1024
#define ROW_VECTORS (ROW_WIDTH / 32 / VECTOR)
typedef Vector RowPart[ROW_VECTORS];

// Where vector i begins; none of the row if that is `width` or more.
DEVICE int vector_place(int i) { return ((int)threadIdx.x % 32 + 32 * i) * VECTOR; }

// A lane's part of a row of T as it is in memory. What lies behind the row is zero. (Who skips it by a branch makes the
// compiler wait for each load in turn.)
template <class T> struct PackedRow {
    typename Packing<T>::type part[ROW_VECTORS];
};
template <class T> DEVICE PackedRow<T> load_row(const T* row, int width) {
    PackedRow<T> x;
#pragma unroll
    for (int i = 0; i < ROW_VECTORS; i++) {
        x.part[i] = typename Packing<T>::type();
        if (vector_place(i) < width) x.part[i] = load_packed(row + vector_place(i));
    }
    return x;
}
