// Runs a test kernel under the six schedules and compares it with plain loops.
//
//   driver RUNTIME.so KERNEL.so NAME    for each schedule: right, wrong, or the message; exit 1 unless all right
//   driver RUNTIME.so KERNEL.so bench   how long launches take (the library is that of bench.cu)
#include <dlfcn.h>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <vector>

struct EmulatorSchedule {
    int order, eager;
    unsigned long long seed;
};
typedef void (*Entry)(void**);
typedef int (*Launch)(Entry, const unsigned*, const unsigned*, unsigned, void**, int, int, const EmulatorSchedule*,
                      char*, unsigned long);
typedef void (*MakeMap)(void*, const void*, const unsigned long long*, unsigned long long, const unsigned*, unsigned,
                        int);

static Launch launch_function;
static MakeMap make_map;
static Entry entry;
static EmulatorSchedule schedule;
static int host_threads = 2;
static std::string message;

struct Extent {
    unsigned x, y = 1, z = 1;
};
struct Map {
    unsigned char bytes[128];
};

template <class... A>
static bool launch(Extent grid, Extent block, unsigned shared_bytes, bool cooperative, A... arguments) {
    void* pointers[] = {(void*)&arguments...};
    unsigned g[3] = {grid.x, grid.y, grid.z}, b[3] = {block.x, block.y, block.z};
    char text[1024] = "";
    int failed = launch_function(entry, g, b, shared_bytes, pointers, cooperative, host_threads, &schedule, text,
                                 sizeof(text));
    message = text;
    return failed == 0;
}

static uint16_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static float from_bf16(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}
static float to_tf32(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    bits = (bits + 0x1000) & ~0x1fffu;
    memcpy(&value, &bits, 4);
    return value;
}

// Reproducible values between -1 and 1.
static float sample(size_t i) {
    uint64_t x = (i + 1) * 0x9e3779b97f4a7c15ull;
    x ^= x >> 29;
    x *= 0xbf58476d1ce4e5b9ull;
    x ^= x >> 32;
    return (float)(x & 0xffff) / 32768.0f - 1.0f;
}
static std::vector<float> samples(size_t count, size_t first = 0) {
    std::vector<float> result(count);
    for (size_t i = 0; i < count; i++) result[i] = sample(first + i);
    return result;
}
static std::vector<uint16_t> bf16_samples(size_t count, size_t first = 0) {
    std::vector<uint16_t> result(count);
    for (size_t i = 0; i < count; i++) result[i] = to_bf16(sample(first + i));
    return result;
}
static bool close(float found, float expected, float tolerance) {
    return std::fabs(found - expected) <= tolerance * (1.0f + std::fabs(expected));
}

static bool barriers() {
    const int rows = 5, columns = 300;
    std::vector<float> x = samples(rows * columns), out(rows * columns, -9), peaks(rows, -9);
    if (!launch({rows}, {128}, 0, false, out.data(), peaks.data(), x.data(), columns)) return false;
    for (int r = 0; r < rows; r++) {
        double sum = 0, squares = 0, peak = -1e9;
        for (int c = 0; c < columns; c++) {
            double value = x[r * columns + c];
            sum += value;
            squares += value * value;
        }
        double mean = sum / columns, scale = 1 / std::sqrt(squares / columns - mean * mean + 1e-5);
        for (int c = 0; c < columns; c++) {
            double expected = (x[r * columns + c] - mean) * scale;
            peak = std::fmax(peak, expected);
            if (!close(out[r * columns + c], (float)expected, 1e-5f)) return false;
        }
        if (!close(peaks[r], (float)peak, 1e-5f)) return false;
    }
    return true;
}

static bool warp() {
    const int blocks = 3;
    std::vector<float> x = samples(blocks * 64), out(blocks * 6 * 64, -9);
    x[70] = 2;
    std::vector<double> sums(blocks * 2);
    std::vector<uint32_t> votes(blocks * 4);
    if (!launch({blocks}, {64}, 0, false, out.data(), sums.data(), votes.data(), x.data())) return false;
    for (int w = 0; w < blocks * 2; w++) {
        const float* v = &x[w * 32];
        double sum = 0;
        uint32_t positive = 0, bounds = 2;
        float tree[32];
        for (int l = 0; l < 32; l++) {
            tree[l] = v[l];
            sum += v[l];
            positive |= (uint32_t)(v[l] > 0) << l;
            if (v[l] > 1.5f) bounds |= 1;
            if (!(v[l] < 1.5f)) bounds &= ~2u;
        }
        for (int distance = 16; distance; distance /= 2) {
            for (int l = 0; l < distance; l++) tree[l] += tree[l + distance];
        }
        if (std::fabs(sums[w] - sum) > 1e-12 || votes[w * 2] != positive || votes[w * 2 + 1] != bounds) return false;
        for (int l = 0; l < 32; l++) {
            float expected[6] = {v[(l + 1) % 32],         l < 16 ? v[l ^ 1] : v[l ^ 2], l + 3 < 32 ? v[l + 3] : v[l],
                                 l % 8 >= 3 ? v[l - 3] : v[l], v[31 - l],               tree[0]};
            for (int i = 0; i < 6; i++) {
                if (out[w / 2 * 6 * 64 + i * 64 + w % 2 * 32 + l] != expected[i]) return false;
            }
        }
    }
    return true;
}

// The sum over p of a(i, p) * b(p, j), against what the kernel found.
static bool check_product(const std::vector<float>& c, int m, int n, int k, float tolerance,
                          const std::function<float(int, int)>& a, const std::function<float(int, int)>& b) {
    std::vector<float> b_row((size_t)n);
    std::vector<float> sums((size_t)m * n);
    for (int p = 0; p < k; p++) {
        for (int j = 0; j < n; j++) b_row[j] = b(p, j);
        for (int i = 0; i < m; i++) {
            float value = a(i, p);
            for (int j = 0; j < n; j++) sums[(size_t)i * n + j] += value * b_row[j];
        }
    }
    for (size_t i = 0; i < sums.size(); i++) {
        if (!close(c[i], sums[i], tolerance)) return false;
    }
    return true;
}

static bool tile() {
    const int m = 70, n = 50, k = 41;
    std::vector<float> a = samples(m * k), b = samples(k * n, 10000), bias = samples(n, 20000), c(m * n, -9);
    if (!launch({2, 3}, {64}, 0, false, c.data(), a.data(), b.data(), bias.data(), m, n, k)) return false;
    for (int i = 0; i < m * n; i++) c[i] -= bias[i % n];
    return check_product(c, m, n, k, 1e-5f, [&](int i, int p) { return a[i * k + p]; },
                         [&](int p, int j) { return b[p * n + j]; });
}

static bool mma() {
    const int m = 128, n = 192, k = 200;
    std::vector<uint16_t> a = bf16_samples(m * k), b = bf16_samples(k * n, 50000);
    std::vector<float> c(m * n, -9);
    if (!launch({3, 2}, {128}, 29184, false, c.data(), a.data(), b.data(), m, n, k)) return false;
    return check_product(c, m, n, k, 1e-5f, [&](int i, int p) { return from_bf16(a[i * k + p]); },
                         [&](int p, int j) { return from_bf16(b[p * n + j]); });
}

static bool wgmma(int a_transposed, int b_transposed) {
    const int m = 128, n = 256, k = 424;
    std::vector<uint16_t> a = bf16_samples(m * k), b = bf16_samples(k * n, 100000);
    std::vector<float> c(m * n, -9);
    auto map = [&](const std::vector<uint16_t>& matrix, int size, int transposed) {
        Map result;
        unsigned long long dims[2] = {(unsigned)(transposed ? size : k), (unsigned)(transposed ? k : size)};
        unsigned box[2] = {64, transposed ? 64u : 128u};
        make_map(&result, matrix.data(), dims, dims[0] * 2, box, 2, 1);
        return result;
    };
    if (!launch({2, 1}, {384}, 131072, false, c.data(), map(a, m, a_transposed), map(b, n, b_transposed), m, n, k,
                a_transposed, b_transposed)) {
        return false;
    }
    return check_product(c, m, n, k, 1e-5f,
                         [&](int i, int p) { return from_bf16(a_transposed ? a[p * m + i] : a[i * k + p]); },
                         [&](int p, int j) { return from_bf16(b_transposed ? b[p * n + j] : b[j * k + p]); });
}

static bool wgmma() {
    return wgmma(0, 0) && wgmma(1, 0) && wgmma(0, 1) && wgmma(1, 1);
}

static bool store() {
    const int rows = 24, columns = 36;
    std::vector<float> x = samples(rows * columns), out(rows * columns, -9);
    auto map = [&](const std::vector<float>& matrix) {
        Map result;
        unsigned long long dims[2] = {columns, rows};
        unsigned box[2] = {16, 16};
        make_map(&result, matrix.data(), dims, columns * 4, box, 4, 0);
        return result;
    };
    if (!launch({3, 2}, {32}, 2048, false, map(out), map(x))) return false;
    auto at = [&](int r, int c) { return r < rows && c < columns ? to_tf32(x[r * columns + c]) : 0.0f; };
    for (int r = 0; r < rows; r++) {
        for (int c = 0; c < columns; c++) {
            float sum = 0;
            for (int p = 0; p < 16; p++) sum += at(r, c / 16 * 16 + p) * at(r / 16 * 16 + p, c);
            if (!close(out[r * columns + c], sum, 1e-5f)) return false;
        }
    }
    return true;
}

static bool histogram() {
    const int n = 5000;
    std::vector<int> x(n), count(64), expected(64);
    std::vector<float> share(64, -9);
    uint32_t largest = 0, counter = 0, expected_largest = 0;
    for (int i = 0; i < n; i++) {
        x[i] = (int)(std::fabs(sample(i)) * 61);
        expected[x[i]]++;
        expected_largest = std::max(expected_largest, (uint32_t)x[i]);
    }
    if (!launch({5}, {96}, 0, true, share.data(), count.data(), &largest, &counter, x.data(), n)) return false;
    int sum = 0;
    for (int v = 0; v < 64; v++) {
        sum += expected[v];
        if (count[v] != expected[v] || !close(share[v], (float)sum / n, 1e-6f)) return false;
    }
    return largest == expected_largest;
}

// bench.cu, by kind: 0 nothing, 1 barriers, 2 shuffles, 3 sums of warps, 4 an elementwise loop.
static void bench() {
    auto time = [](int times, const std::function<void()>& f) {
        f();
        auto start = std::chrono::steady_clock::now();
        for (int i = 0; i < times; i++) f();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / times;
    };
    std::vector<float> out(1 << 20);
    float* to = out.data();
    host_threads = 1;
    schedule = {0, 0, 0};
    auto run = [&](unsigned grid, unsigned block, int kind, int n) {
        return time(grid > 100 || n > 100 ? 5 : 200, [&] { launch({grid}, {block}, 0, false, to, kind, n); });
    };
    printf("empty launch, 1 block of 32:       %8.2f us\n", run(1, 32, 0, 0) * 1e6);
    printf("empty launch, 1 block of 256:      %8.2f us\n", run(1, 256, 0, 0) * 1e6);
    host_threads = 2;
    printf("  the same with 2 host threads, 2 blocks: %.2f us\n", run(2, 256, 0, 0) * 1e6);
    host_threads = 1;
    printf("threads that wait for nothing:     %8.2e /s\n", 4000 * 256 / run(4000, 256, 0, 0));
    printf("threads that wait once:            %8.2e /s\n", 4000 * 256 / run(4000, 256, 1, 1));
    printf("__syncthreads, thread arrivals:    %8.2e /s (%.1f ns each)\n", 10 * 256 * 1000 / run(10, 256, 1, 1000),
           run(10, 256, 1, 1000) / (10 * 256 * 1000) * 1e9);
    printf("  blocks of 1024:                  %8.2e /s\n", 10 * 1024 * 1000 / run(10, 1024, 1, 1000));
    printf("__shfl_xor_sync, lanes:            %8.2e /s\n", 10 * 256 * 1000 / run(10, 256, 2, 1000));
    printf("warp_sum, lanes:                   %8.2e /s\n", 10 * 256 * 1000 / run(10, 256, 3, 1000));
    printf("elementwise, 256 elements a block: %8.2e /s\n", 4000 * 256 / run(4000, 256, 4, 0));
}

static double seconds(const std::function<void()>& f) {
    auto start = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

int main(int count, char** words) {
    if (count != 4) return 2;
    void* runtime = dlopen(words[1], RTLD_NOW | RTLD_GLOBAL);
    if (!runtime) return fprintf(stderr, "%s\n", dlerror()), 2;
    void* kernel = dlopen(words[2], RTLD_NOW);
    if (!kernel) return fprintf(stderr, "%s\n", dlerror()), 2;
    launch_function = (Launch)dlsym(runtime, "emulator_launch");
    make_map = (MakeMap)dlsym(runtime, "emulator_tensor_map");
    entry = (Entry)dlsym(kernel, "emulator_entry");
    std::string name = words[3];
    if (name == "bench") return bench(), 0;
    std::map<std::string, bool (*)()> cases = {{"barriers", barriers}, {"warp", warp},   {"tile", tile},
                                               {"mma", mma},           {"wgmma", wgmma}, {"store", store},
                                               {"histogram", histogram}};
    if (!cases.count(name)) return fprintf(stderr, "no case %s\n", name.c_str()), 2;
    bool all_right = true;
    for (int order = 0; order < 3; order++) {
        for (int eager = 0; eager < 2; eager++) {
            schedule = {order, eager, 1};
            message.clear();
            bool right = false;
            double took = seconds([&] { right = cases[name](); });
            all_right &= right;
            const char* result = right ? "right" : message.empty() ? "wrong" : message.c_str();
            printf("order %d eager %d %6.0f ms: %s\n", order, eager, took * 1e3, result);
        }
    }
    return all_right ? 0 : 1;
}
