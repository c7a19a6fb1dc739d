// Neighbouring values, loaded and stored at once.
#pragma once
#include "act.cuh"

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
