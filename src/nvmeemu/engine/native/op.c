/* Commands that wait for a disk: their work, which the ring does, or the lane itself, and how they end. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "bounds.h"
#include "command.h"
#include "engine.h"
#include "handover.h"
#include "interface.h"
#include "journal.h"
#include "lane.h"
#include "load.h"
#include "news.h"
#include "nvme_spec.h"
#include "op.h"
#include "pair.h"
#include "paired.h"
#include "prp.h"
#include "queue.h"
#include "ranges.h"
#include "trace.h"
#include "uring.h"

#define ALIGNMENT 4096 /* of private buffers, for O_DIRECT */

static bool changes_media(const struct op *op)
{
    return op->command.opcode != NVME_NVM_OPCODE_READ;
}

enum verdict op_new(struct op **new_op, struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                    uint32_t nsid, uint64_t size)
{
    struct engine *engine = lane->engine;
    const struct disk *disk = &engine->disks[nsid];
    struct load *load = engine->loads[nsid];
    void *buffer = NULL;

    if (!lane->ring)
        return PUNT;
    if (!load_take(lane, load, (uint32_t)size)) {
        lane->waits_for = nsid;
        return WAIT;
    }
    /* Main must have room for what fails: of disks that are gone, there may be more than have a namespace. */
    bool has_room = atomic_load(&engine->ops) < MAX_REPORTS - MAX_PUNTS - engine->lane_count;
    struct op *op = has_room ? malloc(sizeof(*op)) : NULL;
    if (!op || (size > 0 && posix_memalign(&buffer, ALIGNMENT, size) != 0)) {
        load_give(lane, load, (uint32_t)size);
        free(op);
        return PUNT;
    }
    *op = (struct op){.sq = sq, .command = *command, .nsid = nsid, .fd = disk->fd, .failed_sync = disk->failed_sync};
    range_move(&lane->range, &op->range);
    op->load = load;
    op->would_block = !disk->begins_now;
    op->size = op->length = (uint32_t)size;
    op->buffer = op->bytes = buffer;
    op->file = op->fd;
    op->pair = lane->pair;
    lane->ops++;
    atomic_fetch_add(&engine->ops, 1);
    atomic_fetch_add(&sq->under_way, 1);
    atomic_fetch_add(&lane->writing, changes_media(op));
    *new_op = op;
    return PENDING;
}

void op_free(struct lane *lane, struct op *op)
{
    struct engine *engine = lane->engine;
    struct sq *sq = op->sq;

    journal_release(op->slot);
    range_leave(&op->range);
    lane->ops--;
    if (op->load) {
        load_give(lane, op->load, op->size);
        atomic_fetch_sub(&engine->ops, 1);
        atomic_fetch_sub(&lane->writing, changes_media(op));
    }
    if (atomic_fetch_sub(&sq->under_way, 1) == 1 && sq->stopped)
        queue_tell(&sq->queue, NOTICE_IDLE);
    if (lane->ops == 0 || (changes_media(op) && lane->writing == 0)) {
        if (atomic_exchange(&engine->idle_awaited, false)) {
            atomic_store(&engine->became_idle, true);
            engine_notify(engine);
        }
    }
    free(op->buffer);
    free(op);
}

void op_list_add(struct op_list *list, struct op *op)
{
    op->next = NULL;
    *list->end = op;
    list->end = &op->next;
}

struct op *op_list_take(struct op_list *list)
{
    struct op *op = list->first;

    if (op && !(list->first = op->next))
        list->end = &list->first;
    return op;
}

static bool op_begin(struct lane *lane, struct op *op)
{
    if (op->suits_lane)
        handover_add(lane, op);
    return op->suits_lane || ring_start(lane->ring, op);
}

enum verdict op_start(struct lane *lane, struct op *op)
{
    if (op_begin(lane, op))
        return PENDING;
    op_free(lane, op);
    return PUNT;
}

bool op_keep(struct op *op, const struct journal *journal)
{
    uint32_t metadata = op->pair.chunk ? op->pair.metadata : 0, data = op->size - metadata;

    if (!journal_needs(journal, op->extent.offset, data, metadata))
        return true;
    op->slot = journal_keep(journal, op->extent.offset, op->buffer, data, op->buffer + data, metadata);
    return op->slot != NULL;
}

/* The memory of a read may have moved, or be gone, since it was begun. */
static bool deliver(struct lane *lane, const struct op *op)
{
    const struct nvme_read_write *command = &op->command;

    if (op->pair.chunk && op->pair.metadata > 0)
        return paired_deliver(lane, op);
    if (!command_walk(lane, command, op->size, true))
        return false;
    transfer_scatter(&lane->transfer, op->buffer);
    if (lane->trace)
        trace_data(lane, op->sq, command, true);
    return true;
}

static bool has_failed(const struct failed_sync *failed_sync)
{
    return __atomic_load_n(&failed_sync->error, __ATOMIC_SEQ_CST) != 0;
}

bool can_sync(const struct disk *disk)
{
    return disk->fd >= 0 && !has_failed(disk->failed_sync);
}

static void doubt(const struct op *op, int32_t change)
{
    __atomic_fetch_add(&op->failed_sync->doubts, change, __ATOMIC_SEQ_CST);
}

/* Python tells the guest, with the command that it does again, and remembers it. */
static void note_failed_sync(const struct op *op, int error)
{
    int32_t none = 0;

    __atomic_compare_exchange_n(&op->failed_sync->error, &none, -error, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

/* Its last work was a sync, or had one. */
static bool has_synced(const struct op *op)
{
    return op->work == WORK_SYNC || (op->work == WORK_WRITE && (op->flags & RWF_DSYNC));
}

/* Otherwise the write cache was switched off since it was begun, and Python does it again, durably. (A namespace that
   was taken away has ended as it was.) A sync that succeeds after another one has failed, perhaps, means nothing: that
   one may have been told of what this one was to make durable. */
static bool is_good_as_it_is(const struct lane *lane, const struct op *op)
{
    const struct disk *disk = &lane->engine->disks[op->nsid];

    if (has_synced(op))
        return __atomic_load_n(&op->failed_sync->doubts, __ATOMIC_SEQ_CST) == 0 && !has_failed(op->failed_sync);
    return op->is_durable || disk->fd != op->fd || !has_to_last(disk, &op->command);
}

/* What it was asked for has not happened, but for these reasons: they say nothing of the disk. */
static bool is_error(long result)
{
    return result < 0 && result != -EAGAIN && result != -EINTR && result != -ECANCELED;
}

/* A sync that failed is noted at once. Until other syncs see it, their success could be believed. */
static void op_note_sync_error(struct op *op, long result)
{
    if (!is_error(result) || !has_synced(op) || op->lost)
        return;
    if (op->work == WORK_SYNC) {
        note_failed_sync(op, (int)-result);
        return;
    }
    op->lost = (int)-result; /* unless the write itself cannot be done, which the same without a sync tells */
    doubt(op, 1);
}

/* After `result`, there is more work for the disk. */
static bool op_goes_on(struct op *op, long result)
{
    if (op->pair.chunk)
        return pair_goes_on(op, result);
    if (op->lost && has_synced(op)) {
        op->flags = 0;
        return true;
    }
    if (result != 0 || op->work != WORK_ALLOCATE)
        return false;
    if (op->more_count > 0) {
        op->extent = *op->more++;
        op->more_count--;
        return true;
    }
    op->work = op->syncs_last ? WORK_SYNC : op->work;
    return op->syncs_last;
}

/* It has done all of it. */
static bool is_done(const struct op *op, long result)
{
    return op->lost == 0 && result == (op->work == WORK_READ || op->work == WORK_WRITE ? (long)op->length : 0);
}

/* What failed with a sync has been done again without: unless that has failed alike, it was the sync. */
static void op_judge(const struct op *op, long result)
{
    if (result != -(long)op->lost)
        note_failed_sync(op, op->lost);
    doubt(op, -1);
}

void op_finish(struct lane *lane, struct op *op, long result)
{
    struct sq *sq = op->sq;

    op_note_sync_error(op, result);
    if (op_goes_on(op, result)) {
        if (op_begin(lane, op))
            return;
        result = -EAGAIN;
        if (op->pair.chunk)
            pair_goes_on(op, result);
    }
    if (op->lost)
        op_judge(op, result);
    if (!sq->dropped) {
        if (is_done(op, result) && (changes_media(op) ? is_good_as_it_is(lane, op) : deliver(lane, op))) {
            count_command(lane, op->command.opcode, op->pair.chunk ? op->pair.data : op->size);
            sq_complete(sq, op->command.cid);
        } else {
            engine_punt(lane->engine, sq, &op->command, true, false);
        }
    }
    op_free(lane, op);
}

static long op_call(const struct op *op)
{
    struct iovec piece = {op->bytes, op->length};
    const struct extent *at = &op->extent;
    long result = -1;

    if (op->work == WORK_WRITE && op->flags == 0)
        result = pwrite(op->file, op->bytes, op->length, (off_t)at->offset);
    else if (op->work == WORK_WRITE)
        result = pwritev2(op->file, &piece, 1, (off_t)at->offset, op->flags);
    else if (op->work == WORK_ALLOCATE)
        result = fallocate(op->file, op->flags, (off_t)at->offset, (off_t)at->length);
    else if (op->work == WORK_SYNC)
        result = fdatasync(op->file);
    return result < 0 ? -errno : result;
}

void op_perform(struct op *op)
{
    op->result = op_call(op);
    op_note_sync_error(op, op->result);
}
