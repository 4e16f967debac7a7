/* The states of blocks, as far as Python and the engine have them in memory together: what the map of a companion says
   (backend/companion.py). For the engine, and by cffi for backend/shared_map.py. */

#ifndef NVMEEMU_BLOCK_MAP_H
#define NVMEEMU_BLOCK_MAP_H

#include <stdbool.h>
#include <stdint.h>

#define MAP_BYTES 4096 /* of a chunk: two bits for each block, the first block's in the lowest bits */
#define MAP_BLOCKS 16384

enum block_state { BLOCK_DEALLOCATED = 0, BLOCK_WRITTEN = 1, BLOCK_UNCORRECTABLE = 2 };

/* Any thread may change it at any moment. What the file says follows: whoever changes the states writes them to the
   file from here, so the last one who does so writes what all have changed. */
struct map_chunk {
    uint8_t states[MAP_BYTES];
    int32_t written;   /* blocks that are not deallocated */
    uint32_t changing; /* changes that have begun and have not ended */
    uint32_t is_stale; /* the file lacks a change: writing it has failed */
};

struct block_map {
    uint64_t count;
    struct map_chunk *chunks[]; /* NULL: not in memory; once it is there, it stays as long as anybody uses the map */
};

/* Bytes of a chunk's states. */
struct map_range {
    uint32_t begin, end;
};

/* All of these blocks are of this state. map_keeps: and the file says so. */
bool map_has(const struct map_chunk *chunk, uint32_t first, uint32_t blocks, uint32_t state);
bool map_keeps(const struct map_chunk *chunk, uint32_t first, uint32_t blocks, uint32_t state);
/* From now on they are of this state. What is returned has to be written to the file, and then map_end says whether it
   was. */
struct map_range map_begin(struct map_chunk *chunk, uint32_t first, uint32_t blocks, uint32_t state);
void map_end(struct map_chunk *chunk, bool is_in_file);
/* The chunk is in memory from now on. Others may look. */
void map_put(struct block_map *map, uint64_t index, struct map_chunk *chunk);
/* Blocks of the chunks in memory that are not deallocated. */
uint64_t map_written(const struct block_map *map);

#endif
