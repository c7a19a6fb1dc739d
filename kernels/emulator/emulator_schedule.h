// Which fiber runs next, and barriers of blocks. A part of emulator.cpp, inside its namespace.
#pragma once

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
