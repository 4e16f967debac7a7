/* The states of blocks that Python and the engine share. Four blocks have a byte, so each change is atomic. */

#include <stddef.h>

#include "block_map.h"

#define IN_BYTE 4 /* blocks */

/* The bits of the blocks from `first` on, up to `end`, that this byte has. */
static uint8_t bits_of(uint32_t byte, uint32_t first, uint32_t end)
{
    uint32_t low = first > byte * IN_BYTE ? first - byte * IN_BYTE : 0;
    uint32_t high = end < (byte + 1) * IN_BYTE ? end - byte * IN_BYTE : IN_BYTE;

    return (uint8_t)((1u << 2 * high) - (1u << 2 * low));
}

static uint8_t all_of(uint32_t state)
{
    return (uint8_t)(state * 0x55);
}

/* Blocks of a byte that are not deallocated. */
static int32_t written_of(uint8_t states)
{
    return __builtin_popcount((states | states >> 1) & 0x55);
}

static struct map_range range_of(uint32_t first, uint32_t blocks)
{
    return (struct map_range){first / IN_BYTE, (first + blocks + IN_BYTE - 1) / IN_BYTE};
}

bool map_has(const struct map_chunk *chunk, uint32_t first, uint32_t blocks, uint32_t state)
{
    struct map_range range = range_of(first, blocks);

    for (uint32_t i = range.begin; i < range.end; i++)
        if ((__atomic_load_n(&chunk->states[i], __ATOMIC_SEQ_CST) ^ all_of(state)) & bits_of(i, first, first + blocks))
            return false;
    return true;
}

/* Whoever sees a state sees the change that it comes from: `changing` goes up before, and down when the file has it. */
bool map_keeps(const struct map_chunk *chunk, uint32_t first, uint32_t blocks, uint32_t state)
{
    return map_has(chunk, first, blocks, state) && __atomic_load_n(&chunk->changing, __ATOMIC_SEQ_CST) == 0 &&
           __atomic_load_n(&chunk->is_stale, __ATOMIC_SEQ_CST) == 0;
}

static void change(struct map_chunk *chunk, uint32_t byte, uint8_t bits, uint8_t states)
{
    uint8_t before = __atomic_load_n(&chunk->states[byte], __ATOMIC_RELAXED), after;

    do
        after = (uint8_t)((before & ~bits) | (states & bits));
    while (!__atomic_compare_exchange_n(&chunk->states[byte], &before, after, true, __ATOMIC_SEQ_CST,
                                        __ATOMIC_RELAXED));
    __atomic_fetch_add(&chunk->written, written_of(after) - written_of(before), __ATOMIC_RELAXED);
}

struct map_range map_begin(struct map_chunk *chunk, uint32_t first, uint32_t blocks, uint32_t state)
{
    struct map_range range = range_of(first, blocks);

    __atomic_fetch_add(&chunk->changing, 1, __ATOMIC_SEQ_CST);
    for (uint32_t i = range.begin; i < range.end; i++)
        change(chunk, i, bits_of(i, first, first + blocks), all_of(state));
    /* What others could not write is among all of it. */
    bool is_stale = __atomic_exchange_n(&chunk->is_stale, 0, __ATOMIC_SEQ_CST);
    return is_stale ? (struct map_range){0, MAP_BYTES} : range;
}

void map_end(struct map_chunk *chunk, bool is_in_file)
{
    if (!is_in_file)
        __atomic_store_n(&chunk->is_stale, 1, __ATOMIC_SEQ_CST);
    __atomic_fetch_sub(&chunk->changing, 1, __ATOMIC_SEQ_CST);
}

void map_put(struct block_map *map, uint64_t index, struct map_chunk *chunk)
{
    for (uint32_t i = 0; i < MAP_BYTES; i++)
        chunk->written += written_of(chunk->states[i]);
    __atomic_store_n(&map->chunks[index], chunk, __ATOMIC_RELEASE);
}

uint64_t map_written(const struct block_map *map)
{
    uint64_t written = 0;

    for (uint64_t i = 0; i < map->count; i++)
        if (map->chunks[i])
            written += (uint64_t)__atomic_load_n(&map->chunks[i]->written, __ATOMIC_RELAXED);
    return written;
}
