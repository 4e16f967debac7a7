/* Commands that transfer no blocks: Flush, Write Zeroes, Dataset Management. Base 1.4, 6.7, 6.8 and 6.16. The rules are
   those of io.py and of the backends, which say what is wrong. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bounds.h"
#include "command.h"
#include "engine.h"
#include "interface.h"
#include "lane.h"
#include "media.h"
#include "nvme_spec.h"
#include "op.h"
#include "prp.h"
#include "queue.h"
#include "ranges.h"
#include "trace.h"

#define MOST_ZEROED (2u << 20) /* bytes of memory in one command: more takes long, and the lane has its lock */
#define LEAST_GIVEN_BACK (64u << 10)
#define HOLE (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define ZEROES (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)
#define DEAC CDW_BITS(READ_WRITE, DEAC, 12)
#define ORDINARY (CDW_BITS(READ_WRITE, NLB, 12) | DEAC | READ_WRITE_FUA | READ_WRITE_LR)
#define MOST_RANGES (1u << NVME_DATASET_MANAGEMENT_NR_WIDTH)

/* Its disk, or NULL: it has none that the engine knows. */
static const struct disk *disk_of(const struct lane *lane, uint32_t nsid)
{
    const struct disk *disk = nsid <= MAX_NSID ? &lane->engine->disks[nsid] : NULL;

    return disk && disk->blocks > 0 ? disk : NULL;
}

/* The same, but for one whose companion would have to follow: Python does that. */
static const struct disk *disk_alone(const struct lane *lane, uint32_t nsid)
{
    const struct disk *disk = disk_of(lane, nsid);

    return disk && !disk->companion.map ? disk : NULL;
}

enum verdict flush_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command)
{
    uint32_t nsid = command->nsid == NVME_BROADCAST ? lane->engine->flush_all : command->nsid;

    if (command->nsid == NVME_BROADCAST && nsid == 0)
        return DONE;
    const struct disk *disk = disk_of(lane, nsid);
    if (!disk)
        return PUNT;
    if (!disk->is_volatile)
        return DONE;
    if (disk->companion.map || !can_sync(disk)) /* Python syncs both files */
        return PUNT;
    struct op *op;
    enum verdict verdict = op_new(&op, lane, sq, command, nsid, 0);
    if (verdict != PENDING)
        return verdict;
    op->work = WORK_SYNC;
    op->waits = true;
    op->suits_lane = disk->begins_now;
    return op_start(lane, op);
}

/* Whole pages are given back to the system, which makes them zero; the edges are overwritten. So are a few pages: that is
   quicker, and so is writing them again. */
static void zero_range(uint8_t *start, uint64_t length)
{
    uint8_t *end = start + length;
    uint8_t *first = (uint8_t *)(((uintptr_t)start + NVME_PAGE_MIN - 1) & ~(uintptr_t)(NVME_PAGE_MIN - 1));
    uint8_t *last = (uint8_t *)((uintptr_t)end & ~(uintptr_t)(NVME_PAGE_MIN - 1));

    if (length < LEAST_GIVEN_BACK || first >= last || madvise(first, (size_t)(last - first), MADV_DONTNEED) != 0) {
        memset(start, 0, length);
        return;
    }
    memset(start, 0, (size_t)(first - start));
    memset(last, 0, (size_t)(end - last));
}

/* Of a disk that is memory; all of it or, if that takes long, nothing. */
static enum verdict zero_memory(const struct disk *disk, const struct extent *extents, uint32_t count)
{
    uint64_t length = 0;

    for (uint32_t i = 0; i < count; i++)
        length += extents[i].length;
    if (length > MOST_ZEROED)
        return PUNT;
    for (uint32_t i = 0; i < count; i++)
        zero_range(disk->memory + extents[i].offset, extents[i].length);
    return DONE;
}

static enum verdict allocate(struct lane *lane, struct op *op, const struct disk *disk, int mode, struct extent extent,
                             bool lasts)
{
    op->work = WORK_ALLOCATE;
    op->flags = mode;
    op->extent = extent;
    op->is_durable = op->syncs_last = lasts;
    op->waits = true;
    op->suits_lane = disk->begins_now;
    return op_start(lane, op);
}

static enum verdict zero_file(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                              const struct disk *disk, struct extent extent, bool lasts)
{
    struct op *op;
    enum verdict verdict = op_new(&op, lane, sq, command, command->nsid, 0);

    if (verdict != PENDING)
        return verdict;
    return allocate(lane, op, disk, command->cdw12 & DEAC ? HOLE : ZEROES, extent, lasts);
}

enum verdict zeroes_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command)
{
    const struct disk *disk = disk_alone(lane, command->nsid);
    uint64_t blocks = nvme_read_write_nlb(command);

    if ((command->cdw12 & ~ORDINARY) != 0 || !disk || !disk->writable || !disk_has(disk, command->slba, blocks))
        return PUNT;
    struct extent extent = {command->slba << disk->block_shift, blocks << disk->block_shift};
    bool lasts = has_to_last(disk, command);
    if (lasts && !can_sync(disk))
        return PUNT;
    if (!disk->memory && disk->fd < 0)
        return PUNT;
    if (!range_try(disk->ranges, &lane->range, extent.offset, extent.length, true))
        return PUNT;
    enum verdict verdict;
    if (disk->memory)
        verdict = zero_memory(disk, &extent, 1);
    else
        verdict = zero_file(lane, sq, command, disk, extent, lasts);
    range_leave(&lane->range);
    return verdict;
}

/* The ranges as they are in bytes, those of no length left out. False: one is not on the disk. */
static bool take_extents(struct extent *extents, uint32_t *count, const struct disk *disk, const uint8_t *data,
                         uint64_t ranges)
{
    *count = 0;
    for (uint64_t i = 0; i < ranges; i++) {
        struct nvme_dsm_range range;
        memcpy(&range, data + i * sizeof(range), sizeof(range));
        if (!disk_has(disk, range.slba, range.length))
            return false;
        if (range.length > 0)
            extents[(*count)++] = (struct extent){range.slba << disk->block_shift,
                                                  (uint64_t)range.length << disk->block_shift};
    }
    return true;
}

static enum verdict deallocate(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                               const struct disk *disk, const struct extent *extents, uint32_t count)
{
    bool lasts = has_to_last(disk, command);

    if (lasts && !can_sync(disk))
        return PUNT;
    if (disk->memory)
        return zero_memory(disk, extents, count);
    if (count == 0)
        return DONE;
    struct op *op;
    enum verdict verdict = op_new(&op, lane, sq, command, command->nsid, count * sizeof(*extents));
    if (verdict != PENDING)
        return verdict;
    memcpy(op->buffer, extents, count * sizeof(*extents));
    op->more = (const struct extent *)(const void *)op->buffer + 1;
    op->more_count = count - 1;
    return allocate(lane, op, disk, HOLE, extents[0], lasts);
}

enum verdict dataset_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command)
{
    const struct disk *disk = disk_alone(lane, command->nsid);
    struct nvme_dataset_management dataset;
    uint8_t data[MOST_RANGES * sizeof(struct nvme_dsm_range)];
    struct extent extents[MOST_RANGES];
    uint32_t count;

    memcpy(&dataset, command, sizeof(dataset));
    uint64_t ranges = nvme_dataset_management_nr(&dataset);
    if (!disk || (!disk->memory && disk->fd < 0))
        return PUNT;
    if (!command_walk(lane, command, ranges * sizeof(struct nvme_dsm_range), false))
        return PUNT;
    transfer_gather(&lane->transfer, data); /* once: the host may change it at any moment */
    if (!take_extents(extents, &count, disk, data, ranges))
        return PUNT;
    bool has_to_deallocate = dataset.cdw11 & CDW_BITS(DATASET_MANAGEMENT, AD, 11);
    if (has_to_deallocate && !disk->writable)
        return PUNT;
    enum verdict verdict = has_to_deallocate ? deallocate(lane, sq, command, disk, extents, count) : DONE;
    if (lane->trace && (verdict == DONE || verdict == PENDING))
        trace_data(lane, sq, command, false);
    return verdict;
}
