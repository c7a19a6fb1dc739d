// The emulator's runtime: it runs kernels that were compiled by g++ (see emulator.h) as a GPU would, and looks for what
// a GPU forgives only sometimes. Compiled once into a shared library, which kernels find already loaded.
//
// One thread of the CPU (with a Worker) runs one block at a time. Each thread of the block is a Fiber: it runs until it
// has to wait, and then another lane of its warp runs, or, if none can, the scheduler picks another warp. Nothing else
// ever interrupts a fiber, so all of this is ordinary sequential code. A lane that has not yet started needs no stack;
// one that ends without having waited leaves its stack to the next.
//
// What takes long on a GPU is queued and done when somebody waits for it, or when nothing else can go on. A kernel that
// forgets to wait reads what was there before: NaN in shared memory that nobody wrote. The schedule (the order of the
// threads, and whether copies land late or at once) decides which mistakes show, so tests run several.
//
// Nothing here ends the process: a mistake that is found ends the launch with a message.
#define DELLA_EMULATOR_RUNTIME
#if !defined(DELLA_EMULATOR)
#define DELLA_EMULATOR
#endif
#define DEVICE static inline
#include <sched.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <link.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <pthread.h>
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "device.cuh"

#if !defined(EMULATOR_UCONTEXT) && !defined(__x86_64__) && !defined(__aarch64__)
#define EMULATOR_UCONTEXT
#endif
#if defined(EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

// ---- The interface for the host -------------------------------------------------------------------------------------

// How the threads of a launch take turns.
struct EmulatorSchedule {
    int order;                // of lanes and warps: 0 forward, 1 reverse, 2 random, with interruptions
    int eager;                // asynchronous copies land at once instead of as late as possible
    unsigned long long seed;  // of order 2
};

namespace emulator {

constexpr u32 WARP = 32;
constexpr u32 MAX_THREADS = 1024;
constexpr u32 MAX_WARPS = MAX_THREADS / WARP;
constexpr u32 WARPGROUP = 128;
constexpr u32 BARRIERS = 16;
constexpr u32 MAX_COOPERATIVE_BLOCKS = 64;
constexpr u32 FULL_MASK = 0xffffffffu;

// Dynamic shared memory of a block of sm_90: 227 KiB. A guard after what the launch asked for shows writes past the
// end.
constexpr u32 SHARED_LIMIT = 227 * 1024;
constexpr u32 SHARED_GUARD = 1024;
constexpr int POISON = 0xff;

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t STACK_BYTES = 512 * 1024;
#else
constexpr size_t STACK_BYTES = 128 * 1024;
#endif

// ---- Stacks and switching between them ------------------------------------------------------------------------------

// Where a stack was left. swapcontext would do everywhere, but makes a system call, which is ten times as slow.
#if defined(EMULATOR_UCONTEXT)
struct Context {
    ucontext_t place;
};

static void switch_stacks(Context& from, Context& to) {
    swapcontext(&from.place, &to.place);
}

static void start_context(Context& context, char* stack, char* top, void (*start)()) {
    getcontext(&context.place);
    context.place.uc_stack.ss_sp = stack;
    context.place.uc_stack.ss_size = (size_t)(top - stack);
    context.place.uc_link = nullptr;
    makecontext(&context.place, start, 0);
}
#else
struct Context {
    void* pointer;
};

// Saves what a function call must preserve on the stack that is left, and takes it from the other.
extern "C" __attribute__((visibility("hidden"))) void emulator_switch_stacks(void** from, void* to);

#if defined(__x86_64__)
asm(R"(
.text
.globl emulator_switch_stacks
.hidden emulator_switch_stacks
.type emulator_switch_stacks, @function
emulator_switch_stacks:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch_stacks, . - emulator_switch_stacks
)");
// Six registers, the address that `ret` goes to, and a return address for the function there, which never returns.
constexpr size_t FRAME_WORDS = 8, FRAME_START = 6;
#else
asm(R"(
.text
.globl emulator_switch_stacks
.hidden emulator_switch_stacks
.type emulator_switch_stacks, %function
emulator_switch_stacks:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
.size emulator_switch_stacks, . - emulator_switch_stacks
)");
// Twelve registers, of which the last is the link register, and eight of floating point.
constexpr size_t FRAME_WORDS = 20, FRAME_START = 11;
#endif

static void switch_stacks(Context& from, Context& to) {
    emulator_switch_stacks(&from.pointer, to.pointer);
}

static void start_context(Context& context, char*, char* top, void (*start)()) {
    u64* frame = (u64*)top - FRAME_WORDS;
    memset(frame, 0, FRAME_WORDS * sizeof(u64));
    frame[FRAME_START] = (u64)(uintptr_t)start;
    context.pointer = frame;
}
#endif

// Memory for stacks, in portions: most kernels need few. The pages come into being when they are touched.
struct Stack {
    char* bottom;
    char* top;
};

static bool add_stacks(std::vector<Stack>& stacks, u32& made) {
    constexpr u32 PORTION = 32;
    void* memory = mmap(nullptr, PORTION * STACK_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) return false;
#if defined(MADV_NOHUGEPAGE)
    madvise(memory, PORTION * STACK_BYTES, MADV_NOHUGEPAGE);
#endif
    for (u32 i = 0; i < PORTION; i++) {
        char* bottom = (char*)memory + i * STACK_BYTES;
        // Stacks that all begin at the same place of a page would share a few lines of the CPU's cache.
        size_t shift = (made++ % 16) * 256;
        stacks.push_back({bottom, bottom + STACK_BYTES - 64 - shift});
    }
    return true;
}

// ---- What a launch consists of --------------------------------------------------------------------------------------

// One kernel launch, which several workers share.
struct Launch {
    void (*entry)(void**);
    void** args;
    dim3 grid;
    dim3 size;
    u32 threads;  // of a block
    u64 blocks;
    u32 shared_bytes;
    bool cooperative;
    EmulatorSchedule schedule;

    std::atomic<u64> next_block{0};
    std::atomic<u64> finished_blocks{0};
    std::atomic<u64> idle_blocks{0};  // of a cooperative launch: those that can only wait for others
    std::atomic<bool> failed{false};
    std::mutex mutex;
    char message[1024] = "";

    // The first mistake is the one that is told.
    void fail(const char* text) {
        std::lock_guard<std::mutex> lock(mutex);
        if (!failed.exchange(true)) snprintf(message, sizeof(message), "%s", text);
    }
};

// Operations of one thread that are closed into groups and waited for by the number of groups that may remain.
template <class T>
struct Groups {
    std::vector<T> items;
    std::vector<size_t> ends;
    size_t items_done = 0;
    size_t groups_done = 0;

    void add(const T& item) { items.push_back(item); }
    void commit() { ends.push_back(items.size()); }
    bool pending() const { return items_done < items.size(); }

    template <class Perform>
    void wait(u32 allowed, Perform perform) {
        while (ends.size() - groups_done > allowed) {
            for (size_t end = ends[groups_done++]; items_done < end;) perform(items[items_done++]);
        }
        if (groups_done == ends.size() && items_done == items.size()) clear();
    }
    void clear() {
        items.clear();
        ends.clear();
        items_done = groups_done = 0;
    }
};

struct Copy {
    void* to;
    const void* from;  // null for zeros
};

// The emulator's tensor map, in the 128 bytes of the driver's.
struct Map {
    u64 magic;
    char* base;
    u64 width, height;  // of the matrix, in elements
    u64 stride;         // from row to row, in bytes
    u32 box_width, box_height;
    u32 element_bytes;
    u32 swizzle;
    const char* mistake;  // what a driver would have refused, or null
};
constexpr u64 MAP_MAGIC = 0x70614d726f736e54ull;
static_assert(sizeof(Map) <= sizeof(TensorMap), "fits");

struct Transfer {
    Map map;
    char* shared;
    u64* barrier;
    int x, y;
};

// One wgmma of a warpgroup. It can be performed when all threads have issued it.
struct Wgmma {
    u64 a, b;
    bool accumulate, transpose_a, transpose_b;
    u32 issued;
    float* d[WARPGROUP];
};

struct Warpgroup {
    std::vector<Wgmma> operations;
    u32 done;  // of the operations
};

// What a fiber waits for that no other fiber will tell it: the scheduler looks.
enum Poll : u8 {
    POLL_NOTHING,
    POLL_INTERRUPTED,  // nothing: others just go first
    POLL_MBARRIER,     // the end of a phase
    POLL_WGMMA,        // the other warps of the warpgroup
    POLL_GRID,         // the other blocks
};

struct Worker;

struct Fiber : Thread {
    Worker* worker;
    Context context;
    Stack stack;  // none until it starts
    u32 lane, warp;
    Where where;           // its last call of the emulator
    const char* activity;  // what it waits for, for messages
    bool fenced;           // has called wgmma_fence
    Poll poll;
    u32 poll_value;           // parity, number of operations or goal
    const void* poll_target;  // barrier or counter
    u32 wgmma_issued;
    Groups<Copy> copies;
    Groups<Transfer> stores;
    std::vector<u32> wgmma_ends;  // of the groups: how many operations were issued before
    u32 wgmma_groups_done;
};

struct Warp {
    u32 alive;    // lanes that have not ended
    u32 ready;    // lanes that can run
    u32 polling;  // lanes whose condition the scheduler looks at
    u32 waiting;  // lanes in a collective operation, with
    u32 mask[WARP];
    Combine combine[WARP];
    void* argument[WARP];
};

struct Barrier {
    u32 arrived;
    u32 threads;  // 0 for __syncthreads: all that live
    Where first;  // where the first thread arrived
    u32 waiting[MAX_WARPS];
};

// What a thread of the CPU needs to run blocks. Workers outlive launches, because their memory is dear.
struct Worker {
    Launch* launch = nullptr;
    Block block{};
    Context scheduler{};
    Fiber* current = nullptr;
    bool failed = false;

    u32 threads = 0, warp_count = 0;
    u32 alive = 0;  // threads of the block that have not ended
    u32 grid_waiting = 0;
    u64 random = 1;
    std::vector<Fiber> fibers{MAX_THREADS};
    Warp warps[MAX_WARPS];
    Warpgroup warpgroups[MAX_THREADS / WARPGROUP];
    Barrier barriers[BARRIERS];
    std::vector<Transfer> loads;  // under way
    std::vector<Stack> stacks;    // free ones
    u32 stacks_made = 0;
    char* shared = nullptr;  // the arena of dynamic shared memory
    char* static_shared = nullptr;
    size_t static_shared_bytes = 0;
#if defined(__SANITIZE_ADDRESS__)
    const void* own_stack = nullptr;
    size_t own_stack_bytes = 0;
#endif

    Worker();
    void prepare(Launch* launch);
    bool run_block(u64 number);

    u32 random_below(u32 bound) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        return (u32)((random >> 32) * bound >> 32);
    }
    bool eager() const { return launch->schedule.eager != 0; }
    bool shuffled() const { return launch->schedule.order == 2; }

    Fiber* next_lane(Warp& warp);
    void resume(Fiber* fiber);
    bool condition_holds(const Fiber& fiber);
    bool wake_polling();
    bool run_until_blocked();
    bool wait_for_other_blocks();
    void land(size_t index);
    void report_deadlock();
    void abandon();
};

// The worker of this thread of the CPU.
static thread_local Worker* this_worker = nullptr;

Thread* self() {
    return this_worker->current;
}

static Fiber* fiber_of(Thread* thread) {
    return static_cast<Fiber*>(thread);
}

static Warp& warp_of(Fiber* fiber) {
    return fiber->worker->warps[fiber->warp];
}

// ---- Messages -------------------------------------------------------------------------------------------------------

static const char* base_name(const char* path) {
    if (!path) return "?";
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static int format_place(char* text, size_t bytes, const Fiber& fiber) {
    return snprintf(text, bytes, "thread (%u, %u, %u) at %s:%d", fiber.index.x, fiber.index.y, fiber.index.z,
                    base_name(fiber.where.file), fiber.where.line);
}

static void switch_to_scheduler(Fiber* from, bool ends);

// Ends the launch from within a fiber: the scheduler abandons the block, and other workers stop at their next.
[[noreturn]] __attribute__((format(printf, 2, 3))) static void fail(Fiber* fiber, const char* format, ...) {
    char what[512], place[256], text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(what, sizeof(what), format, arguments);
    va_end(arguments);
    format_place(place, sizeof(place), *fiber);
    const uint3& block = fiber->block->index;
    snprintf(text, sizeof(text), "%s, in block (%u, %u, %u), %s", what, block.x, block.y, block.z, place);
    fiber->worker->launch->fail(text);
    fiber->worker->failed = true;
    for (;;) switch_to_scheduler(fiber, false);
}

void fail(Thread* self, Where where, const char* message) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    fail(fiber, "%s", message);
}

// Tells of the threads that wait, the first few of them.
void Worker::report_deadlock() {
    char text[1024];
    size_t used = (size_t)snprintf(text, sizeof(text), "deadlock in block (%u, %u, %u):", block.index.x, block.index.y,
                                   block.index.z);
    u32 told = 0;
    const char* last = nullptr;
    int last_line = 0;
    for (u32 i = 0; i < threads && told < 6 && used < sizeof(text) - 200; i++) {
        Fiber& fiber = fibers[i];
        if (!(warps[fiber.warp].alive >> fiber.lane & 1)) continue;
        // One thread for each place is enough.
        if (fiber.activity == last && fiber.where.line == last_line) continue;
        last = fiber.activity;
        last_line = fiber.where.line;
        char place[256];
        format_place(place, sizeof(place), fiber);
        const char* activity = fiber.activity ? fiber.activity : "nothing";
        used += (size_t)snprintf(text + used, sizeof(text) - used, "%s %s waits for %s", told ? ";" : "", place,
                                 activity);
        told++;
    }
    launch->fail(text);
}

// ---- Scheduling -----------------------------------------------------------------------------------------------------

#if defined(__SANITIZE_ADDRESS__)
// Tells the sanitizer which stack is in use, so that it does not take one for an overflow of the other.
static void announce_switch(void** fake, const void* bottom, size_t bytes) {
    __sanitizer_start_switch_fiber(fake, bottom, bytes);
}
static void announce_arrival(void* fake) {
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}
#endif

static void thread_main();

// Goes on with a fiber, on a stack of its own if it has not started yet, until control comes back to `from`.
static void switch_to_fiber(Worker* worker, Context& from, Fiber* to) {
    if (!to->stack.bottom) {
        to->stack = worker->stacks.back();
        worker->stacks.pop_back();
#if defined(__SANITIZE_ADDRESS__)
        __asan_unpoison_memory_region(to->stack.bottom, STACK_BYTES);
#endif
        start_context(to->context, to->stack.bottom, to->stack.top, thread_main);
    }
    worker->current = to;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    announce_switch(&fake, to->stack.bottom, STACK_BYTES);
    switch_stacks(from, to->context);
    announce_arrival(fake);
#else
    switch_stacks(from, to->context);
#endif
}

static void switch_to_scheduler(Fiber* from, bool ends) {
    Worker* worker = from->worker;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    announce_switch(ends ? nullptr : &fake, worker->own_stack, worker->own_stack_bytes);
    switch_stacks(from->context, worker->scheduler);
    announce_arrival(fake);
#else
    (void)ends;
    switch_stacks(from->context, worker->scheduler);
#endif
}

// The lane that runs next, or null if all wait.
inline Fiber* Worker::next_lane(Warp& warp) {
    u32 ready = warp.ready;
    if (!ready) return nullptr;
    u32 lane;
    if (launch->schedule.order == 0) {
        lane = (u32)__builtin_ctz(ready);
    } else if (launch->schedule.order == 1) {
        lane = 31 - (u32)__builtin_clz(ready);
    } else {
        u32 first = random_below(WARP);
        u32 rotated = first ? ready >> first | ready << (WARP - first) : ready;
        lane = ((u32)__builtin_ctz(rotated) + first) % WARP;
    }
    return &fibers[(size_t)(&warp - warps) * WARP + lane];
}

// Leaves a fiber that has marked itself as waiting; returns when something has made it ready again.
static void wait(Fiber* fiber, const char* activity) {
    Worker* worker = fiber->worker;
    fiber->activity = activity;
    Fiber* next = worker->next_lane(warp_of(fiber));
    if (next) {
        switch_to_fiber(worker, fiber->context, next);
    } else {
        switch_to_scheduler(fiber, false);
    }
}

// Waits until the scheduler finds that the condition holds.
static void poll(Fiber* fiber, Poll what, const void* target, u32 value, const char* activity) {
    Warp& warp = warp_of(fiber);
    fiber->poll = what;
    fiber->poll_target = target;
    fiber->poll_value = value;
    warp.ready &= ~(1u << fiber->lane);
    warp.polling |= 1u << fiber->lane;
    wait(fiber, activity);
}

// In random order, lets others go first once in so many times.
static void maybe_interrupt(Fiber* fiber, u32 once_in) {
    Worker* worker = fiber->worker;
    if (worker->shuffled() && worker->random_below(once_in) == 0) {
        poll(fiber, POLL_INTERRUPTED, nullptr, 0, "its turn");
    }
}

static void release(Worker* worker, Barrier& barrier) {
    barrier.arrived = 0;
    for (u32 i = 0; i < worker->warp_count; i++) {
        worker->warps[i].ready |= barrier.waiting[i];
        barrier.waiting[i] = 0;
    }
}

// A thread has returned from the kernel.
static void finish(Fiber* fiber) {
    Worker* worker = fiber->worker;
    Warp& warp = warp_of(fiber);
    if (fiber->copies.pending()) fail(fiber, "thread ends with cp.async under way");
    if (fiber->stores.pending()) fail(fiber, "thread ends with a TMA store under way");
    if (fiber->wgmma_issued > worker->warpgroups[fiber->warp / 4].done) fail(fiber, "thread ends with wgmma under way");
    u32 bit = 1u << fiber->lane;
    for (u32 waiting = warp.waiting; waiting; waiting &= waiting - 1) {
        u32 lane = (u32)__builtin_ctz(waiting);
        if (warp.mask[lane] & bit) {
            Fiber* other = &worker->fibers[fiber->warp * WARP + lane];
            fail(other, "lane %u has ended, but the mask of a warp operation names it", fiber->lane);
        }
    }
    fiber->copies.clear();
    fiber->stores.clear();
    fiber->wgmma_ends.clear();
    fiber->wgmma_groups_done = fiber->wgmma_issued = 0;
    fiber->fenced = false;
    warp.alive &= ~bit;
    warp.ready &= ~bit;
    worker->alive--;
    // Threads that have ended do not count at __syncthreads.
    Barrier& barrier = worker->barriers[0];
    if (barrier.arrived && barrier.arrived == worker->alive) release(worker, barrier);
}

// Where every stack begins. Runs one thread after another for as long as they do not wait.
static void thread_main() {
    Worker* worker = this_worker;
#if defined(__SANITIZE_ADDRESS__)
    announce_arrival(nullptr);
#endif
    for (;;) {
        Fiber* fiber = worker->current;
        worker->launch->entry(worker->launch->args);
        finish(fiber);
        Stack stack = fiber->stack;
        fiber->stack = {nullptr, nullptr};
        Fiber* next = worker->next_lane(warp_of(fiber));
        if (next && !next->stack.bottom) {
            next->stack = stack;
            worker->current = next;
            continue;
        }
        // Nobody takes the stack before it has been left.
        worker->stacks.push_back(stack);
        if (next) {
            switch_to_fiber(worker, fiber->context, next);
        } else {
            switch_to_scheduler(fiber, true);
        }
    }
}

// Whether what a fiber polls has happened.
static bool phase_is_over(const u64* barrier, u32 parity);
static bool counter_reached(const u32* counter, u32 goal) {
    return (int)(__atomic_load_n(counter, __ATOMIC_ACQUIRE) - goal) >= 0;
}
bool Worker::condition_holds(const Fiber& fiber) {
    switch (fiber.poll) {
        case POLL_MBARRIER: return phase_is_over((const u64*)fiber.poll_target, fiber.poll_value);
        case POLL_WGMMA: {
            const Warpgroup& group = *(const Warpgroup*)fiber.poll_target;
            return group.done > fiber.poll_value || group.operations[fiber.poll_value].issued == WARPGROUP;
        }
        case POLL_GRID: return counter_reached((const u32*)fiber.poll_target, fiber.poll_value);
        default: return true;
    }
}

bool Worker::wake_polling() {
    bool woken = false;
    for (u32 i = 0; i < warp_count; i++) {
        Warp& warp = warps[i];
        for (u32 polling = warp.polling; polling; polling &= polling - 1) {
            u32 lane = (u32)__builtin_ctz(polling);
            if (!condition_holds(fibers[i * WARP + lane])) continue;
            warp.polling &= ~(1u << lane);
            warp.ready |= 1u << lane;
            woken = true;
        }
    }
    return woken;
}

// Runs each warp that can run until all of its lanes wait. Returns whether there was one.
bool Worker::run_until_blocked() {
    u32 order[MAX_WARPS];
    for (u32 i = 0; i < warp_count; i++) order[i] = launch->schedule.order == 1 ? warp_count - 1 - i : i;
    if (shuffled()) {
        for (u32 i = warp_count; i > 1; i--) {
            u32 other = random_below(i), kept = order[i - 1];
            order[i - 1] = order[other];
            order[other] = kept;
        }
    }
    bool ran = false;
    for (u32 i = 0; i < warp_count && !failed; i++) {
        Fiber* fiber = next_lane(warps[order[i]]);
        if (!fiber) continue;
        switch_to_fiber(this, scheduler, fiber);
        ran = true;
    }
    return ran;
}

// A cooperative launch: this block can go on only when others have. Returns whether it may.
bool Worker::wait_for_other_blocks() {
    using Clock = std::chrono::steady_clock;
    launch->idle_blocks++;
    u32 turns = 0;
    bool all_idle = false;
    Clock::time_point all_idle_since;
    for (;;) {
        // Read before the counter: a block that has ended will not arrive any more.
        bool others_ended = launch->finished_blocks.load() > 0;
        if (wake_polling()) break;
        if (launch->failed) {
            failed = true;
            break;
        }
        if (others_ended) {
            launch->fail("grid_sync: a block has ended without coming to it");
            failed = true;
            break;
        }
        if (launch->idle_blocks == launch->blocks) {
            if (!all_idle) all_idle_since = Clock::now();
            all_idle = true;
            if (Clock::now() - all_idle_since > std::chrono::seconds(1)) {
                launch->fail("deadlock: all blocks wait in grid_sync, at different barriers");
                failed = true;
                break;
            }
        } else {
            all_idle = false;
        }
        if (++turns < 200) {
            sched_yield();
        } else {
            usleep(50);
        }
    }
    launch->idle_blocks--;
    return !failed;
}

// Runs one block from beginning to end. Returns whether it went well.
bool Worker::run_block(u64 number) {
    block.index = {(u32)(number % launch->grid.x), (u32)(number / launch->grid.x % launch->grid.y),
                   (u32)(number / launch->grid.x / launch->grid.y)};
    alive = threads;
    for (u32 i = 0; i < warp_count; i++) {
        u32 lanes = threads - i * WARP;
        warps[i].alive = warps[i].ready = lanes >= WARP ? FULL_MASK : (1u << lanes) - 1;
        warps[i].polling = warps[i].waiting = 0;
    }
    for (u32 i = 0; i < threads; i += WARPGROUP) {
        warpgroups[i / WARPGROUP].operations.clear();
        warpgroups[i / WARPGROUP].done = 0;
    }
    // The block alone decides what is random in it, so that it does not matter which worker runs it.
    random = (launch->schedule.seed + 1) * 0x9e3779b97f4a7c15ull ^ (number + 1) * 0xd1b54a32d192ed03ull;
    if (!random) random = 1;
    for (int i = 0; i < 4; i++) random_below(1);
    memset(shared, POISON, launch->shared_bytes + SHARED_GUARD);
    if (static_shared_bytes) memset(static_shared, POISON, static_shared_bytes);

    while (alive) {
        bool ran = run_until_blocked();
        if (failed) return false;
        // In random order some copies land while others are at work.
        if (shuffled() && !loads.empty() && random_below(4) == 0) land(random_below((u32)loads.size()));
        bool woken = wake_polling();
        if (ran || woken || !alive) continue;
        if (!loads.empty()) {
            land(shuffled() ? random_below((u32)loads.size()) : 0);
        } else if (grid_waiting) {
            if (!wait_for_other_blocks()) return false;
        } else {
            report_deadlock();
            return false;
        }
    }

    char text[256] = "";
    if (!loads.empty()) {
        snprintf(text, sizeof(text), "block (%u, %u, %u) ends with a TMA load under way", block.index.x, block.index.y,
                 block.index.z);
    }
    for (u32 i = 0; i < BARRIERS && !*text; i++) {
        if (barriers[i].arrived) {
            snprintf(text, sizeof(text), "block (%u, %u, %u) ends while threads are counted at barrier %u",
                     block.index.x, block.index.y, block.index.z, i);
        }
    }
    for (u32 i = 0; i < SHARED_GUARD && !*text; i++) {
        if ((u8)shared[launch->shared_bytes + i] != POISON) {
            snprintf(text, sizeof(text), "block (%u, %u, %u) wrote %u bytes past the end of dynamic shared memory",
                     block.index.x, block.index.y, block.index.z, i);
        }
    }
    if (*text) launch->fail(text);
    return !*text;
}

// Takes back what an ended launch has left in the middle.
void Worker::abandon() {
    for (Fiber& fiber : fibers) {
        if (fiber.stack.bottom) stacks.push_back(fiber.stack);
        fiber.stack = {nullptr, nullptr};
        fiber.copies.clear();
        fiber.stores.clear();
        fiber.wgmma_ends.clear();
        fiber.wgmma_groups_done = fiber.wgmma_issued = 0;
        fiber.fenced = false;
    }
    for (Barrier& barrier : barriers) memset(&barrier, 0, sizeof(barrier));
    loads.clear();
    grid_waiting = 0;
    failed = false;
}

// ---- Barriers -------------------------------------------------------------------------------------------------------

static void arrive(Fiber* fiber, int id, u32 expected, bool waits, const char* activity) {
    Worker* worker = fiber->worker;
    Barrier& barrier = worker->barriers[id];
    if (barrier.arrived == 0) {
        barrier.threads = expected;
        barrier.first = fiber->where;
    } else if (barrier.threads != expected) {
        fail(fiber, "barrier %d: threads disagree on how many it waits for, %u or %u", id, barrier.threads, expected);
    }
    if (++barrier.arrived == (expected ? expected : worker->alive)) {
        release(worker, barrier);
    } else if (waits) {
        Warp& warp = warp_of(fiber);
        u32 bit = 1u << fiber->lane;
        barrier.waiting[fiber->warp] |= bit;
        warp.ready &= ~bit;
        wait(fiber, activity);
    }
}

void sync_threads(Thread* self, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    Barrier& barrier = fiber->worker->barriers[0];
    if (barrier.arrived && (barrier.first.line != where.line || strcmp(barrier.first.file, where.file) != 0)) {
        fail(fiber, "divergent barrier: others wait in __syncthreads at %s:%d", base_name(barrier.first.file),
             barrier.first.line);
    }
    arrive(fiber, 0, 0, true, "__syncthreads");
    maybe_interrupt(fiber, 16);
}

void named_barrier(Thread* self, int id, u32 threads, bool waits, Where where) {
    Fiber* fiber = fiber_of(self);
    fiber->where = where;
    if (id < 1 || id >= (int)BARRIERS) fail(fiber, "named barrier %d: the number is 1 to 15", id);
    if (threads == 0 || threads % WARP != 0 || threads > fiber->worker->threads) {
        fail(fiber, "named barrier %d: %u threads are no whole number of warps of this block", id, threads);
    }
    arrive(fiber, id, threads, waits, "a named barrier");
    maybe_interrupt(fiber, 4);
}

void grid_sync(Thread* self, u32* counter, Where where) {
    Fiber* fiber = fiber_of(self);
    Launch* launch = fiber->worker->launch;
    sync_threads(self, where);
    if (self->index.x + self->index.y + self->index.z == 0) {
        if (!launch->cooperative && launch->blocks > 1) fail(fiber, "grid_sync: the launch is not cooperative");
        u32 blocks = (u32)launch->blocks;
        u32 before = __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL);
        u32 goal = (before / blocks + 1) * blocks;
        if (!counter_reached(counter, goal)) {
            fiber->worker->grid_waiting++;
            poll(fiber, POLL_GRID, counter, goal, "other blocks in grid_sync");
            fiber->worker->grid_waiting--;
        }
    }
    sync_threads(self, where);
}

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

// ---- Workers --------------------------------------------------------------------------------------------------------

Worker::Worker() {
    size_t bytes = SHARED_LIMIT + SHARED_GUARD + 1024;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    shared = (char*)(((uintptr_t)memory + 1023) & ~(uintptr_t)1023);
    block.dynamic_shared = shared;
    for (u32 i = 0; i < MAX_THREADS; i++) {
        Fiber& fiber = fibers[i];
        fiber.block = &block;
        fiber.worker = this;
        fiber.lane = i % WARP;
        fiber.warp = i / WARP;
    }
    abandon();
}

// Static shared memory is the thread-local memory of the kernel's library. This finds where it is, to poison it.
struct StaticShared {
    size_t module = 0;
    size_t bytes = 0;
};

#if defined(__linux__)
struct Search {
    uintptr_t address;
    StaticShared found;
};

static int search_library(struct dl_phdr_info* info, size_t, void* data) {
    Search* search = (Search*)data;
    bool here = false;
    const ElfW(Phdr)* thread_local_part = nullptr;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr)& part = info->dlpi_phdr[i];
        uintptr_t begin = info->dlpi_addr + part.p_vaddr;
        if (part.p_type == PT_LOAD && search->address >= begin && search->address < begin + part.p_memsz) here = true;
        if (part.p_type == PT_TLS) thread_local_part = &part;
    }
    if (!here) return 0;
    // Only memory without initial values is shared memory.
    if (thread_local_part && thread_local_part->p_filesz == 0) {
        search->found.module = info->dlpi_tls_modid;
        search->found.bytes = thread_local_part->p_memsz;
    }
    return 1;
}

struct LibraryCounts {
    unsigned long long loaded, unloaded;
};

static int count_libraries(struct dl_phdr_info* info, size_t, void* data) {
    *(LibraryCounts*)data = {info->dlpi_adds, info->dlpi_subs};
    return 1;
}

extern "C" void* __tls_get_addr(size_t* module_and_offset);

// The search takes microseconds, so its result is kept for as long as no library comes or goes.
static StaticShared find_static_shared(void (*entry)(void**)) {
    struct Known {
        uintptr_t address;
        StaticShared found;
    };
    static std::mutex mutex;
    static std::vector<Known>& known = *new std::vector<Known>();
    static LibraryCounts known_for = {0, 0};
    std::lock_guard<std::mutex> lock(mutex);
    LibraryCounts now = {0, 0};
    dl_iterate_phdr(count_libraries, &now);
    if (now.loaded != known_for.loaded || now.unloaded != known_for.unloaded) {
        known.clear();
        known_for = now;
    }
    uintptr_t address = (uintptr_t)entry;
    for (const Known& one : known) {
        if (one.address == address) return one.found;
    }
    Search search = {address, {}};
    dl_iterate_phdr(search_library, &search);
    known.push_back({address, search.found});
    return search.found;
}

static char* address_of(const StaticShared& where) {
    size_t module_and_offset[2] = {where.module, 0};
    return (char*)__tls_get_addr(module_and_offset);
}
#else
static StaticShared find_static_shared(void (*)(void**)) {
    return {};
}
static char* address_of(const StaticShared&) {
    return nullptr;
}
#endif

// Makes a worker ready for a launch, on the thread of the CPU that will run it.
void Worker::prepare(Launch* next) {
    launch = next;
    this_worker = this;
    block.grid = next->grid;
    bool same = block.size.x == next->size.x && block.size.y == next->size.y && threads >= next->threads;
    block.size = next->size;
    if (!same) {
        for (u32 i = 0; i < next->threads; i++) {
            u32 x = next->size.x, y = next->size.y;
            fibers[i].index = {i % x, i / x % y, i / x / y};
        }
    }
    threads = next->threads;
    warp_count = (threads + WARP - 1) / WARP;
    while (stacks.size() < threads) {
        if (!add_stacks(stacks, stacks_made)) {
            launch->fail("no memory for the stacks of the emulator");
            break;
        }
    }
    StaticShared found = find_static_shared(next->entry);
    static_shared_bytes = found.bytes;
    static_shared = found.bytes ? address_of(found) : nullptr;
#if defined(__SANITIZE_ADDRESS__)
    pthread_attr_t attributes;
    pthread_getattr_np(pthread_self(), &attributes);
    void* bottom = nullptr;
    pthread_attr_getstack(&attributes, &bottom, &own_stack_bytes);
    pthread_attr_destroy(&attributes);
    own_stack = bottom;
#endif
}

// Workers and helper threads that nobody uses at the moment. They are kept until the process ends, and never destroyed.
struct Helper {
    std::mutex mutex;
    std::condition_variable changed;
    Launch* launch = nullptr;
    struct Team* team = nullptr;
};

struct Team {
    std::mutex mutex;
    std::condition_variable done;
    u32 running = 0;
};

struct Idle {
    std::mutex mutex;
    std::vector<Worker*> workers;
    std::vector<Helper*> helpers;
};

static Idle& idle() {
    static Idle* idle = new Idle();
    return *idle;
}

static Worker* take_worker() {
    {
        std::lock_guard<std::mutex> lock(idle().mutex);
        if (!idle().workers.empty()) {
            Worker* worker = idle().workers.back();
            idle().workers.pop_back();
            return worker;
        }
    }
    return new Worker();
}

// Runs blocks until there are no more or one has failed.
static void work(Launch* launch) {
    Worker* worker;
    try {
        worker = take_worker();
    } catch (const std::bad_alloc&) {
        launch->fail("no memory for the emulator");
        return;
    }
    worker->prepare(launch);
    while (!launch->failed) {
        u64 number = launch->next_block++;
        if (number >= launch->blocks) break;
        if (!worker->run_block(number)) {
            worker->abandon();
            break;
        }
        launch->finished_blocks++;
        // Each block of a cooperative launch has a thread of its own.
        if (launch->cooperative) break;
    }
    worker->launch = nullptr;
    this_worker = nullptr;
    std::lock_guard<std::mutex> lock(idle().mutex);
    idle().workers.push_back(worker);
}

static void help(Helper* helper) {
    for (;;) {
        Launch* launch;
        Team* team;
        {
            std::unique_lock<std::mutex> lock(helper->mutex);
            helper->changed.wait(lock, [helper] { return helper->launch != nullptr; });
            launch = helper->launch;
            team = helper->team;
            helper->launch = nullptr;
        }
        work(launch);
        {
            std::lock_guard<std::mutex> lock(idle().mutex);
            idle().helpers.push_back(helper);
        }
        // The launch ends with this, so it comes last, and under the lock: the team is gone right after.
        std::lock_guard<std::mutex> lock(team->mutex);
        if (--team->running == 0) team->done.notify_one();
    }
}

// Has another thread work on this launch; false if the system gives none.
static bool call_helper(Launch* launch, Team* team) {
    Helper* helper = nullptr;
    {
        std::lock_guard<std::mutex> lock(idle().mutex);
        if (!idle().helpers.empty()) {
            helper = idle().helpers.back();
            idle().helpers.pop_back();
        }
    }
    if (!helper) {
        helper = new Helper();
        try {
            std::thread(help, helper).detach();
        } catch (const std::system_error&) {
            delete helper;
            return false;
        }
    }
    {
        std::lock_guard<std::mutex> lock(team->mutex);
        team->running++;
    }
    std::lock_guard<std::mutex> lock(helper->mutex);
    helper->team = team;
    helper->launch = launch;
    helper->changed.notify_one();
    return true;
}

static void run(Launch* launch, u32 workers) {
    Team team;
    for (u32 i = 1; i < workers; i++) {
        if (call_helper(launch, &team)) continue;
        // Fewer threads are only slower, unless blocks wait for each other.
        if (launch->cooperative) launch->fail("no thread for a block of a cooperative launch");
        break;
    }
    work(launch);
    std::unique_lock<std::mutex> lock(team.mutex);
    team.done.wait(lock, [&team] { return team.running == 0; });
}

}  // namespace emulator

// Runs a kernel. `entry` is the emulator_entry of its library, `args` as for cuLaunchKernel; an ordinary launch is
// spread over up to `threads` threads of the CPU, a cooperative one takes as many as it has blocks. Returns 0, or 1
// with a message. May be called from several threads at once.
extern "C" int emulator_launch(void (*entry)(void**), const unsigned grid[3], const unsigned block[3],
                               unsigned shared_bytes, void** args, int cooperative, int threads,
                               const EmulatorSchedule* schedule, char* message, unsigned long message_bytes) {
    using namespace emulator;
    Launch launch;
    launch.entry = entry;
    launch.args = args;
    launch.grid = dim3(grid[0], grid[1], grid[2]);
    launch.size = dim3(block[0], block[1], block[2]);
    launch.shared_bytes = shared_bytes;
    launch.cooperative = cooperative != 0;
    launch.schedule = schedule ? *schedule : EmulatorSchedule{0, 0, 0};
    launch.blocks = (u64)grid[0] * grid[1] * grid[2];
    u64 block_threads = (u64)block[0] * block[1] * block[2];
    launch.threads = (u32)block_threads;

    char text[128] = "";
    if (launch.blocks == 0) snprintf(text, sizeof(text), "the grid is empty");
    if (grid[1] > 65535 || grid[2] > 65535) snprintf(text, sizeof(text), "a grid has at most 65535 blocks in y and z");
    if (block_threads == 0 || block_threads > MAX_THREADS || block[2] > 64) {
        snprintf(text, sizeof(text), "a block of %u x %u x %u threads", block[0], block[1], block[2]);
    }
    if (shared_bytes > SHARED_LIMIT) {
        snprintf(text, sizeof(text), "%u bytes of dynamic shared memory: there are %u", shared_bytes, SHARED_LIMIT);
    }
    if (cooperative && launch.blocks > MAX_COOPERATIVE_BLOCKS) {
        snprintf(text, sizeof(text), "%llu blocks in a cooperative launch: the emulator runs at most %u", launch.blocks,
                 MAX_COOPERATIVE_BLOCKS);
    }
    if (*text) {
        launch.fail(text);
    } else {
        u64 workers = cooperative ? launch.blocks : (u64)(threads > 1 ? threads : 1);
        run(&launch, (u32)(workers < launch.blocks ? workers : launch.blocks));
    }
    if (!launch.failed) return 0;
    if (message && message_bytes) snprintf(message, message_bytes, "%s", launch.message);
    return 1;
}

// Fills in the 128 bytes of a TensorMap: a row-major matrix of dims[1] rows of dims[0] elements, stride_bytes from row
// to row, copied in boxes of box[1] rows of box[0]. What the driver would refuse is told when the map is used.
extern "C" void emulator_tensor_map(void* map128, const void* base, const unsigned long long dims[2],
                                    unsigned long long stride_bytes, const unsigned box[2], unsigned element_bytes,
                                    int swizzle128) {
    using namespace emulator;
    Map map{};
    map.magic = MAP_MAGIC;
    map.base = (char*)base;
    map.width = dims[0];
    map.height = dims[1];
    map.stride = stride_bytes;
    map.box_width = box[0];
    map.box_height = box[1];
    map.element_bytes = element_bytes;
    map.swizzle = swizzle128 != 0;
    u64 row_bytes = (u64)box[0] * element_bytes;
    if (element_bytes != 1 && element_bytes != 2 && element_bytes != 4 && element_bytes != 8) {
        map.mistake = "tensor map: an element has 1, 2, 4 or 8 bytes";
    } else if (dims[0] == 0 || dims[1] == 0) {
        map.mistake = "tensor map: the matrix is empty";
    } else if ((uintptr_t)base % 16 != 0) {
        map.mistake = "tensor map: the address of the matrix is no multiple of 16";
    } else if (stride_bytes % 16 != 0 || stride_bytes < dims[0] * element_bytes) {
        map.mistake = "tensor map: the stride is no multiple of 16, or less than a row";
    } else if (box[0] == 0 || box[1] == 0 || box[0] > 256 || box[1] > 256) {
        map.mistake = "tensor map: a box has 1 to 256 rows and columns";
    } else if (row_bytes % 16 != 0) {
        map.mistake = "tensor map: a row of a box is no multiple of 16 bytes";
    } else if (swizzle128 && row_bytes > 128) {
        map.mistake = "tensor map: a row of a swizzled box has more than 128 bytes";
    }
    memset(map128, 0, sizeof(TensorMap));
    memcpy(map128, &map, sizeof(map));
}
