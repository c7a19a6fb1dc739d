// The CUDA that kernels use, for g++: device.cuh includes this file when DELLA_EMULATOR is defined.
//
// A kernel runs as it would on a GPU: every thread of it has a stack of its own and runs until it has to wait for
// others. What takes long on a GPU (cp.async, TMA, wgmma) is done here as late as the program allows, so that a missing
// wait shows as a wrong result and not as luck. The work is done by emulator.cpp, which is compiled once. This file is
// compiled with each kernel, so it includes nothing.
//
// The first part is the interface between the two. The second gives kernels the names of CUDA.
#pragma once

typedef __SIZE_TYPE__ size_t;

struct uint3 {
    u32 x, y, z;
};
struct dim3 {
    u32 x, y, z;
    constexpr dim3(u32 x = 1, u32 y = 1, u32 z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

// A place in a kernel's source, for messages. As a default argument it is the place of the call.
struct Where {
    const char* file;
    int line;
    static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

// What a thread can see of its block.
struct Block {
    uint3 index;
    dim3 size;
    dim3 grid;
    char* dynamic_shared;
};

// The part of a thread that kernels see.
struct Thread {
    uint3 index;
    const Block* block;
};

// How the lanes of a warp exchange values: each hands over an `argument`, the last to come runs `combine` for all of
// them (`lanes[i]` is what lane i gave, null for those not in the mask), and all go on.
typedef void (*Combine)(Thread* self, void* const* lanes);

// The thread that is running. It stays the same for as long as a kernel's function runs, hence `const`: the compiler
// may ask once and remember.
Thread* self() __attribute__((const));

// Ends the launch with this message.
[[noreturn]] void fail(Thread* self, Where where, const char* message);

void sync_threads(Thread* self, Where where);
void named_barrier(Thread* self, int id, u32 threads, bool waits, Where where);
void grid_sync(Thread* self, u32* counter, Where where);

void warp_collective(Thread* self, u32 mask, Combine combine, void* argument, Where where);
void warp_sync(Thread* self, u32 mask, Where where);
enum ShuffleKind { SHUFFLE_INDEX, SHUFFLE_UP, SHUFFLE_DOWN, SHUFFLE_XOR };
u64 shuffle(Thread* self, u32 mask, ShuffleKind kind, u64 bits, int operand, int width, Where where);
u32 ballot(Thread* self, u32 mask, bool predicate, Where where);
float warp_sum(Thread* self, float value, Where where);
double warp_sum(Thread* self, double value, Where where);
float warp_max(Thread* self, float value, Where where);

u32 shared_address(Thread* self, const void* shared, Where where);
void cp_async(Thread* self, void* shared, const void* global, bool valid, Where where);
void cp_async_commit(Thread* self);
void cp_async_wait(Thread* self, u32 groups, Where where);
void ldmatrix(Thread* self, u32* result, const void* row, bool transpose, Where where);
void mma_bf16(Thread* self, float* d, const u32* a, u32 b0, u32 b1, Where where);
void mma_tf32(Thread* self, float* d, const u32* a, u32 b0, u32 b1, Where where);

void mbarrier_init(Thread* self, u64* barrier, u32 arrivals, Where where);
void mbarrier_arrive(Thread* self, u64* barrier, u32 bytes, Where where);
void mbarrier_wait(Thread* self, u64* barrier, u32 parity, Where where);
void tma_load(Thread* self, void* shared, const TensorMap* map, u64* barrier, int x, int y, Where where);
void tma_store(Thread* self, const TensorMap* map, const void* shared, int x, int y, Where where);
void tma_store_commit(Thread* self);
void tma_store_wait(Thread* self, u32 groups, Where where);

void wgmma_fence(Thread* self, Where where);
void wgmma(Thread* self, float* d, u64 a, u64 b, bool accumulate, bool transpose_a, bool transpose_b, Where where);
void wgmma_commit(Thread* self, Where where);
void wgmma_wait(Thread* self, u32 groups, Where where);

// Calls a kernel with arguments given as cuLaunchKernel takes them: an array of pointers to the values.
template <size_t... I>
struct Indices {};
template <size_t N, size_t... I>
struct CountTo : CountTo<N - 1, N - 1, I...> {};
template <size_t... I>
struct CountTo<0, I...> {
    typedef Indices<I...> type;
};
template <class... P, size_t... I>
static inline void call(void (*kernel)(P...), void** args, Indices<I...>) {
    kernel(*(P*)args[I]...);
}
template <class... P>
static inline void call(void (*kernel)(P...), void** args) {
    call(kernel, args, typename CountTo<sizeof...(P)>::type());
}

}  // namespace emulator

#if !defined(DELLA_EMULATOR_RUNTIME)

// ---- Declarations ---------------------------------------------------------------------------------------------------

// Hidden, so that a kernel is never confused with a function of that name in another library of the process.
#define KERNEL extern "C" __attribute__((visibility("hidden"))) void
// Static, so that __shared__ variables of helper functions belong to one kernel only.
#define DEVICE static inline
#define BOUNDS(threads, blocks)
#define GRID_CONSTANT const
#define DYNAMIC_SHARED(T, name) T* name = (T*)emulator::self()->block->dynamic_shared
#define INF __builtin_inff()

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define __constant__ static const
#define __launch_bounds__(...)
// A thread of the CPU runs one block at a time, so what is its own is the block's.
#define __shared__ static thread_local

#define threadIdx (emulator::self()->index)
#define blockIdx (emulator::self()->block->index)
#define blockDim (emulator::self()->block->size)
#define gridDim (emulator::self()->block->grid)
#define warpSize 32

// ---- Vectors --------------------------------------------------------------------------------------------------------

// A GPU faults where these are not aligned; -fsanitize=alignment sees it here.
#define EMULATOR_VECTORS(T, name)                                                        \
    struct __align__(2 * sizeof(T)) name##2 { T x, y; };                                 \
    struct __align__(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; }; \
    DEVICE name##2 make_##name##2(T x, T y) { return {x, y}; }                           \
    DEVICE name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(double, double)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS(u32, uint)
EMULATOR_VECTORS(u16, ushort)
EMULATOR_VECTORS(u8, uchar)
#undef EMULATOR_VECTORS
struct float3 { float x, y, z; };
struct int3 { int x, y, z; };
DEVICE float3 make_float3(float x, float y, float z) { return {x, y, z}; }
DEVICE int3 make_int3(int x, int y, int z) { return {x, y, z}; }
DEVICE uint3 make_uint3(u32 x, u32 y, u32 z) { return {x, y, z}; }

// ---- Mathematics ----------------------------------------------------------------------------------------------------

// Declared here because <math.h> would take longer to read than a kernel.
extern "C" {
#define EMULATOR_MATH1(name)             \
    double name(double) noexcept(true);  \
    float name##f(float) noexcept(true);
#define EMULATOR_MATH2(name)                    \
    double name(double, double) noexcept(true); \
    float name##f(float, float) noexcept(true);
EMULATOR_MATH1(exp)
EMULATOR_MATH1(exp2)
EMULATOR_MATH1(expm1)
EMULATOR_MATH1(log)
EMULATOR_MATH1(log2)
EMULATOR_MATH1(log1p)
EMULATOR_MATH1(sqrt)
EMULATOR_MATH1(cbrt)
EMULATOR_MATH1(sin)
EMULATOR_MATH1(cos)
EMULATOR_MATH1(tanh)
EMULATOR_MATH1(erf)
EMULATOR_MATH1(erfc)
EMULATOR_MATH1(fabs)
EMULATOR_MATH1(floor)
EMULATOR_MATH1(ceil)
EMULATOR_MATH1(trunc)
EMULATOR_MATH1(round)
EMULATOR_MATH1(rint)
EMULATOR_MATH2(pow)
EMULATOR_MATH2(fmod)
EMULATOR_MATH2(fmax)
EMULATOR_MATH2(fmin)
EMULATOR_MATH2(copysign)
double fma(double, double, double) noexcept(true);
float fmaf(float, float, float) noexcept(true);
int abs(int) noexcept(true);
#undef EMULATOR_MATH1
#undef EMULATOR_MATH2
}

DEVICE float rsqrtf(float x) { return 1.0f / sqrtf(x); }
DEVICE double rsqrt(double x) { return 1.0 / sqrt(x); }
DEVICE bool isnan(float x) { return __builtin_isnan(x); }
DEVICE bool isnan(double x) { return __builtin_isnan(x); }
DEVICE bool isinf(float x) { return __builtin_isinf(x); }
DEVICE bool isinf(double x) { return __builtin_isinf(x); }
DEVICE bool isfinite(float x) { return __builtin_isfinite(x); }
DEVICE bool isfinite(double x) { return __builtin_isfinite(x); }

#define EMULATOR_MIN_MAX(T)                                    \
    DEVICE constexpr T min(T a, T b) { return b < a ? b : a; } \
    DEVICE constexpr T max(T a, T b) { return a < b ? b : a; }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(u32)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(u64)
EMULATOR_MIN_MAX(long)
EMULATOR_MIN_MAX(size_t)
#undef EMULATOR_MIN_MAX
DEVICE float min(float a, float b) { return fminf(a, b); }
DEVICE float max(float a, float b) { return fmaxf(a, b); }

// The forms that a compiler may not fuse.
DEVICE float __fadd_rn(float a, float b) { return a + b; }
DEVICE float __fmul_rn(float a, float b) {
    volatile float product = a * b;
    return product;
}
DEVICE float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }

namespace emulator {
template <class To, class From>
static inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From), "of one size");
    To to;
    __builtin_memcpy(&to, &from, sizeof(To));
    return to;
}
}  // namespace emulator

DEVICE float __uint_as_float(u32 bits) { return emulator::bits_as<float>(bits); }
DEVICE float __int_as_float(int bits) { return emulator::bits_as<float>(bits); }
DEVICE u32 __float_as_uint(float value) { return emulator::bits_as<u32>(value); }
DEVICE int __float_as_int(float value) { return emulator::bits_as<int>(value); }
DEVICE double __longlong_as_double(long long bits) { return emulator::bits_as<double>(bits); }
DEVICE long long __double_as_longlong(double value) { return emulator::bits_as<long long>(value); }

DEVICE u32 __umulhi(u32 a, u32 b) { return (u32)((u64)a * b >> 32); }
DEVICE int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }
DEVICE u64 __umul64hi(u64 a, u64 b) { return (u64)((unsigned __int128)a * b >> 64); }
DEVICE int __popc(u32 x) { return __builtin_popcount(x); }
DEVICE int __popcll(u64 x) { return __builtin_popcountll(x); }
DEVICE int __clz(int x) { return x ? __builtin_clz((u32)x) : 32; }
DEVICE int __ffs(int x) { return __builtin_ffs(x); }
DEVICE u32 __funnelshift_l(u32 low, u32 high, u32 shift) {
    return (u32)((((u64)high << 32 | low) << (shift & 31)) >> 32);
}

// Rounds to the nearest, ties to even; every NaN becomes the one that the GPU makes.
DEVICE bf16 to_bf16(float value) {
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return {0x7fff};
    return {(u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
DEVICE u32 pack_bf16x2(float low, float high) {
    return (u32)to_bf16(low).bits | (u32)to_bf16(high).bits << 16;
}
// Rounds to the nearest, ties away from zero.
DEVICE u32 to_tf32(float value) {
    u32 bits = __float_as_uint(value);
    if ((bits & 0x7f800000) == 0x7f800000) return bits;
    return (bits + 0x1000) & ~0x1fffu;
}

DEVICE float exp2_flushed(float x) {
    const float result = exp2f(x);
    return result < 0x1p-126f ? 0.0f : result;
}
DEVICE float reciprocal(float x) {
    if (fabsf(x) < 0x1p-126f) return copysignf(INF, x);
    const float result = 1.0f / x;
    return fabsf(result) < 0x1p-126f ? copysignf(0.0f, x) : result;
}

// Kernels run one after the other, and there is no cache.
DEVICE void let_next_begin() {}
DEVICE void wait_for_previous() {}
DEVICE void prefetch_l2(const void*) {}

// ---- Memory ---------------------------------------------------------------------------------------------------------

template <class T>
DEVICE T __ldg(const T* address) {
    return *address;
}
template <class T>
DEVICE T __ldcg(const T* address) {
    return *address;
}
template <class T>
DEVICE T __ldcs(const T* address) {
    return *address;
}
template <class T>
DEVICE void __stcs(T* address, T value) {
    *address = value;
}

DEVICE void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
DEVICE void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

// Blocks run on several threads of the CPU, so these have to be atomic there as well.
namespace emulator {
template <class T>
struct Same {
    typedef T type;
};
template <class T, class Update>
static inline T atomic_update(T* address, Update update) {
    T old, next;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do {
        next = update(old);
    } while (!__atomic_compare_exchange(address, &old, &next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
}  // namespace emulator

// The type of the address decides; the value is converted to it.
#define EMULATOR_ATOMIC(name, expression)                                                \
    template <class T>                                                                   \
    DEVICE T name(T* address, typename emulator::Same<T>::type value) {                  \
        return emulator::atomic_update(address, [=](T old) -> T { return expression; }); \
    }
EMULATOR_ATOMIC(atomicAdd, old + value)
EMULATOR_ATOMIC(atomicSub, old - value)
EMULATOR_ATOMIC(atomicMax, old < value ? value : old)
EMULATOR_ATOMIC(atomicMin, value < old ? value : old)
EMULATOR_ATOMIC(atomicOr, old | value)
EMULATOR_ATOMIC(atomicAnd, old& value)
EMULATOR_ATOMIC(atomicXor, old ^ value)
EMULATOR_ATOMIC(atomicExch, ((void)old, value))
#undef EMULATOR_ATOMIC
template <class T>
DEVICE T atomicCAS(T* address, typename emulator::Same<T>::type compare, typename emulator::Same<T>::type value) {
    T old = compare;
    __atomic_compare_exchange(address, &old, &value, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return old;
}

// ---- Barriers and warps ---------------------------------------------------------------------------------------------

#define EMULATOR_HERE emulator::Where where = emulator::Where::here()

DEVICE void __syncthreads(EMULATOR_HERE) { emulator::sync_threads(emulator::self(), where); }
DEVICE void named_barrier(int id, u32 threads, EMULATOR_HERE) {
    emulator::named_barrier(emulator::self(), id, threads, true, where);
}
DEVICE void named_barrier_arrive(int id, u32 threads, EMULATOR_HERE) {
    emulator::named_barrier(emulator::self(), id, threads, false, where);
}
DEVICE void grid_sync(u32* counter, EMULATOR_HERE) { emulator::grid_sync(emulator::self(), counter, where); }

DEVICE void __syncwarp(u32 mask = 0xffffffffu, EMULATOR_HERE) { emulator::warp_sync(emulator::self(), mask, where); }

namespace emulator {
template <class T>
static inline T shuffle(u32 mask, ShuffleKind kind, T value, int operand, int width, Where where) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "values of 4 or 8 bytes");
    u64 bits = 0;
    __builtin_memcpy(&bits, &value, sizeof(T));
    bits = shuffle(self(), mask, kind, bits, operand, width, where);
    __builtin_memcpy(&value, &bits, sizeof(T));
    return value;
}
}  // namespace emulator

template <class T>
DEVICE T __shfl_sync(u32 mask, T value, int lane, int width = 32, EMULATOR_HERE) {
    return emulator::shuffle(mask, emulator::SHUFFLE_INDEX, value, lane, width, where);
}
template <class T>
DEVICE T __shfl_up_sync(u32 mask, T value, u32 distance, int width = 32, EMULATOR_HERE) {
    return emulator::shuffle(mask, emulator::SHUFFLE_UP, value, (int)distance, width, where);
}
template <class T>
DEVICE T __shfl_down_sync(u32 mask, T value, u32 distance, int width = 32, EMULATOR_HERE) {
    return emulator::shuffle(mask, emulator::SHUFFLE_DOWN, value, (int)distance, width, where);
}
template <class T>
DEVICE T __shfl_xor_sync(u32 mask, T value, int lanes, int width = 32, EMULATOR_HERE) {
    return emulator::shuffle(mask, emulator::SHUFFLE_XOR, value, lanes, width, where);
}
DEVICE u32 __ballot_sync(u32 mask, int predicate, EMULATOR_HERE) {
    return emulator::ballot(emulator::self(), mask, predicate != 0, where);
}
DEVICE int __any_sync(u32 mask, int predicate, EMULATOR_HERE) {
    return emulator::ballot(emulator::self(), mask, predicate != 0, where) != 0;
}
DEVICE int __all_sync(u32 mask, int predicate, EMULATOR_HERE) {
    return emulator::ballot(emulator::self(), mask, predicate != 0, where) == mask;
}

DEVICE float warp_sum(float value, EMULATOR_HERE) { return emulator::warp_sum(emulator::self(), value, where); }
DEVICE double warp_sum(double value, EMULATOR_HERE) { return emulator::warp_sum(emulator::self(), value, where); }
DEVICE float warp_max(float value, EMULATOR_HERE) { return emulator::warp_max(emulator::self(), value, where); }

// ---- Instructions: device.cuh says what each does -------------------------------------------------------------------

DEVICE u32 smem_addr(const void* shared, EMULATOR_HERE) {
    return emulator::shared_address(emulator::self(), shared, where);
}
DEVICE void cp_async16(void* shared, const void* global, EMULATOR_HERE) {
    emulator::cp_async(emulator::self(), shared, global, true, where);
}
DEVICE void cp_async16_zfill(void* shared, const void* global, bool valid, EMULATOR_HERE) {
    emulator::cp_async(emulator::self(), shared, global, valid, where);
}
DEVICE void cp_async_commit() { emulator::cp_async_commit(emulator::self()); }
template <int N>
DEVICE void cp_async_wait(EMULATOR_HERE) {
    emulator::cp_async_wait(emulator::self(), N, where);
}
DEVICE void ldmatrix_x4(u32 (&result)[4], const void* row, EMULATOR_HERE) {
    emulator::ldmatrix(emulator::self(), result, row, false, where);
}
DEVICE void ldmatrix_x4_trans(u32 (&result)[4], const void* row, EMULATOR_HERE) {
    emulator::ldmatrix(emulator::self(), result, row, true, where);
}
DEVICE void mma_bf16_16816(float* d, const u32 (&a)[4], u32 b0, u32 b1, EMULATOR_HERE) {
    emulator::mma_bf16(emulator::self(), d, a, b0, b1, where);
}
DEVICE void mma_tf32_1688(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1, EMULATOR_HERE) {
    emulator::mma_tf32(emulator::self(), d, a, b0, b1, where);
}

DEVICE void mbarrier_init(u64* barrier, u32 arrivals, EMULATOR_HERE) {
    emulator::mbarrier_init(emulator::self(), barrier, arrivals, where);
}
DEVICE void mbarrier_fence_init() {}
DEVICE void mbarrier_arrive(u64* barrier, EMULATOR_HERE) {
    emulator::mbarrier_arrive(emulator::self(), barrier, 0, where);
}
DEVICE void mbarrier_arrive_expect_tx(u64* barrier, u32 bytes, EMULATOR_HERE) {
    emulator::mbarrier_arrive(emulator::self(), barrier, bytes, where);
}
DEVICE void mbarrier_wait(u64* barrier, u32 parity, EMULATOR_HERE) {
    emulator::mbarrier_wait(emulator::self(), barrier, parity, where);
}

DEVICE void tma_load_2d(void* shared, const TensorMap* map, u64* barrier, int x, int y, EMULATOR_HERE) {
    emulator::tma_load(emulator::self(), shared, map, barrier, x, y, where);
}
DEVICE void fence_proxy_async() {}
DEVICE void tma_store_2d(const TensorMap* map, const void* shared, int x, int y, EMULATOR_HERE) {
    emulator::tma_store(emulator::self(), map, shared, x, y, where);
}
DEVICE void tma_store_commit() { emulator::tma_store_commit(emulator::self()); }
template <int N>
DEVICE void tma_store_wait(EMULATOR_HERE) {
    emulator::tma_store_wait(emulator::self(), N, where);
}

DEVICE void wgmma_fence(EMULATOR_HERE) { emulator::wgmma_fence(emulator::self(), where); }
template <int N> DEVICE void wgmma_settle(float (&)[N]) {}
DEVICE void wgmma_commit(EMULATOR_HERE) { emulator::wgmma_commit(emulator::self(), where); }
template <int N>
DEVICE void wgmma_wait(EMULATOR_HERE) {
    emulator::wgmma_wait(emulator::self(), N, where);
}
template <int TransposeA = 0, int TransposeB = 0>
DEVICE void wgmma_m64n128k16(float (&d)[64], u64 a, u64 b, bool accumulate = true, EMULATOR_HERE) {
    emulator::wgmma(emulator::self(), d, a, b, accumulate, TransposeA, TransposeB, where);
}
template <int N>
DEVICE void reg_dealloc() {
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a multiple of 8 from 24 to 256");
}
template <int N>
DEVICE void reg_alloc() {
    static_assert(N >= 24 && N <= 256 && N % 8 == 0, "a multiple of 8 from 24 to 256");
}

#undef EMULATOR_HERE
#endif
