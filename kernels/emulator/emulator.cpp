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

#include "emulator_fibers.h"
#include "emulator_launch.h"
#include "emulator_schedule.h"
#include "emulator_warp.h"
#include "emulator_hopper.h"

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
