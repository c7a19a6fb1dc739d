// Many vectors by one launch: a block has CHUNK neighbours of one of them.
#pragma once
#include "device.cuh"

// Of `count` rows of a table, in the order of their first blocks, the one that this block belongs to.
template <class Row> DEVICE const Row& row_of_block(const Row* table, int count) {
    int low = 0, high = count;
    while (high - low > 1) {
        const int middle = (low + high) / 2;
        (table[middle].first_block <= blockIdx.x ? low : high) = middle;
    }
    return table[low];
}

// This block's part of a row's vector: from `first` to before `end`.
struct Chunk {
    size_t first, end;
};

template <class Row> DEVICE Chunk chunk_of(const Row& row) {
    const size_t first = (size_t)(blockIdx.x - row.first_block) * CHUNK;
    return {first, first + CHUNK < row.len ? first + CHUNK : row.len};
}
