/* Reads and writes. What is not ordinary, does not map or fails goes to Python, which says why. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "bounds.h"
#include "command.h"
#include "engine.h"
#include "interface.h"
#include "journal.h"
#include "lane.h"
#include "load.h"
#include "media.h"
#include "news.h"
#include "nvme_spec.h"
#include "op.h"
#include "paired.h"
#include "prp.h"
#include "queue.h"
#include "ranges.h"
#include "sgl.h"
#include "trace.h"

/* PSDT 01b in the flags. */
#define SGL (NVME_PSDT_SGL << (NVME_READ_WRITE_PSDT_BIT - 8))
/* The bits of dword 12 that an ordinary command may have. */
#define ORDINARY (CDW_BITS(READ_WRITE, NLB, 12) | READ_WRITE_FUA | READ_WRITE_LR)

/* Written with the lane's lock only, read without: two plain moves do. */
static void add_to(_Atomic uint64_t *counter, uint64_t number)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + number, memory_order_relaxed);
}

void count_command(struct lane *lane, uint8_t opcode, uint64_t length)
{
    struct counters *counters = &lane->counters;
    bool is_write = opcode == NVME_NVM_OPCODE_WRITE;

    if (!is_write && opcode != NVME_NVM_OPCODE_READ) {
        add_to(&counters->others, 1);
        return;
    }
    add_to(is_write ? &counters->writes : &counters->reads, 1);
    add_to(is_write ? &counters->bytes_written : &counters->bytes_read, length);
}

bool has_to_last(const struct disk *disk, const struct nvme_read_write *command)
{
    bool fua = command->opcode != NVME_NVM_OPCODE_DATASET_MANAGEMENT && (command->cdw12 & READ_WRITE_FUA);

    return disk->is_volatile && (disk->writes_through || fua);
}

/* --- disks --------------------------------------------------------------------------------------------------------- */

enum verdict disk_read(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                       const struct disk *disk, uint64_t offset, uint64_t length)
{
    struct transfer *transfer = &lane->transfer;

    if (disk->memory) {
        transfer_scatter(transfer, disk->memory + offset);
        return DONE;
    }
    if (disk->can_read_now) {
        int flags = disk->never_waits ? 0 : RWF_NOWAIT;
        if (preadv2(disk->fd, transfer->pieces, (int)transfer->count, (off_t)offset, flags) == (ssize_t)length)
            return DONE;
    }
    struct op *op;
    enum verdict verdict = op_new(&op, lane, sq, command, command->nsid, length);
    if (verdict != PENDING)
        return verdict;
    op->work = WORK_READ;
    op->extent.offset = offset;
    return op_start(lane, op);
}

/* Without waiting. Sets `waits` where writes cannot do that. If only a part was written, that is not undone: the same
   data is written once more. */
static bool write_at_once(const struct disk *disk, const struct transfer *transfer, _Atomic bool *waits,
                          uint64_t offset, uint64_t length)
{
    int flags = disk->never_waits ? 0 : RWF_NOWAIT;

    if (atomic_load_explicit(waits, memory_order_relaxed))
        return false;
    if (pwritev2(disk->fd, transfer->pieces, (int)transfer->count, (off_t)offset, flags) == (ssize_t)length)
        return true;
    if (errno == EOPNOTSUPP) /* ext4, for one, has no buffered writes that do not wait */
        atomic_store_explicit(waits, true, memory_order_relaxed);
    return false;
}

/* From private memory, on whatever may wait for the disk. */
static enum verdict write_waiting(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                                  const struct disk *disk, uint64_t offset, uint64_t length)
{
    bool lasts = has_to_last(disk, command);
    bool waits = atomic_load_explicit(&lane->engine->writes_wait[command->nsid], memory_order_relaxed);
    struct op *op;
    enum verdict verdict = op_new(&op, lane, sq, command, command->nsid, length);

    if (verdict != PENDING)
        return verdict;
    transfer_gather(&lane->transfer, op->buffer);
    op->work = WORK_WRITE;
    op->extent.offset = offset;
    op->flags = lasts ? RWF_DSYNC : 0;
    op->is_durable = op->waits = lasts;
    op->would_block |= lasts && disk->can_read_now; /* the ring would sync at once, in the lane */
    op->suits_lane = disk->can_read_now && (lasts || waits || journal_needs(disk->journal, offset, length, 0));
    if (op_keep(op, disk->journal))
        return op_start(lane, op);
    op_free(lane, op);
    return PUNT;
}

enum verdict disk_write(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                        const struct disk *disk, uint64_t offset, uint64_t length)
{
    struct transfer *transfer = &lane->transfer;

    bool lasts = has_to_last(disk, command);
    if (lasts && !can_sync(disk))
        return PUNT;
    if (disk->memory) {
        transfer_gather(transfer, disk->memory + offset);
        return DONE;
    }
    bool may_be_cut = journal_needs(disk->journal, offset, length, 0);
    _Atomic bool *waits = &lane->engine->writes_wait[command->nsid];
    if (disk->can_read_now && !lasts && !may_be_cut && write_at_once(disk, transfer, waits, offset, length))
        return DONE;
    return write_waiting(lane, sq, command, disk, offset, length);
}

bool disk_has(const struct disk *disk, uint64_t slba, uint64_t blocks)
{
    return blocks <= disk->blocks && slba <= disk->blocks - blocks;
}

/* The disk is there, has these blocks, and needs no other work for the command. */
static bool disk_can_transfer(const struct disk *disk, const struct nvme_read_write *command, uint64_t blocks,
                              bool is_write)
{
    if ((!disk->memory && disk->fd < 0) || (is_write && !disk->writable))
        return false;
    if (!is_write && (command->cdw12 & READ_WRITE_FUA) && disk->is_volatile)
        return false; /* what is read has to be made durable before */
    return disk_has(disk, command->slba, blocks);
}

bool command_walk(struct lane *lane, const struct nvme_read_write *command, uint64_t length, bool writable)
{
    if (command->flags != 0)
        return sgl_walk(&lane->transfer, &lane->guest, command, length, writable);
    return prp_walk(&lane->transfer, &lane->guest, command->prp1, command->prp2, length, lane->engine->page_size,
                    writable);
}

/* Of a disk without a companion. */
static enum verdict plain_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                              const struct disk *disk, uint64_t length)
{
    uint64_t offset = command->slba << disk->block_shift;
    bool is_write = command->opcode == NVME_NVM_OPCODE_WRITE;

    if ((command->cdw12 & ~ORDINARY) != 0 || length > lane->engine->transfer)
        return PUNT;
    if (!command_walk(lane, command, length, !is_write))
        return PUNT;
    enum verdict verdict = is_write ? disk_write(lane, sq, command, disk, offset, length)
                                    : disk_read(lane, sq, command, disk, offset, length);
    if (verdict == DONE)
        count_command(lane, command->opcode, length);
    if (lane->trace && (verdict == DONE || (verdict == PENDING && is_write)))
        trace_data(lane, sq, command, !is_write);
    return verdict;
}

static enum verdict transfer_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command)
{
    uint64_t blocks = nvme_read_write_nlb(command);
    bool is_write = command->opcode == NVME_NVM_OPCODE_WRITE;

    if (command->nsid > MAX_NSID)
        return PUNT;
    const struct disk *disk = &lane->engine->disks[command->nsid];
    if (!disk_can_transfer(disk, command, blocks, is_write))
        return PUNT;
    uint64_t offset = command->slba << disk->block_shift, length = blocks << disk->block_shift;
    if (!range_try(disk->ranges, &lane->range, offset, length, is_write))
        return PUNT; /* Python waits for the other command */
    enum verdict verdict =
        disk->companion.map ? paired_run(lane, sq, command, disk) : plain_run(lane, sq, command, disk, length);
    range_leave(&lane->range); /* unless it has gone over to an op */
    return verdict;
}

enum verdict command_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command)
{
    enum verdict verdict;

    if (command->flags != 0 && !(command->flags == SGL && lane->engine->has_sgls))
        return PUNT;
    switch (command->opcode) {
    case NVME_NVM_OPCODE_READ:
    case NVME_NVM_OPCODE_WRITE:
        return transfer_run(lane, sq, command);
    case NVME_NVM_OPCODE_FLUSH:
        verdict = flush_run(lane, sq, command);
        break;
    case NVME_NVM_OPCODE_WRITE_ZEROES:
        verdict = zeroes_run(lane, sq, command);
        break;
    case NVME_NVM_OPCODE_DATASET_MANAGEMENT:
        verdict = dataset_run(lane, sq, command);
        break;
    default:
        return PUNT;
    }
    if (verdict == DONE)
        count_command(lane, command->opcode, 0);
    return verdict;
}

bool command_wait(struct lane *lane, struct sq *sq, const struct nvme_read_write *command)
{
    struct op *op = malloc(sizeof(*op));

    if (!op)
        return false;
    *op = (struct op){.sq = sq, .command = *command};
    lane->ops++;
    atomic_fetch_add(&sq->under_way, 1);
    load_wait(lane, lane->waits_for, op);
    return true;
}

enum verdict op_resume(struct lane *lane, const struct op *op)
{
    enum verdict verdict = command_run(lane, op->sq, &op->command);

    if (verdict == DONE)
        sq_complete(op->sq, op->command.cid);
    if (verdict == PUNT && engine_punt(lane->engine, op->sq, &op->command, false, false))
        verdict = PENDING;
    return verdict;
}
