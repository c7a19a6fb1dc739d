// What every kernel includes, and nothing else: types, launch macros, and one function for each machine instruction
// that C++ has no word for. All inline PTX of the project is in this file.
//
// Three compilers read it: nvcc, NVRTC (which has no system headers, so nothing is included here and nothing like
// INFINITY or uint32_t may be used) and g++ with -DDELLA_EMULATOR, for which emulator.h says what each of these
// functions means on a CPU. A function that needs no PTX is written once, at the end, for all three.
//
// Functions of a newer architecture (cp.async and mma: sm_80; mbarrier, TMA and wgmma: sm_90a) cost a kernel for an
// older one nothing as long as it does not call them.
#pragma once

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// The upper half of a float. Arithmetic is done in float: see to_float and to_bf16.
struct bf16 {
    u16 bits;
};

// A tensor map of the driver (CUtensorMap), or of the emulator: opaque, passed by value as a GRID_CONSTANT parameter.
// (g++ would remark on more than 16.)
#if defined(DELLA_EMULATOR)
struct alignas(16) TensorMap {
#else
struct alignas(64) TensorMap {
#endif
    u64 opaque[16];
};

#if defined(DELLA_EMULATOR)
#include "emulator.h"
#else

// ---- Declarations ---------------------------------------------------------------------------------------------------

#define KERNEL extern "C" __global__ void
#define DEVICE static __device__ __forceinline__
#define BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define GRID_CONSTANT const __grid_constant__
#define DYNAMIC_SHARED(T, name)                                   \
    extern __shared__ __align__(1024) u8 dynamic_shared_memory[]; \
    T* name = (T*)dynamic_shared_memory
#define INF __int_as_float(0x7f800000)

// ---- Numbers --------------------------------------------------------------------------------------------------------

// Rounds to the nearest, ties to even.
DEVICE bf16 to_bf16(float value) {
    bf16 result;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
    return result;
}

// Two bf16 in one register; `low` is the one at the lower address.
DEVICE u32 pack_bf16x2(float low, float high) {
    u32 result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
    return result;
}

// Rounds to the 10 bits of mantissa that mma_tf32_1688 reads.
DEVICE u32 to_tf32(float value) {
    u32 result;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result) : "f"(value));
    return result;
}

// 2^x with two units in the last place, in one instruction; a result below the least normal number is 0.
DEVICE float exp2_flushed(float x) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// 1 / x with one unit in the last place, in one instruction; denormal numbers, x and result, are 0.
DEVICE float reciprocal(float x) {
    float result;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
    return result;
}

// ---- Warp -----------------------------------------------------------------------------------------------------------

// Reductions over the 32 lanes; all lanes get the result. The order of the additions is part of the contract (lanes 16
// apart first, neighbours last), so that the emulator gives the same bits.
DEVICE float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}
DEVICE double warp_sum(double value) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return value;
}
DEVICE float warp_max(float value) {
#pragma unroll
    for (int distance = 16; distance; distance >>= 1) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    return value;
}

// ---- Barriers -------------------------------------------------------------------------------------------------------

// Waits for `threads` threads (a multiple of 32) at hardware barrier `id` (1 to 15; 0 is __syncthreads).
DEVICE void named_barrier(int id, u32 threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Is counted at a named barrier without waiting there.
DEVICE void named_barrier_arrive(int id, u32 threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Waits for all threads of a cooperative launch. `counter` is one u32 of global memory, zero before its first use ever.
// It only counts up: each barrier waits for the next multiple of the number of blocks.
DEVICE void grid_sync(u32* counter) {
    __syncthreads();
    if (threadIdx.x + threadIdx.y + threadIdx.z == 0) {
        u32 blocks = gridDim.x * gridDim.y * gridDim.z;
        u32 before, now;
        __threadfence();
        asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
        u32 goal = (before / blocks + 1) * blocks;
        do {
            asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(now) : "l"(counter) : "memory");
        } while ((int)(now - goal) < 0);
    }
    __syncthreads();
}

// ---- sm_90: the next kernel begins while this one runs ---------------------------------------------------------------

// A kernel whose row says `overlaps` is launched when all blocks of the one before have let it, and calls
// wait_for_previous before it writes, or reads what a kernel that overlaps may have written. Parameters, ids and places
// are not written by such, but by copies and by kernels that do not overlap, with copies between them and their next
// use. Cached keys and values are, but between steps there are copies, too: all but the rows that a step adds may be
// read before. All else that is read is not __restrict__, for that lets the compiler read it before. Where nothing
// overlaps, neither function does anything.
DEVICE void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until all kernels before this one are done, and sees what they wrote.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Asks for a sector of 32 bytes, to be in the L2 cache when it is read: also before wait_for_previous, for no value of it
// is used.
DEVICE void prefetch_l2(const void* global) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// ---- sm_80: cp.async, ldmatrix, mma ---------------------------------------------------------------------------------

// The address that PTX uses for a place in shared memory.
DEVICE u32 smem_addr(const void* shared) {
    return (u32)__cvta_generic_to_shared(shared);
}

// Starts a copy of 16 bytes, both addresses multiples of 16, into shared memory.
DEVICE void cp_async16(void* shared, const void* global) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem_addr(shared)), "l"(global) : "memory");
}

// The same, but writes zeros where `valid` is false; `global` is then not read.
DEVICE void cp_async16_zfill(void* shared, const void* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem_addr(shared)), "l"(global),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

// Closes a group of copies of this thread.
DEVICE void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most N groups of this thread are under way. Other threads see the data after a barrier.
template <int N>
DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// Loads four 8x8 matrices of 16-bit values. Lane l gives the address of row l % 8 of matrix l / 8 and gets, in
// result[i], the elements (l / 4, 2 * (l % 4)) and (l / 4, 2 * (l % 4) + 1) of matrix i.
DEVICE void ldmatrix_x4(u32 (&result)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(smem_addr(row))
                 : "memory");
}

// The same with each matrix transposed: lane l gets the elements (2 * (l % 4), l / 4) and (2 * (l % 4) + 1, l / 4).
DEVICE void ldmatrix_x4_trans(u32 (&result)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result[0]), "=r"(result[1]), "=r"(result[2]), "=r"(result[3])
                 : "r"(smem_addr(row))
                 : "memory");
}

// D[16x8] += A[16x16] B[16x8] of one warp. With g = lane / 4 and t = lane % 4:
//   a[i] holds A[g + 8 * (i % 2)][2 * t + 8 * (i / 2)] and its right neighbour,
//   b0, b1 hold B[2 * t][g], B[2 * t + 8][g] and the elements below them,
//   d[i] is D[g + 8 * (i / 2)][2 * t + i % 2].
DEVICE void mma_bf16_16816(float* d, const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// D[16x8] += A[16x8] B[8x8], of values made by to_tf32:
//   a[i] is A[g + 8 * (i % 2)][t + 4 * (i / 2)]; b0, b1 are B[t][g], B[t + 4][g]; d as above.
DEVICE void mma_tf32_1688(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// ---- sm_90: mbarrier ------------------------------------------------------------------------------------------------

// An mbarrier is a u64 in shared memory. A phase of it ends when `arrivals` threads have arrived and as many bytes have
// landed as were expected; then the next begins. Phases are told apart by their parity: the first is 0.
DEVICE void mbarrier_init(u64* barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_addr(barrier)), "r"(arrivals) : "memory");
}

// Shows mbarrier_init to the copy engine. The thread that initialises calls it; then all threads meet in __syncthreads.
DEVICE void mbarrier_fence_init() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

DEVICE void mbarrier_arrive(u64* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_addr(barrier)) : "memory");
}

// Arrives, and adds to the bytes that this phase waits for.
DEVICE void mbarrier_arrive_expect_tx(u64* barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_addr(barrier)), "r"(bytes)
                 : "memory");
}

// Waits for the end of the phase of this parity. A fresh barrier lets parity 1 through at once.
DEVICE void mbarrier_wait(u64* barrier, u32 parity) {
    u32 done;
    do {
        asm volatile("{\n"
                     ".reg .pred done;\n"
                     "mbarrier.try_wait.parity.shared::cta.b64 done, [%1], %2;\n"
                     "selp.u32 %0, 1, 0, done;\n"
                     "}"
                     : "=r"(done)
                     : "r"(smem_addr(barrier)), "r"(parity)
                     : "memory");
    } while (!done);
}

// ---- sm_90: TMA -----------------------------------------------------------------------------------------------------

// Starts the copy of one box of a matrix, first column x and first row y, into dynamic shared memory (1024-aligned);
// what lies outside of the matrix becomes zero. Its bytes, always those of a whole box, count at `barrier` when they
// landed. One thread calls it.
DEVICE void tma_load_2d(void* shared, const TensorMap* map, u64* barrier, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
                 "[%0], [%1, {%3, %4}], [%2];" ::"r"(smem_addr(shared)),
                 "l"(map), "r"(smem_addr(barrier)), "r"(x), "r"(y)
                 : "memory");
}

// Shows what this thread wrote to shared memory to TMA and wgmma. Then comes a barrier, then the TMA store or wgmma.
DEVICE void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// Starts the copy of one box the other way; what lies outside of the matrix is not written.
DEVICE void tma_store_2d(const TensorMap* map, const void* shared, int x, int y) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(map),
                 "r"(smem_addr(shared)), "r"(x), "r"(y)
                 : "memory");
}

// Closes a group of stores of this thread.
DEVICE void tma_store_commit() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until at most N groups of this thread are under way.
template <int N>
DEVICE void tma_store_wait() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(N) : "memory");
}

// ---- sm_90a: wgmma --------------------------------------------------------------------------------------------------

// Before the first wgmma, and before one that reads accumulators which were touched since the last.
DEVICE void wgmma_fence() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

// Accumulators are made here and not later: the compiler may not move that past wgmma_fence.
template <int N>
DEVICE void wgmma_settle(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(d[i])::"memory");
}

// Closes a group of wgmmas.
DEVICE void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most N groups are under way. Until then neither accumulators nor operands may be touched.
template <int N>
DEVICE void wgmma_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(N) : "memory");
}

// Starts D[64x128] += A[64x16] B[16x128] of one warpgroup, bf16 in shared memory; where `accumulate` is false, D = A B.
// TransposeA and TransposeB are 0 for a K-major operand and 1 for an MN-major one (see the descriptors below).
// Thread t of the warpgroup, with w = t / 32 and l = t % 32, has in d[4 * j + 2 * h + c] the element
// D[16 * w + l / 4 + 8 * h][8 * j + 2 * (l % 4) + c].
template <int TransposeA = 0, int TransposeB = 0>
DEVICE void wgmma_m64n128k16(float (&d)[64], u64 a, u64 b, bool accumulate = true) {
#define DELLA_D4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define DELLA_D16(i) DELLA_D4(i), DELLA_D4(i + 4), DELLA_D4(i + 8), DELLA_D4(i + 12)
    asm volatile("{\n"
                 ".reg .pred accumulate;\n"
                 "setp.ne.b32 accumulate, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
                 "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
                 "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
                 "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "%64, %65, accumulate, 1, 1, %67, %68;\n"
                 "}"
                 : DELLA_D16(0), DELLA_D16(16), DELLA_D16(32), DELLA_D16(48)
                 : "l"(a), "l"(b), "r"((int)accumulate), "n"(TransposeA), "n"(TransposeB));
#undef DELLA_D16
#undef DELLA_D4
}

// Hands registers of this warpgroup back, or takes more: to N a thread, a multiple of 8 from 24 to 256.
template <int N>
DEVICE void reg_dealloc() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
DEVICE void reg_alloc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

#endif

// ---- For all compilers ----------------------------------------------------------------------------------------------

#if !defined(DELLA_EMULATOR_RUNTIME)

DEVICE float to_float(bf16 value) {
    return __uint_as_float((u32)value.bits << 16);
}
DEVICE float to_float(float value) {
    return value;
}

// The halves of pack_bf16x2.
DEVICE float unpack_low(u32 pair) {
    return __uint_as_float(pair << 16);
}
DEVICE float unpack_high(u32 pair) {
    return __uint_as_float(pair & 0xffff0000u);
}

// convert<T>(value) is `value` as the type T of a tensor, float or bf16: the inverse of to_float.
DEVICE void convert_into(float& result, float value) {
    result = value;
}
DEVICE void convert_into(bf16& result, float value) {
    result = to_bf16(value);
}
template <class T>
DEVICE T convert(float value) {
    T result;
    convert_into(result, value);
    return result;
}

// Descriptors of wgmma operands of bf16 with the 128-byte swizzle of TMA, in dynamic shared memory: the first byte, the
// leading and the stride byte offset (each in units of 16), and 1 for this swizzle.

// K-major: rows of 64 values along K (128 bytes), groups of 8 rows 1024 bytes apart, as TMA lays a box of 64 columns of
// a row-major matrix [M or N][K] on a multiple of 1024. The next 16 along K begin 32 bytes on.
DEVICE u64 wgmma_descriptor_k(const void* shared) {
    return ((u64)(smem_addr(shared) >> 4) & 0x3fff) | (u64)1 << 16 | (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

// MN-major: rows of 64 values along M or N, groups of 8 rows (8 steps along K) 1024 bytes apart, as TMA lays a box of
// 64 columns of a row-major matrix [K][M or N]. The next 64 along M or N begin `leading_bytes` on: with boxes of r rows
// laid one after another, r * 128. The next 16 along K begin 2048 bytes on.
DEVICE u64 wgmma_descriptor_mn(const void* shared, u32 leading_bytes) {
    return ((u64)(smem_addr(shared) >> 4) & 0x3fff) | (u64)(leading_bytes >> 4 & 0x3fff) << 16 |
           (u64)(1024 >> 4) << 32 | (u64)1 << 62;
}

#endif
