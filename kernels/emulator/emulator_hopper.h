// sm_90: mbarriers and the tensor memory accelerator; sm_90a: wgmma. A part of emulator.cpp, inside its namespace.
#pragma once

// ---- sm_90: mbarrier ------------------------------------------------------------------------------------------------

// What the 64 bits of an mbarrier hold here.
struct Mbarrier {
    u64 count : 16;    // arrivals of a phase
    u64 pending : 16;  // of them, those to come
    u64 bytes : 24;    // expected and not landed; a signed number
    u64 magic : 7;     // so that memory that never was one is noticed
    u64 parity : 1;    // of the phase that goes on
};
static_assert(sizeof(Mbarrier) == sizeof(u64), "one word");
constexpr u32 MBARRIER_MAGIC = 0x5a;
constexpr u32 MBARRIER_MAX_BYTES = (1 << 20) - 1;

static Mbarrier load_mbarrier(const u64* address) {
    Mbarrier barrier;
    memcpy(&barrier, address, sizeof(barrier));
    return barrier;
}

static Mbarrier checked_mbarrier(Fiber* fiber, const u64* address) {
    if ((uintptr_t)address % 8 != 0) fail(fiber, "mbarrier: the address is no multiple of 8");
    Mbarrier barrier = load_mbarrier(address);
    if (barrier.magic != MBARRIER_MAGIC) fail(fiber, "mbarrier: used before mbarrier_init");
    return barrier;
}

static void store_mbarrier(u64* address, Mbarrier barrier) {
    if (barrier.pending == 0 && barrier.bytes == 0) {
        barrier.parity ^= 1;
        barrier.pending = barrier.count;
    }
    memcpy(address, &barrier, sizeof(barrier));
}

static bool phase_is_over(const u64* barrier, u32 parity) {
    return load_mbarrier(barrier).parity != (parity & 1);
}

void mbarrier_init(Thread* self, u64* address, u32 arrivals, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    if ((uintptr_t)address % 8 != 0) fail(fiber, "mbarrier: the address is no multiple of 8");
    if (arrivals == 0 || arrivals > MAX_THREADS) fail(fiber, "mbarrier: %u arrivals", arrivals);
    Mbarrier barrier = {arrivals, arrivals, 0, MBARRIER_MAGIC, 0};
    memcpy(address, &barrier, sizeof(barrier));
}

void mbarrier_arrive(Thread* self, u64* address, u32 bytes, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    Mbarrier barrier = checked_mbarrier(fiber, address);
    if (barrier.pending == 0) fail(fiber, "mbarrier: too many arrivals");
    if (bytes > MBARRIER_MAX_BYTES) fail(fiber, "mbarrier: more than 2^20 - 1 bytes expected");
    barrier.bytes += bytes;
    barrier.pending--;
    store_mbarrier(address, barrier);
    maybe_interrupt(fiber, 3);
}

void mbarrier_wait(Thread* self, u64* address, u32 parity, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    checked_mbarrier(fiber, address);
    if (!phase_is_over(address, parity)) poll(fiber, POLL_MBARRIER, address, parity, "a phase of an mbarrier");
    maybe_interrupt(fiber, 3);
}

// ---- sm_90: TMA -----------------------------------------------------------------------------------------------------

// The 128-byte swizzle: within 1024 bytes, the 16-byte pieces of row r of 128 bytes change places by XOR with r.
static size_t swizzle(size_t offset) {
    return offset ^ (offset >> 7 & 7) << 4;
}

// Copies a box between the matrix and shared memory, in pieces of 16 bytes.
static void transfer(Worker* worker, const Transfer& transfer, bool load) {
    const Map& map = transfer.map;
    u32 row_bytes = map.box_width * map.element_bytes;
    u32 per_piece = 16 / map.element_bytes;
    size_t start = (size_t)(transfer.shared - worker->shared);
    for (u32 r = 0; r < map.box_height; r++) {
        long long y = (long long)transfer.y + r;
        bool row_exists = y >= 0 && (u64)y < map.height;
        for (u32 piece = 0; piece < row_bytes / 16; piece++) {
            size_t offset = start + (size_t)r * row_bytes + piece * 16;
            char* shared = worker->shared + (map.swizzle ? swizzle(offset) : offset);
            long long x = (long long)transfer.x + piece * per_piece;
            // Of the elements of this piece, those from `first` up to `end` are inside of the matrix.
            long long first = x < 0 ? -x : 0;
            long long end = (long long)map.width - x;
            if (first > per_piece || !row_exists) first = per_piece;
            if (end > per_piece) end = per_piece;
            if (end < first) end = first;
            if (load) memset(shared, 0, 16);
            if (end == first) continue;
            char* global = map.base + (u64)y * map.stride + (u64)(x + first) * map.element_bytes;
            char* inside = shared + first * map.element_bytes;
            size_t bytes = (size_t)(end - first) * map.element_bytes;
            memcpy(load ? inside : global, load ? global : inside, bytes);
        }
    }
}

// Lets one of the loads under way land.
void Worker::land(size_t index) {
    Transfer landing = loads[index];
    loads.erase(loads.begin() + (ptrdiff_t)index);
    transfer(this, landing, true);
    Mbarrier barrier = load_mbarrier(landing.barrier);
    barrier.bytes -= landing.map.box_width * landing.map.box_height * landing.map.element_bytes;
    store_mbarrier(landing.barrier, barrier);
}

static Transfer checked_transfer(Fiber* fiber, const void* shared, const TensorMap* opaque, u64* barrier, int x,
                                 int y) {
    Transfer transfer;
    memcpy(&transfer.map, opaque, sizeof(transfer.map));
    const Map& map = transfer.map;
    if (map.magic != MAP_MAGIC) fail(fiber, "TMA: this is no tensor map");
    if (map.mistake) fail(fiber, "TMA: %s", map.mistake);
    if (!in_dynamic_shared(fiber->worker, shared, (size_t)map.box_width * map.box_height * map.element_bytes)) {
        fail(fiber, "TMA: the box is not in dynamic shared memory");
    }
    u32 alignment = map.swizzle ? 1024 : 128;
    if ((size_t)((const char*)shared - fiber->worker->shared) % alignment != 0) {
        fail(fiber, "TMA: the address in shared memory is no multiple of %u", alignment);
    }
    transfer.shared = (char*)shared;
    transfer.barrier = barrier;
    transfer.x = x;
    transfer.y = y;
    return transfer;
}

void tma_load(Thread* self, void* shared, const TensorMap* map, u64* barrier, int x, int y, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    checked_mbarrier(fiber, barrier);
    fiber->worker->loads.push_back(checked_transfer(fiber, shared, map, barrier, x, y));
    if (fiber->worker->eager()) fiber->worker->land(fiber->worker->loads.size() - 1);
    maybe_interrupt(fiber, 3);
}

void tma_store(Thread* self, const TensorMap* map, const void* shared, int x, int y, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    Transfer store = checked_transfer(fiber, shared, map, nullptr, x, y);
    if (fiber->worker->eager()) {
        transfer(fiber->worker, store, false);
    } else {
        fiber->stores.add(store);
    }
    maybe_interrupt(fiber, 3);
}

void tma_store_commit(Thread* self) {
    fiber_of(self)->stores.commit();
}

void tma_store_wait(Thread* self, u32 groups, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    fiber->stores.wait(groups, [fiber](const Transfer& store) { transfer(fiber->worker, store, false); });
}

// ---- sm_90a: wgmma --------------------------------------------------------------------------------------------------

constexpr u32 WGMMA_M = 64, WGMMA_N = 128, WGMMA_K = 16;

// Reads a bf16 operand of `rows` (M or N) by 16 (K) through its descriptor, as the PTX ISA lays it out with the
// 128-byte swizzle, in units of 8 values. The element (row, k) is put at out[row * row_step + k * k_step].
static void read_operand(const char* arena, u64 descriptor, u32 rows, bool mn_major, float* out, u32 row_step,
                         u32 k_step) {
    size_t start = (descriptor & 0x3fff) << 4;
    size_t leading = (descriptor >> 16 & 0x3fff) << 4;
    size_t stride = (descriptor >> 32 & 0x3fff) << 4;
    for (u32 i = 0; i < rows * WGMMA_K / 8; i++) {
        u32 row, k;
        size_t offset;
        if (mn_major) {
            // Rows of 64 along M or N, 8 of them along K; then by the stride along K, by the leading offset along M or
            // N.
            row = i % (rows / 8) * 8;
            k = i / (rows / 8);
            offset = row / 64 * leading + k / 8 * stride + k % 8 * 128 + row % 64 * 2;
        } else {
            // Rows of 64 along K, 8 of them along M or N; then by the stride along M or N. The leading offset is not
            // used.
            row = i / 2;
            k = i % 2 * 8;
            offset = row / 8 * stride + row % 8 * 128 + k * 2;
        }
        u16 values[8];
        memcpy(values, arena + swizzle(start + offset), sizeof(values));
        float* to = out + row * row_step + k * k_step;
        u32 step = mn_major ? row_step : k_step;
        for (u32 j = 0; j < 8; j++) to[j * step] = bf16_to_float(values[j]);
    }
}

static void perform(const char* arena, const Wgmma& wgmma) {
    float a[WGMMA_M * WGMMA_K], b[WGMMA_K * WGMMA_N];
    read_operand(arena, wgmma.a, WGMMA_M, wgmma.transpose_a, a, WGMMA_K, 1);
    read_operand(arena, wgmma.b, WGMMA_N, wgmma.transpose_b, b, 1, WGMMA_N);
    for (u32 row = 0; row < WGMMA_M; row++) {
        float sums[WGMMA_N] = {};
        for (u32 k = 0; k < WGMMA_K; k++) {
            for (u32 column = 0; column < WGMMA_N; column++) {
                sums[column] += a[row * WGMMA_K + k] * b[k * WGMMA_N + column];
            }
        }
        u32 first_thread = row / 16 * WARP + row % 8 * 4, half = row % 16 / 8;
        for (u32 column = 0; column < WGMMA_N; column++) {
            float& d = wgmma.d[first_thread + column % 8 / 2][column / 8 * 4 + half * 2 + column % 2];
            d = wgmma.accumulate ? d + sums[column] : sums[column];
        }
    }
}

static Warpgroup& warpgroup_of(Fiber* fiber) {
    return fiber->worker->warpgroups[fiber->warp / 4];
}

void wgmma_fence(Thread* self, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    fiber->fenced = true;
}

// How many bytes after its start an operand reaches, and whether all of it is in dynamic shared memory.
static void check_descriptor(Fiber* fiber, u64 descriptor, u32 rows, bool mn_major) {
    size_t start = (descriptor & 0x3fff) << 4;
    size_t leading = (descriptor >> 16 & 0x3fff) << 4;
    size_t stride = (descriptor >> 32 & 0x3fff) << 4;
    if (descriptor >> 62 != 1) fail(fiber, "wgmma: the descriptor is not one of the 128-byte swizzle");
    if (start & 0x380) fail(fiber, "wgmma: the operand does not begin in the first row of a 1024-byte tile");
    size_t last = mn_major ? (rows / 64 - 1) * leading + (WGMMA_K / 8 - 1) * stride : (rows / 8 - 1) * stride;
    if (start / 1024 * 1024 + last + 1024 > fiber->worker->launch->shared_bytes) {
        fail(fiber, "wgmma: the operand reaches past the end of dynamic shared memory");
    }
}

void wgmma(Thread* self, float* d, u64 a, u64 b, bool accumulate, bool transpose_a, bool transpose_b, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    u32 member = (fiber->warp * WARP + fiber->lane) % WARPGROUP;
    if (fiber->warp / 4 * WARPGROUP + WARPGROUP > fiber->worker->threads) fail(fiber, "wgmma: an incomplete warpgroup");
    if (!fiber->fenced) fail(fiber, "wgmma: no wgmma_fence before the first");
    Warpgroup& group = warpgroup_of(fiber);
    if (fiber->wgmma_issued == group.operations.size()) {
        check_descriptor(fiber, a, WGMMA_M, transpose_a);
        check_descriptor(fiber, b, WGMMA_N, transpose_b);
        Wgmma fresh{};
        fresh.a = a;
        fresh.b = b;
        fresh.accumulate = accumulate;
        fresh.transpose_a = transpose_a;
        fresh.transpose_b = transpose_b;
        group.operations.push_back(fresh);
    }
    Wgmma& wgmma = group.operations[fiber->wgmma_issued++];
    if (wgmma.a != a || wgmma.b != b || wgmma.accumulate != accumulate || wgmma.transpose_a != transpose_a ||
        wgmma.transpose_b != transpose_b) {
        fail(fiber, "wgmma: the threads of a warpgroup disagree on the operands");
    }
    wgmma.d[member] = d;
    wgmma.issued++;
}

void wgmma_commit(Thread* self, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    fiber->wgmma_ends.push_back(fiber->wgmma_issued);
}

// The first thread that waits has the operations performed, for the whole warpgroup, when all have issued them.
void wgmma_wait(Thread* self, u32 groups, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    Warpgroup& group = warpgroup_of(fiber);
    while (fiber->wgmma_ends.size() - fiber->wgmma_groups_done > groups) {
        u32 end = fiber->wgmma_ends[fiber->wgmma_groups_done];
        while (group.done < end) {
            u32 next = group.done;
            if (group.operations[next].issued == WARPGROUP) {
                perform(fiber->worker->shared, group.operations[next]);
                group.done++;
            } else {
                poll(fiber, POLL_WGMMA, &group, next, "the other warps of its warpgroup to issue wgmma");
            }
        }
        fiber->wgmma_groups_done++;
    }
    maybe_interrupt(fiber, 3);
}
