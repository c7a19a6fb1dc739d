// What a launch consists of, and what is said when it fails. A part of emulator.cpp, inside its namespace.
#pragma once

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
