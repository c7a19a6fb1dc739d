// Warps: exchanges between lanes; sm_80: cp.async, ldmatrix, mma. A part of emulator.cpp, inside its namespace.
#pragma once

// ---- Warps ----------------------------------------------------------------------------------------------------------

void warp_collective(Thread* self, u32 mask, Combine combine, void* argument, Where where) {
    Fiber* fiber = fiber_of(self);
    Warp& warp = warp_of(fiber);
    u32 lane = fiber->lane, bit = 1u << lane;
    fiber->where = where;
    if (!(mask & bit)) fail(fiber, "warp operation: the mask %08x does not name the own lane %u", mask, lane);
    if (mask & ~warp.alive) {
        fail(fiber, "warp operation: the mask %08x names lanes that have ended or never were: %08x", mask,
             mask & ~warp.alive);
    }
    warp.mask[lane] = mask;
    warp.combine[lane] = combine;
    warp.argument[lane] = argument;
    warp.waiting |= bit;
    if ((warp.waiting & mask) != mask) {
        warp.ready &= ~bit;
        wait(fiber, "other lanes in a warp operation");
    } else {
        void* part[WARP];
        void* const* lanes = warp.argument;
        if (mask != FULL_MASK) {
            for (u32 i = 0; i < WARP; i++) part[i] = mask >> i & 1 ? warp.argument[i] : nullptr;
            lanes = part;
        }
        for (u32 rest = mask; rest; rest &= rest - 1) {
            u32 other = (u32)__builtin_ctz(rest);
            if (warp.mask[other] != mask) {
                fail(fiber, "warp operation: lane %u has the mask %08x, lane %u %08x", lane, mask, other,
                     warp.mask[other]);
            }
            if (warp.combine[other] != combine) {
                fail(fiber, "divergent warp: lane %u is in another operation than lane %u", other, lane);
            }
        }
        warp.waiting &= ~mask;
        if (combine) combine(self, lanes);
        warp.ready |= mask;
    }
    maybe_interrupt(fiber, 32);
}

void warp_sync(Thread* self, u32 mask, Where where) {
    warp_collective(self, mask, nullptr, nullptr, where);
}

struct Shuffle {
    u64 bits;
    u64 result;
    int operand;
    int width;
};

// The rules of shfl in the PTX ISA: a source outside of the own segment leaves the own value.
template <ShuffleKind KIND>
static void combine_shuffle(Thread* self, void* const* lanes) {
    for (int lane = 0; lane < (int)WARP; lane++) {
        Shuffle* shuffle = (Shuffle*)lanes[lane];
        if (!shuffle) continue;
        int first = lane & ~(shuffle->width - 1);
        int last = first + shuffle->width - 1;
        int source = lane;
        if (KIND == SHUFFLE_INDEX) source = first + (shuffle->operand & (shuffle->width - 1));
        if (KIND == SHUFFLE_UP && lane - shuffle->operand >= first) source = lane - shuffle->operand;
        if (KIND == SHUFFLE_DOWN && lane + shuffle->operand <= last) source = lane + shuffle->operand;
        if (KIND == SHUFFLE_XOR && (lane ^ shuffle->operand) <= last) source = lane ^ shuffle->operand;
        Shuffle* from = (Shuffle*)lanes[source & 31];
        if (!from) fail(fiber_of(self), "shuffle: lane %d reads lane %d, which the mask does not name", lane, source);
        shuffle->result = from->bits;
    }
}

u64 shuffle(Thread* self, u32 mask, ShuffleKind kind, u64 bits, int operand, int width, Where where) {
    static const Combine combine[] = {combine_shuffle<SHUFFLE_INDEX>, combine_shuffle<SHUFFLE_UP>,
                                      combine_shuffle<SHUFFLE_DOWN>, combine_shuffle<SHUFFLE_XOR>};
    if (width < 1 || width > 32 || (width & (width - 1)) != 0) fail(self, where, "shuffle: the width is no power of 2");
    if (kind != SHUFFLE_INDEX && (operand < 0 || operand > 31)) fail(self, where, "shuffle: the distance is 0 to 31");
    Shuffle mine = {bits, 0, operand, width};
    warp_collective(self, mask, combine[kind], &mine, where);
    return mine.result;
}

struct Vote {
    u32 predicate;
    u32 result;
};

u32 ballot(Thread* self, u32 mask, bool predicate, Where where) {
    Vote mine = {predicate, 0};
    Combine combine = [](Thread*, void* const* lanes) {
        u32 result = 0;
        for (u32 i = 0; i < WARP; i++) {
            if (lanes[i]) result |= ((Vote*)lanes[i])->predicate << i;
        }
        for (u32 i = 0; i < WARP; i++) {
            if (lanes[i]) ((Vote*)lanes[i])->result = result;
        }
    };
    warp_collective(self, mask, combine, &mine, where);
    return mine.result;
}

// A reduction in the order of device.cuh: partners 16 lanes apart first. Both add the same two numbers, so following
// lane 0 is enough.
template <class T, class Operation>
static void reduce(void* const* lanes, Operation operation) {
    T values[WARP];
    for (u32 i = 0; i < WARP; i++) values[i] = *(T*)lanes[i];
    for (u32 distance = WARP / 2; distance; distance /= 2) {
        for (u32 i = 0; i < distance; i++) values[i] = operation(values[i], values[i + distance]);
    }
    for (u32 i = 0; i < WARP; i++) *(T*)lanes[i] = values[0];
}

float warp_sum(Thread* self, float value, Where where) {
    Combine combine = [](Thread*, void* const* lanes) {
        reduce<float>(lanes, [](float a, float b) { return a + b; });
    };
    warp_collective(self, FULL_MASK, combine, &value, where);
    return value;
}

double warp_sum(Thread* self, double value, Where where) {
    Combine combine = [](Thread*, void* const* lanes) {
        reduce<double>(lanes, [](double a, double b) { return a + b; });
    };
    warp_collective(self, FULL_MASK, combine, &value, where);
    return value;
}

float warp_max(Thread* self, float value, Where where) {
    Combine combine = [](Thread*, void* const* lanes) {
        reduce<float>(lanes, [](float a, float b) { return __builtin_fmaxf(a, b); });
    };
    warp_collective(self, FULL_MASK, combine, &value, where);
    return value;
}

// ---- sm_80: cp.async, ldmatrix, mma ---------------------------------------------------------------------------------

static bool in_dynamic_shared(const Worker* worker, const void* address, size_t bytes) {
    size_t offset = (size_t)((const char*)address - worker->shared);
    return (const char*)address >= worker->shared && offset + bytes <= worker->launch->shared_bytes;
}

u32 shared_address(Thread* self, const void* shared, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    if (!in_dynamic_shared(fiber->worker, shared, 0)) fail(fiber, "smem_addr: not in dynamic shared memory");
    return (u32)((const char*)shared - fiber->worker->shared);
}

static void perform(const Copy& copy) {
    if (copy.from) {
        memcpy(copy.to, copy.from, 16);
    } else {
        memset(copy.to, 0, 16);
    }
}

void cp_async(Thread* self, void* shared, const void* global, bool valid, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    if ((uintptr_t)shared % 16 != 0) fail(fiber, "cp.async: the address in shared memory is no multiple of 16");
    if (valid && (uintptr_t)global % 16 != 0) {
        fail(fiber, "cp.async: the address in global memory is no multiple of 16");
    }
    Copy copy = {shared, valid ? global : nullptr};
    if (fiber->worker->eager()) {
        perform(copy);
    } else {
        fiber->copies.add(copy);
    }
}

void cp_async_commit(Thread* self) {
    fiber_of(self)->copies.commit();
}

void cp_async_wait(Thread* self, u32 groups, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    fiber->copies.wait(groups, perform);
    maybe_interrupt(fiber, 16);
}

static float bf16_to_float(u16 bits) {
    u32 wide = (u32)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof(value));
    return value;
}

// The low and the high half of a register.
static float bf16_half(u32 pair, u32 half) {
    return bf16_to_float((u16)(pair >> 16 * half));
}

// The tensor core does not look at the lowest 13 bits.
static float tf32_to_float(u32 bits) {
    bits &= ~0x1fffu;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

struct LoadMatrix {
    const u16* row;
    u32* result;
};

template <bool TRANSPOSE>
static void combine_ldmatrix(Thread*, void* const* lanes) {
    for (u32 lane = 0; lane < WARP; lane++) {
        u32* result = ((LoadMatrix*)lanes[lane])->result;
        u32 outer = lane / 4, inner = lane % 4 * 2;
        for (u32 matrix = 0; matrix < 4; matrix++) {
            auto element = [&](u32 row, u32 column) {
                return (u32)((LoadMatrix*)lanes[matrix * 8 + row])->row[column];
            };
            u32 low = TRANSPOSE ? element(inner, outer) : element(outer, inner);
            u32 high = TRANSPOSE ? element(inner + 1, outer) : element(outer, inner + 1);
            result[matrix] = low | high << 16;
        }
    }
}

void ldmatrix(Thread* self, u32* result, const void* row, bool transpose, Where where) {
    if ((uintptr_t)row % 16 != 0) fail(self, where, "ldmatrix: the address of a row is no multiple of 16");
    LoadMatrix mine = {(const u16*)row, result};
    warp_collective(self, FULL_MASK, transpose ? combine_ldmatrix<true> : combine_ldmatrix<false>, &mine, where);
}

struct Mma {
    float* d;
    const u32* a;
    u32 b[2];
};

// The fragments are laid out as device.cuh says. The sum over k is added to D at the end.
template <u32 K>
static void multiply(void* const* lanes, const float (&a)[16][K], const float (&b)[K][8]) {
    for (u32 row = 0; row < 16; row++) {
        float sums[8] = {};
        for (u32 k = 0; k < K; k++) {
            for (u32 column = 0; column < 8; column++) sums[column] += a[row][k] * b[k][column];
        }
        for (u32 column = 0; column < 8; column++) {
            u32 lane = row % 8 * 4 + column / 2;
            ((Mma*)lanes[lane])->d[row / 8 * 2 + column % 2] += sums[column];
        }
    }
}

static void combine_mma_bf16(Thread*, void* const* lanes) {
    float a[16][16], b[16][8];
    for (u32 lane = 0; lane < WARP; lane++) {
        const Mma& mma = *(const Mma*)lanes[lane];
        u32 g = lane / 4, t = lane % 4;
        for (u32 half = 0; half < 2; half++) {
            for (u32 i = 0; i < 4; i++) a[g + i % 2 * 8][t * 2 + i / 2 * 8 + half] = bf16_half(mma.a[i], half);
            for (u32 i = 0; i < 2; i++) b[t * 2 + i * 8 + half][g] = bf16_half(mma.b[i], half);
        }
    }
    multiply<16>(lanes, a, b);
}

static void combine_mma_tf32(Thread*, void* const* lanes) {
    float a[16][8], b[8][8];
    for (u32 lane = 0; lane < WARP; lane++) {
        const Mma& mma = *(const Mma*)lanes[lane];
        u32 g = lane / 4, t = lane % 4;
        for (u32 i = 0; i < 4; i++) a[g + i % 2 * 8][t + i / 2 * 4] = tf32_to_float(mma.a[i]);
        for (u32 i = 0; i < 2; i++) b[t + i * 4][g] = tf32_to_float(mma.b[i]);
    }
    multiply<8>(lanes, a, b);
}

void mma_bf16(Thread* self, float* d, const u32* a, u32 b0, u32 b1, Where where) {
    Mma mine = {d, a, {b0, b1}};
    warp_collective(self, FULL_MASK, combine_mma_bf16, &mine, where);
}

void mma_tf32(Thread* self, float* d, const u32* a, u32 b0, u32 b1, Where where) {
    Mma mine = {d, a, {b0, b1}};
    warp_collective(self, FULL_MASK, combine_mma_tf32, &mine, where);
}
