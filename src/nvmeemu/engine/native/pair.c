/* Disks with a companion: where the metadata and the states of a command's blocks lie, how its metadata get from the
   host to the medium and back, and the steps of its work. The rules are those of metadata.py, which says what is wrong. */

#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "block_map.h"
#include "interface.h"
#include "lane.h"
#include "memory.h"
#include "nvme_spec.h"
#include "op.h"
#include "pair.h"
#include "protection.h"
#include "prp.h"

#define MOST_ROOM (8u << 20) /* bytes for one command */
#define PRACT 8u /* in PRINFO */
#define CHECK_GUARD 4u
#define CHECK_APPLICATION 2u
#define CHECK_REFERENCE 1u
#define PROTECTION_SIZE 8 /* bytes, with a guard of 16 bits */

static uint32_t prinfo_of(const struct nvme_read_write *command)
{
    return (uint32_t)nvme_read_write_prinfo(command);
}

/* With type 1 the initial reference tag is the low bits of the first block's address, if it is checked. */
static bool has_good_reference(const struct nvme_read_write *command)
{
    return !(prinfo_of(command) & CHECK_REFERENCE) || command->cdw14 == (uint32_t)command->slba;
}

static void lay_out(struct pair *pair, const struct nvme_read_write *command)
{
    bool is_stripped = pair->of.is_protected && prinfo_of(command) & PRACT && pair->of.metadata_size == PROTECTION_SIZE;
    bool has_any = pair->metadata > 0 && !is_stripped;

    pair->is_interleaved = has_any && pair->of.is_extended;
    pair->is_apart = has_any && !pair->of.is_extended;
    pair->transferred = pair->data + (pair->is_interleaved ? pair->metadata : 0);
}

bool pair_of(struct pair *pair, const struct disk *disk, const struct nvme_read_write *command)
{
    const struct companion *of = &disk->companion;
    const struct block_map *map = of->map;
    uint64_t index = command->slba / MAP_BLOCKS, blocks = nvme_read_write_nlb(command);
    uint32_t first = (uint32_t)(command->slba % MAP_BLOCKS);

    if (index >= map->count || first + blocks > MAP_BLOCKS)
        return false;
    struct map_chunk *chunk = __atomic_load_n(&map->chunks[index], __ATOMIC_ACQUIRE);
    if (!chunk || (of->is_protected && !has_good_reference(command)))
        return false;
    if ((blocks << disk->block_shift) + blocks * of->metadata_size > MOST_ROOM)
        return false;
    uint64_t at = of->begin + index * (MAP_BYTES + (uint64_t)MAP_BLOCKS * of->metadata_size);
    *pair = (struct pair){.of = *of, .chunk = chunk, .first = first, .blocks = (uint32_t)blocks, .chunk_at = at};
    pair->block_size = 1u << disk->block_shift;
    pair->data = pair->blocks << disk->block_shift;
    pair->metadata = pair->blocks * of->metadata_size;
    pair->metadata_at = at + MAP_BYTES + (uint64_t)first * of->metadata_size;
    lay_out(pair, command);
    return true;
}

uint8_t *pair_room(struct lane *lane, const struct pair *pair)
{
    size_t size = (size_t)pair->data + pair->metadata + (pair->is_interleaved ? pair->transferred : 0);

    if (size > MOST_ROOM)
        return NULL;
    if (size > lane->room_size) {
        free(lane->room);
        lane->room = malloc(size);
        lane->room_size = lane->room ? size : 0;
    }
    return lane->room;
}

/* --- separate metadata in the host's memory ---------------------------------------------------------------------------- */

/* The next part of a range that is in one region; `size` is what is left of the range, and becomes the part's. */
static uint8_t *part_at(struct lane *lane, uint64_t iova, uint64_t *size, bool writable)
{
    return iova + (*size - 1) < iova ? NULL : guest_at(&lane->guest, iova, size, writable);
}

bool pair_has_place(struct lane *lane, const struct pair *pair, const struct nvme_read_write *command)
{
    bool is_read = command->opcode == NVME_NVM_OPCODE_READ;
    uint64_t iova = command->mptr, left = pair->is_apart ? pair->metadata : 0;

    if (left > 0 && command->flags == 0 && iova & 3)
        return false;
    for (uint64_t size = left; left > 0; iova += size, left -= size, size = left)
        if (!part_at(lane, iova, &size, is_read))
            return false;
    return true;
}

/* After pair_has_place, with the lock all the time. */
static void copy_apart(struct lane *lane, uint64_t iova, uint8_t *metadata, uint64_t left, bool to_host)
{
    for (uint64_t size = left; left > 0; iova += size, metadata += size, left -= size, size = left) {
        uint8_t *part = part_at(lane, iova, &size, to_host);
        if (!part)
            return;
        memcpy(to_host ? part : metadata, to_host ? metadata : part, size);
    }
}

/* --- protection information -------------------------------------------------------------------------------------------- */

static struct pi_format format_of(const struct pair *pair)
{
    return (struct pi_format){.data_size = pair->block_size,
                              .metadata_size = pair->of.metadata_size,
                              .guard = PI_CRC16,
                              .type = 1,
                              .is_first = pair->of.is_first};
}

static struct pi_blocks blocks_of(const struct pair *pair, const uint8_t *data, const uint8_t *metadata)
{
    return (struct pi_blocks){(uint8_t *)(uintptr_t)data, (uint8_t *)(uintptr_t)metadata, pair->block_size,
                              pair->of.metadata_size, pair->blocks};
}

static struct pi_tags tags_of(const struct nvme_read_write *command)
{
    return (struct pi_tags){.reference = command->cdw14,
                            .application = (uint16_t)nvme_read_write_lbat(command),
                            .application_mask = (uint16_t)nvme_read_write_lbatm(command)};
}

static bool is_good(const struct pair *pair, const struct nvme_read_write *command, const uint8_t *data,
                    const uint8_t *metadata)
{
    uint32_t prinfo = prinfo_of(command), failed = 0;
    uint32_t checks = (prinfo & CHECK_GUARD ? PI_CHECK_GUARD : 0) |
                      (prinfo & CHECK_APPLICATION ? PI_CHECK_APPLICATION : 0) |
                      (prinfo & CHECK_REFERENCE ? PI_CHECK_REFERENCE : 0);
    struct pi_format format = format_of(pair);
    struct pi_blocks blocks = blocks_of(pair, data, metadata);
    struct pi_tags tags = tags_of(command);

    return !pair->of.is_protected || !checks || pi_check(&format, &blocks, &tags, checks, &failed) == blocks.count;
}

bool pair_take(struct lane *lane, const struct pair *pair, const struct nvme_read_write *command)
{
    uint8_t *data = lane->room, *metadata = data + pair->data, *both = metadata + pair->metadata;
    uint32_t size = pair->block_size, more = pair->of.metadata_size;

    if (pair->is_interleaved) {
        transfer_gather(&lane->transfer, both); /* once: the host may change it at any moment */
        pi_copy(data, size, both, size + more, size, pair->blocks);
        pi_copy(metadata, more, both + size, size + more, more, pair->blocks);
    } else {
        transfer_gather(&lane->transfer, data);
    }
    if (pair->is_apart)
        copy_apart(lane, command->mptr, metadata, pair->metadata, false);
    if (!pair->of.is_protected || !(prinfo_of(command) & PRACT))
        return is_good(pair, command, data, metadata);
    struct pi_format format = format_of(pair);
    struct pi_blocks blocks = blocks_of(pair, data, metadata);
    struct pi_tags tags = tags_of(command);
    pi_generate(&format, &blocks, &tags);
    return true;
}

bool pair_give(struct lane *lane, const struct pair *pair, const struct nvme_read_write *command, const uint8_t *data,
               const uint8_t *metadata)
{
    uint8_t *both = lane->room + pair->data + pair->metadata;
    uint32_t size = pair->block_size, more = pair->of.metadata_size;

    if (!is_good(pair, command, data, metadata))
        return false;
    if (pair->is_interleaved) {
        pi_copy(both, size + more, data, size, size, pair->blocks);
        pi_copy(both + size, size + more, metadata, more, more, pair->blocks);
        data = both;
    }
    transfer_scatter(&lane->transfer, data);
    if (pair->is_apart)
        copy_apart(lane, command->mptr, (uint8_t *)(uintptr_t)metadata, pair->metadata, true);
    return true;
}

/* --- the steps --------------------------------------------------------------------------------------------------------- */

bool pair_mark_now(const struct pair *pair)
{
    struct map_chunk *chunk = pair->chunk;

    if (map_keeps(chunk, pair->first, pair->blocks, BLOCK_WRITTEN))
        return true;
    struct map_range range = map_begin(chunk, pair->first, pair->blocks, BLOCK_WRITTEN);
    struct iovec states = {chunk->states + range.begin, range.end - range.begin};
    int flags = pair->of.never_waits ? 0 : RWF_NOWAIT;
    bool is_in_file = pwritev2(pair->of.fd, &states, 1, (off_t)(pair->chunk_at + range.begin), flags) ==
                      (ssize_t)states.iov_len;
    map_end(chunk, is_in_file);
    return is_in_file;
}

/* Its next work is at the companion. */
static void step_to(struct op *op, enum pair_step step, uint8_t *bytes, uint32_t length, uint64_t offset)
{
    op->pair.step = step;
    op->file = op->pair.of.fd;
    op->bytes = bytes;
    op->length = length;
    op->extent.offset = offset;
    op->would_block = !op->pair.of.can_read_now;
    op->suits_lane = op->work == WORK_WRITE && op->pair.of.can_read_now;
}

void pair_only_mark(struct op *op)
{
    struct pair *pair = &op->pair;

    op->work = WORK_WRITE;
    pair->range = map_begin(pair->chunk, pair->first, pair->blocks, BLOCK_WRITTEN);
    step_to(op, STEP_MAP, pair->chunk->states + pair->range.begin, pair->range.end - pair->range.begin,
            pair->chunk_at + pair->range.begin);
}

bool pair_goes_on(struct op *op, long result)
{
    struct pair *pair = &op->pair;
    bool is_good = result == (long)op->length;

    if (pair->step == STEP_MAP) {
        map_end(pair->chunk, is_good);
        return false;
    }
    if (!is_good)
        return false;
    if (pair->step == STEP_DATA && pair->metadata > 0) {
        step_to(op, STEP_METADATA, op->buffer + pair->data, pair->metadata, pair->metadata_at);
        return true;
    }
    if (op->work == WORK_READ || map_keeps(pair->chunk, pair->first, pair->blocks, BLOCK_WRITTEN))
        return false;
    pair_only_mark(op);
    return true;
}
