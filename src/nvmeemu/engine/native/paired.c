/* Reads and writes of disks with a companion. A block is read only if it was written, and it counts as written once its
   data and its metadata are there. */

#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "block_map.h"
#include "command.h"
#include "engine.h"
#include "interface.h"
#include "journal.h"
#include "lane.h"
#include "nvme_spec.h"
#include "op.h"
#include "pair.h"
#include "paired.h"
#include "queue.h"
#include "trace.h"

#define PROTECTION CDW_BITS(READ_WRITE, PRINFO, 12)
#define ORDINARY (CDW_BITS(READ_WRITE, NLB, 12) | READ_WRITE_FUA | READ_WRITE_LR)

static bool is_there(const struct pair *pair)
{
    return map_has(pair->chunk, pair->first, pair->blocks, BLOCK_WRITTEN);
}

/* --- blocks without metadata ------------------------------------------------------------------------------------------- */

static enum verdict data_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                             const struct disk *disk)
{
    uint64_t offset = command->slba << disk->block_shift;

    if (command->opcode == NVME_NVM_OPCODE_READ)
        return is_there(&lane->pair) ? disk_read(lane, sq, command, disk, offset, lane->pair.data) : PUNT;
    enum verdict verdict = disk_write(lane, sq, command, disk, offset, lane->pair.data);
    if (verdict != DONE || pair_mark_now(&lane->pair))
        return verdict;
    struct op *op;
    verdict = op_new(&op, lane, sq, command, command->nsid, 0);
    if (verdict != PENDING)
        return verdict;
    pair_only_mark(op);
    return op_start(lane, op);
}

/* --- blocks with metadata ---------------------------------------------------------------------------------------------- */

static bool read_at_once(int fd, bool never_waits, uint8_t *data, uint32_t size, uint64_t offset)
{
    struct iovec piece = {data, size};

    return preadv2(fd, &piece, 1, (off_t)offset, never_waits ? 0 : RWF_NOWAIT) == (ssize_t)size;
}

/* An operation with room for data and metadata, which begins with the data. */
static enum verdict begin(struct op **new_op, struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                          enum work work, uint64_t offset)
{
    const struct pair *pair = &lane->pair;
    uint64_t size = (uint64_t)pair->data + pair->metadata;
    enum verdict verdict = op_new(new_op, lane, sq, command, command->nsid, size);

    if (verdict != PENDING)
        return verdict;
    (*new_op)->work = work;
    (*new_op)->length = pair->data;
    (*new_op)->extent.offset = offset;
    return PENDING;
}

static enum verdict blocks_read(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                                const struct disk *disk)
{
    const struct pair *pair = &lane->pair;
    uint64_t offset = command->slba << disk->block_shift;
    uint8_t *metadata = lane->room + pair->data;
    const uint8_t *data = disk->memory ? disk->memory + offset : lane->room;

    if (!is_there(pair))
        return PUNT;
    bool is_read = disk->memory || (disk->can_read_now &&
                                    read_at_once(disk->fd, disk->never_waits, lane->room, pair->data, offset));
    if (is_read && pair->of.can_read_now &&
        read_at_once(pair->of.fd, pair->of.never_waits, metadata, pair->metadata, pair->metadata_at))
        return pair_give(lane, pair, command, data, metadata) ? DONE : PUNT;
    if (disk->memory)
        return PUNT;
    struct op *op;
    enum verdict verdict = begin(&op, lane, sq, command, WORK_READ, offset);
    return verdict == PENDING ? op_start(lane, op) : verdict;
}

static bool put_at_once(struct lane *lane, const struct nvme_read_write *command, int fd, bool never_waits,
                        uint8_t *data, uint32_t size, uint64_t offset)
{
    struct iovec piece = {data, size};
    int flags = never_waits ? 0 : RWF_NOWAIT;

    if (pwritev2(fd, &piece, 1, (off_t)offset, flags) == (ssize_t)size)
        return true;
    if (errno == EOPNOTSUPP)
        atomic_store_explicit(&lane->engine->writes_wait[command->nsid], true, memory_order_relaxed);
    return false;
}

static bool write_blocks_at_once(struct lane *lane, const struct nvme_read_write *command, const struct disk *disk,
                                 uint64_t offset)
{
    const struct pair *pair = &lane->pair;
    uint8_t *data = lane->room, *metadata = data + pair->data;

    if (!pair->of.can_read_now ||
        atomic_load_explicit(&lane->engine->writes_wait[command->nsid], memory_order_relaxed))
        return false;
    if (disk->memory)
        memcpy(disk->memory + offset, data, pair->data);
    else if (!disk->can_read_now || !put_at_once(lane, command, disk->fd, disk->never_waits, data, pair->data, offset))
        return false;
    return put_at_once(lane, command, pair->of.fd, pair->of.never_waits, metadata, pair->metadata,
                       pair->metadata_at) &&
           pair_mark_now(pair);
}

static enum verdict blocks_write(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                                 const struct disk *disk)
{
    const struct pair *pair = &lane->pair;
    uint64_t offset = command->slba << disk->block_shift;

    if (!pair_take(lane, pair, command))
        return PUNT;
    if (!journal_needs(disk->journal, offset, pair->data, pair->metadata) &&
        write_blocks_at_once(lane, command, disk, offset))
        return DONE;
    if (disk->memory)
        return PUNT;
    struct op *op;
    enum verdict verdict = begin(&op, lane, sq, command, WORK_WRITE, offset);
    if (verdict != PENDING)
        return verdict;
    memcpy(op->buffer, lane->room, op->size);
    op->suits_lane = disk->can_read_now;
    if (op_keep(op, disk->journal))
        return op_start(lane, op);
    op_free(lane, op);
    return PUNT;
}

static enum verdict with_metadata(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                                  const struct disk *disk)
{
    if (lane->trace || !pair_room(lane, &lane->pair)) /* Python records where metadata lie */
        return PUNT;
    if (!pair_has_place(lane, &lane->pair, command))
        return PUNT;
    return command->opcode == NVME_NVM_OPCODE_READ ? blocks_read(lane, sq, command, disk)
                                                   : blocks_write(lane, sq, command, disk);
}

/* --- all of them ------------------------------------------------------------------------------------------------------- */

/* With lane->pair. */
static enum verdict pair_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                             const struct disk *disk)
{
    const struct pair *pair = &lane->pair;
    bool is_write = command->opcode == NVME_NVM_OPCODE_WRITE;

    if (pair->transferred > lane->engine->transfer || !command_walk(lane, command, pair->transferred, !is_write))
        return PUNT;
    enum verdict verdict =
        pair->metadata > 0 ? with_metadata(lane, sq, command, disk) : data_run(lane, sq, command, disk);
    if (verdict == DONE)
        count_command(lane, command->opcode, pair->data);
    if (lane->trace && (verdict == DONE || (verdict == PENDING && is_write)))
        trace_data(lane, sq, command, !is_write);
    return verdict;
}

enum verdict paired_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                        const struct disk *disk)
{
    uint32_t ordinary = ORDINARY | (disk->companion.is_protected ? PROTECTION : 0);

    if (command->cdw12 & ~ordinary)
        return PUNT;
    if (command->opcode == NVME_NVM_OPCODE_WRITE && has_to_last(disk, command))
        return PUNT; /* Python syncs both files */
    enum verdict verdict = PUNT;
    if (pair_of(&lane->pair, disk, command))
        verdict = pair_run(lane, sq, command, disk);
    lane->pair.chunk = NULL; /* what is run next may be of another disk */
    return verdict;
}

bool paired_deliver(struct lane *lane, const struct op *op)
{
    const struct pair *pair = &op->pair;
    const struct nvme_read_write *command = &op->command;

    return pair_room(lane, pair) && command_walk(lane, command, pair->transferred, true) &&
           pair_has_place(lane, pair, command) &&
           pair_give(lane, pair, command, op->buffer, op->buffer + pair->data);
}
