/* Disks with a companion (backend/companion.py): their blocks have states, and perhaps metadata. What a command has to do
   there, and what becomes of its metadata between the host and the medium. */

#ifndef NVMEEMU_PAIR_H
#define NVMEEMU_PAIR_H

#include <stdbool.h>
#include <stdint.h>

#include "block_map.h"
#include "interface.h"

struct lane;
struct nvme_read_write;
struct op;

/* In this order. A read has no STEP_MAP. */
enum pair_step { STEP_DATA, STEP_METADATA, STEP_MAP };

/* The blocks of a command, which are of one chunk of the map. It has a copy of all that it needs. */
struct pair {
    struct companion of;
    struct map_chunk *chunk; /* NULL: the disk has no companion */
    uint32_t first, blocks; /* in the chunk */
    uint32_t block_size; /* bytes of data */
    uint32_t data, metadata; /* bytes of all blocks */
    uint32_t transferred; /* bytes in the host's buffer of the data */
    bool is_interleaved; /* in that buffer each block's metadata follows its data */
    bool is_apart; /* the host has the metadata in a buffer of its own */
    uint64_t chunk_at, metadata_at; /* in the companion's file */
    enum pair_step step;
    struct map_range range; /* with STEP_MAP: of the chunk, what is being written */
};

/* False: Python has to do the command. */
bool pair_of(struct pair *pair, const struct disk *disk, const struct nvme_read_write *command);
/* Room for the data of all blocks, and behind it for their metadata. NULL: there is none. */
uint8_t *pair_room(struct lane *lane, const struct pair *pair);
/* The host's memory for separate metadata is there. */
bool pair_has_place(struct lane *lane, const struct pair *pair, const struct nvme_read_write *command);
/* Take what the host gives, at lane->transfer and in the metadata's own place, into pair_room, and make or check its
   protection information. False: Python has to say what is wrong. */
bool pair_take(struct lane *lane, const struct pair *pair, const struct nvme_read_write *command);
/* Check what was read, and give it to the host. False: as before. */
bool pair_give(struct lane *lane, const struct pair *pair, const struct nvme_read_write *command, const uint8_t *data,
               const uint8_t *metadata);
/* Mark the blocks as written, and say so in the file, without waiting. */
bool pair_mark_now(const struct pair *pair);
/* The present step has ended: `result` is what the system call returns, or a negative errno. True: there is another one
   to begin. */
bool pair_goes_on(struct op *op, long result);
/* The command has nothing to do but to mark its blocks. */
void pair_only_mark(struct op *op);

#endif
