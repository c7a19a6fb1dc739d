// Stacks, and switching between them. A part of emulator.cpp, inside its namespace.
#pragma once

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
