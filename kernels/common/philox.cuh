// Philox4x32-10 and dropout masks, word for word as on the host.
#pragma once
#include "device.cuh"

struct Words {
    u32 a, b, c, d;
};

// Ten rounds over a counter (Salmon et al., SC 2011).
DEVICE Words philox4x32(u32 key0, u32 key1, Words counter) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const u64 p0 = (u64)counter.a * 0xD2511F53u, p1 = (u64)counter.c * 0xCD9E8D57u;
        counter = {(u32)(p1 >> 32) ^ counter.b ^ key0, (u32)p1, (u32)(p0 >> 32) ^ counter.d ^ key1, (u32)p0};
        key0 += 0x9E3779B9u;
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// Purposes of draws: the second word of the counter.
#define STREAM_TOKEN 0u
#define STREAM_DROPOUT 4u

// A factor, 0 or `factor`, for each place (row, column).
struct Mask {
    u32 key0, key1;
    u32 threshold;  // a word below it is a zero; 0: no mask
    float factor;
};

// The words of columns 4 * block to 4 * block + 3.
DEVICE Words mask_words(const Mask& mask, u64 row, u32 block) {
    return philox4x32(mask.key0, mask.key1, {block, STREAM_DROPOUT, (u32)row, (u32)(row >> 32)});
}

DEVICE float mask_value(const Mask& mask, u32 word) { return word < mask.threshold ? 0.0f : mask.factor; }

DEVICE float mask_factor(const Mask& mask, u64 row, int column) {
    const Words words = mask_words(mask, row, (u32)column / 4);
    const u32 low = column & 1 ? words.b : words.a, high = column & 1 ? words.d : words.c;
    return mask_value(mask, column & 2 ? high : low);
}
