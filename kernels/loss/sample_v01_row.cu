// Idea: a block per row draws its next token. Top-k and top-p do not sort: they bisect for the least weight that stays.
// Against: -
// Bound: memory; vocab * (4 + 8 * passes) bytes for a row, at most 64 passes for each of top-k and top-p, cached.
// Needs: any sm_80+; grid rows, block SAMPLE_THREADS; vocab < 2^31; weights (rows, vocab) is scratch.
// Source: the rules of src/generate/sampler.rs; sums in double like there, but in the order of threads; own.
#include "philox.cuh"
#include "reduce.cuh"

#ifndef SAMPLE_THREADS
#define SAMPLE_THREADS 1024
#endif
#define SAMPLE_WARPS (SAMPLE_THREADS / 32)

#define MODE_USUAL 0u
#define MODE_REFERENCE 1u
#define MODE_GREEDY 2u

// What to do with a row: twelve words.
struct SampleRow {
    u32 mode;
    u32 top_k;                                     // 0: all
    float top_p, temperature, repetition_penalty;  // 0 and 1: all; above 0; above 0
    u32 seed[2], number[2], step;                  // of the draw; low words first
    u32 history[2];                                // the row's tokens so far: first, and one past the last
};

// The token of a row whose logits are NaN, +inf, or -inf throughout.
#define NO_TOKEN 0xffffffffu
#define EXCLUDED (-(double)INF)

// Numbers in the order of the weights, which are not NaN.
DEVICE u64 rank_of(double weight) {
    const u64 bits = (u64)__double_as_longlong(weight), sign = (u64)1 << 63;
    return bits & sign ? ~bits : bits | sign;
}

DEVICE double weight_of(u64 rank) {
    const u64 sign = (u64)1 << 63;
    return __longlong_as_double((long long)(rank & sign ? rank ^ sign : ~rank));
}

// The weights of a row, of which a thread has those from `begin` to `end`, and what the block exchanges about them.
struct Row {
    double* weights;
    int vocab, begin, end;
    double* sums;  // one per warp
    u64* rank;
};

DEVICE double greatest_weight(const Row& row) {
    u64 greatest = 0;
    for (int v = threadIdx.x; v < row.vocab; v += SAMPLE_THREADS) {
        const u64 rank = rank_of(row.weights[v]);
        if (rank > greatest) greatest = rank;
    }
    __syncthreads();  // the previous one was read
    if (threadIdx.x == 0) *row.rank = 0;
    __syncthreads();
    atomicMax(row.rank, greatest);
    __syncthreads();
    return weight_of(*row.rank);
}

// How many weights have a rank of at least `least`, and their amount: their number or, `by_mass`, their exponentials.
struct Amount {
    double number, amount;
};

DEVICE Amount amount_from(const Row& row, u64 least, bool by_mass) {
    double number = 0.0, mass = 0.0;
    for (int v = threadIdx.x; v < row.vocab; v += SAMPLE_THREADS) {
        const double weight = row.weights[v];
        if (rank_of(weight) < least) continue;
        number += 1.0;
        if (by_mass) mass += exp(weight);
    }
    number = block_sum<SAMPLE_WARPS>(number, row.sums);
    return {number, by_mass ? block_sum<SAMPLE_WARPS>(mass, row.sums) : number};
}

DEVICE bool suffices(double amount, double wanted, bool above) { return above ? amount > wanted : amount >= wanted; }

// Keeps the heaviest weights, of equals those with the lower id, until their amount is the wanted one, or `above`
// it, and excludes all others. The greatest weight is 0.
DEVICE void keep_heaviest(const Row& row, double wanted, bool by_mass, bool above, bool all_equals) {
    // What is at or above `low` suffices, what is at or above `high` does not.
    u64 low = 0, high = rank_of(0.0) + 1;
    double from_low = row.vocab;
    Amount from_high = {0.0, 0.0};
    while (high - low > 1 && from_low - from_high.number > 1.0) {
        const u64 middle = low + (high - low) / 2;
        const Amount from_middle = amount_from(row, middle, by_mass);
        if (suffices(from_middle.amount, wanted, above)) {
            low = middle;
            from_low = from_middle.number;
        } else {
            high = middle;
            from_high = from_middle;
        }
    }

    // Between the two is one weight, perhaps several times.
    const double equals = from_low - from_high.number;
    double kept = 1.0;
    if (all_equals) kept = equals;
    if (kept < equals) {
        const double each = by_mass ? exp(weight_of(low)) : 1.0;
        double amount = from_high.amount + each;
        for (; kept < equals && !suffices(amount, wanted, above); kept += 1.0) amount += each;
    }

    double mine = 0.0;
    for (int v = row.begin; v < row.end; v++) {
        const u64 rank = rank_of(row.weights[v]);
        mine += rank >= low && rank < high ? 1.0 : 0.0;
    }
    double before = block_before<SAMPLE_WARPS>(mine, row.sums);
    for (int v = row.begin; v < row.end; v++) {
        const u64 rank = rank_of(row.weights[v]);
        if (rank >= high) continue;
        if (rank < low || before >= kept) row.weights[v] = EXCLUDED;
        if (rank >= low) before += 1.0;
    }
    __syncthreads();
}

// Divides a repeated token's probability by the penalty once for each time; the thread of its first place does it.
DEVICE void penalise_every_time(const Row& row, const u32* ids, int count, double penalty) {
    const double cost = log(penalty);
    for (int i = threadIdx.x; i < count; i += SAMPLE_THREADS) {
        bool first = true;
        for (int j = 0; j < i; j++) first = first && ids[j] != ids[i];
        if (!first) continue;
        double weight = row.weights[ids[i]];
        for (int j = i; j < count; j++) {
            if (ids[j] == ids[i]) weight -= cost;
        }
        row.weights[ids[i]] = weight;
    }
    __syncthreads();
}

// A number in [0, 1) with 53 random bits.
DEVICE double uniform(const SampleRow& settings) {
    const Words counter = {settings.step, STREAM_TOKEN, settings.number[0], settings.number[1]};
    const Words words = philox4x32(settings.seed[0], settings.seed[1], counter);
    return (double)((u64)words.a << 21 ^ words.b >> 11) * (1.0 / (double)((u64)1 << 53));
}

KERNEL BOUNDS(SAMPLE_THREADS, 1) sample(u32* __restrict__ token, double* __restrict__ weights,
                                        const float* logits, const SampleRow* __restrict__ settings,
                                        const u32* __restrict__ history, int rows, int vocab) {
    let_next_begin();
    wait_for_previous();
    __shared__ float maxima[SAMPLE_WARPS];
    __shared__ double sums[SAMPLE_WARPS];
    __shared__ u64 rank;
    __shared__ int first, last, wrong;
    const int r = blockIdx.x, thread = threadIdx.x;
    if (r >= rows) return;
    const SampleRow set = settings[r];
    const int part = (vocab + SAMPLE_THREADS - 1) / SAMPLE_THREADS;
    const int begin = thread * part < vocab ? thread * part : vocab;
    const int end = begin + part < vocab ? begin + part : vocab;
    const Row row = {weights + (size_t)r * vocab, vocab, begin, end, sums, &rank};
    logits += (size_t)r * vocab;

    if (thread == 0) {
        first = vocab;
        last = -1;
        wrong = 0;
    }
    __syncthreads();
    float greatest = -INF;
    int place = vocab;
    bool number = true;
#pragma unroll 8
    for (int v = thread; v < vocab; v += SAMPLE_THREADS) {
        const float logit = logits[v];
        number &= logit < INF;
        if (logit > greatest) greatest = logit, place = v;
        if (set.mode != MODE_GREEDY) row.weights[v] = logit;
    }
    if (!number) wrong = 1;
    const float mine_greatest = greatest;
    greatest = block_max<SAMPLE_WARPS>(greatest, maxima);
    if (wrong || greatest == -INF) {
        if (thread == 0) token[r] = NO_TOKEN;
        return;
    }
    if (set.mode == MODE_GREEDY) {
        if (mine_greatest == greatest) atomicMin(&first, place);
        __syncthreads();
        if (thread == 0) token[r] = first;
        return;
    }

    const u32* ids = history + set.history[0];
    const int count = (int)(set.history[1] - set.history[0]);
    const double penalty = set.repetition_penalty;
    if (set.mode == MODE_USUAL) {
        // From the logit, not from the weight: a second occurrence changes nothing.
        for (int i = thread; i < count; i += SAMPLE_THREADS) {
            const double logit = logits[ids[i]];
            row.weights[ids[i]] = logit > 0.0 ? logit / penalty : logit * penalty;
        }
        __syncthreads();
    }
    double top = greatest_weight(row);
    for (int v = thread; v < vocab; v += SAMPLE_THREADS) {
        row.weights[v] = (row.weights[v] - top) / (double)set.temperature;
    }
    __syncthreads();

    const bool reference = set.mode == MODE_REFERENCE;
    if (set.top_k != 0 && set.top_k < (u32)vocab) keep_heaviest(row, set.top_k, false, false, reference);
    if (set.top_p > 0.0f && set.top_p < 1.0f) {
        const double wanted = (double)set.top_p * amount_from(row, 0, true).amount;
        keep_heaviest(row, wanted, true, reference, false);
    }
    if (reference) penalise_every_time(row, ids, count, penalty);

    // The distribution function over ascending ids.
    top = greatest_weight(row);
    double sum = 0.0;
    for (int v = begin; v < end; v++) sum += exp(row.weights[v] - top);
    sum = block_sum<SAMPLE_WARPS>(sum, sums);
    double mine = 0.0;
    for (int v = begin; v < end; v++) mine += exp(row.weights[v] - top) / sum;
    double below = block_before<SAMPLE_WARPS>(mine, sums);
    const double u = uniform(set);
    int mine_last = -1;
    for (int v = begin; v < end; v++) {
        const double probability = exp(row.weights[v] - top) / sum;
        if (!(probability > 0.0)) continue;
        below += probability;
        mine_last = v;
        if (below > u) {
            atomicMin(&first, v);
            break;
        }
    }
    atomicMax(&last, mine_last);
    __syncthreads();
    // The sum may fall short of 1 by a rounding error; then the last one is it.
    if (thread == 0) token[r] = first < vocab ? first : last;
}
