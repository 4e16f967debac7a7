/* Reads and writes. What is not ordinary, does not map or fails goes to Python, which says why. */

#define _GNU_SOURCE
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "engine.h"

#define ALIGNMENT 4096 /* of private buffers, for O_DIRECT */

/* The bits of dword 12 that an ordinary command may have: its length, and Limited Retry, which changes nothing. */
#define CDW12_BITS(field) ((1u << NVME_READ_WRITE_##field##_WIDTH) - 1) << (NVME_READ_WRITE_##field##_BIT - 384)
#define ORDINARY (CDW12_BITS(NLB) | CDW12_BITS(LR))

/* --- commands that wait for a disk --------------------------------------------------------------------------------- */

bool disk_is_busy(const struct lane *lane, uint32_t nsid)
{
    return lane->at_disk[nsid].ops >= MAX_OPS || lane->at_disk[nsid].bytes >= MAX_OP_BYTES;
}

/* PENDING: here it is. */
static enum verdict op_new(struct op **new_op, struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                           const struct disk *disk, bool is_write, uint64_t offset, uint64_t length)
{
    void *buffer;

    if (disk_is_busy(lane, command->nsid)) {
        sq->waits_for = command->nsid;
        return WAIT;
    }
    struct op *op = lane->ring ? malloc(sizeof(*op)) : NULL;
    if (!op || posix_memalign(&buffer, ALIGNMENT, length) != 0) {
        free(op);
        return PUNT;
    }
    bool would_block = !disk->begins_now;
    *op = (struct op){sq, *command, is_write, disk->fd, would_block, offset, (uint32_t)length, buffer, 0, NULL};
    lane->ops++;
    lane->at_disk[command->nsid].ops++;
    lane->at_disk[command->nsid].bytes += op->length;
    atomic_fetch_add(&sq->under_way, 1);
    atomic_fetch_add(&lane->writing, is_write);
    *new_op = op;
    return PENDING;
}

static void op_free(struct lane *lane, struct op *op)
{
    struct engine *engine = lane->engine;
    struct sq *sq = op->sq;

    lane->ops--;
    lane->at_disk[op->command.nsid].ops--;
    lane->at_disk[op->command.nsid].bytes -= op->length;
    atomic_fetch_sub(&lane->writing, op->is_write);
    if (atomic_fetch_sub(&sq->under_way, 1) == 1 && sq->stopped)
        queue_tell(&sq->queue, NOTICE_IDLE);
    if (lane->ops == 0 || (op->is_write && lane->writing == 0)) {
        if (atomic_exchange(&engine->anxious, false)) {
            atomic_store(&engine->settled, true);
            engine_notify(engine);
        }
    }
    free(op->buffer);
    free(op);
}

/* Written with the lane's lock only, read without: two plain moves do. */
static void add_to(_Atomic uint64_t *counter, uint64_t number)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + number, memory_order_relaxed);
}

static enum verdict op_start(struct lane *lane, struct op *op)
{
    if (ring_start(lane->ring, op))
        return PENDING;
    op_free(lane, op);
    return PUNT;
}

static void list_add(struct op_list *list, struct op *op)
{
    op->next = NULL;
    *list->end = op;
    list->end = &op->next;
}

static struct op *list_take(struct op_list *list)
{
    struct op *op = list->first;

    if (op && !(list->first = op->next))
        list->end = &list->first;
    return op;
}

static void count(struct lane *lane, bool is_write, uint64_t length)
{
    struct counters *counters = &lane->counters;

    add_to(is_write ? &counters->writes : &counters->reads, 1);
    add_to(is_write ? &counters->bytes_written : &counters->bytes_read, length);
}

/* The memory of a read may have moved, or be gone, since it was begun. */
static bool deliver(struct lane *lane, const struct op *op)
{
    const struct nvme_read_write *command = &op->command;

    if (!prp_walk(&lane->transfer, &lane->guest, command->prp1, command->prp2, op->length, lane->engine->page_size,
                  true))
        return false;
    transfer_scatter(&lane->transfer, op->buffer);
    if (lane->trace)
        trace_data(lane, op->sq, command, true);
    return true;
}

/* Otherwise the write cache was switched off since the write was begun, and Python does it again, durably. (A namespace
   that was taken away has ended as it was.) */
static bool is_good_as_it_is(const struct lane *lane, const struct op *op)
{
    const struct disk *disk = &lane->engine->disks[op->command.nsid];

    return disk->writable || disk->fd != op->fd;
}

void op_finish(struct lane *lane, struct op *op, long result)
{
    struct sq *sq = op->sq;
    bool is_done = result == (long)op->length;

    if (!sq->dropped) {
        if (is_done && (op->is_write ? is_good_as_it_is(lane, op) : deliver(lane, op))) {
            count(lane, op->is_write, op->length);
            sq_complete(sq, op->command.cid);
        } else {
            engine_punt(lane->engine, sq, &op->command, true);
        }
    }
    op_free(lane, op);
}

/* False: while it was written, the other thread has taken the lane over. */
static bool write_now(struct lane *lane, struct op *op)
{
    uint32_t shift = lane->shift;

    pthread_mutex_unlock(&lane->lock);
    op->result = pwrite(op->fd, op->buffer, op->length, (off_t)op->offset);
    lane_enter(lane);
    if (lane->shift != shift) {
        list_add(&lane->written, op);
        lane_leave(lane);
        lane_wake(lane);
        return false;
    }
    atomic_store(&lane->writes_now, false);
    atomic_fetch_sub(&lane->wanted, 1);
    lane_give_way(lane); /* it may have been paused meanwhile */
    op_finish(lane, op, op->result);
    return true;
}

bool lane_write(struct lane *lane)
{
    struct op *op;

    while ((op = list_take(&lane->writes)) != NULL) {
        if (lane_begin_write(lane, op->command.nsid)) {
            if (!write_now(lane, op))
                return false;
        } else if (!ring_start(lane->ring, op)) {
            op_finish(lane, op, -1);
        }
    }
    return true;
}

bool lane_reap(struct lane *lane)
{
    struct op *op;
    bool any = false;

    for (; (op = list_take(&lane->written)) != NULL; any = true)
        op_finish(lane, op, op->result);
    return any;
}

/* --- disks --------------------------------------------------------------------------------------------------------- */

static enum verdict disk_read(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
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
    enum verdict verdict = op_new(&op, lane, sq, command, disk, false, offset, length);
    return verdict == PENDING ? op_start(lane, op) : verdict;
}

static enum verdict disk_write(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                               const struct disk *disk, uint64_t offset, uint64_t length)
{
    struct transfer *transfer = &lane->transfer;

    if (disk->memory) {
        transfer_gather(transfer, disk->memory + offset);
        return DONE;
    }
    _Atomic bool *waits = &lane->engine->writes_wait[command->nsid];
    /* Where the first part was written and not the rest, the same data is written once more: no harm. */
    if (disk->can_read_now && !atomic_load_explicit(waits, memory_order_relaxed)) {
        int flags = disk->never_waits ? 0 : RWF_NOWAIT;
        if (pwritev2(disk->fd, transfer->pieces, (int)transfer->count, (off_t)offset, flags) == (ssize_t)length)
            return DONE;
        if (errno == EOPNOTSUPP) /* ext4, for one, has no buffered writes that do not wait */
            atomic_store_explicit(waits, true, memory_order_relaxed);
    }
    struct op *op;
    enum verdict verdict = op_new(&op, lane, sq, command, disk, true, offset, length);
    if (verdict != PENDING)
        return verdict;
    transfer_gather(transfer, op->buffer);
    if (!disk->can_read_now || !atomic_load_explicit(waits, memory_order_relaxed))
        return op_start(lane, op);
    list_add(&lane->writes, op);
    return PENDING;
}

enum verdict command_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command)
{
    const struct engine *engine = lane->engine;
    bool is_write = command->opcode == NVME_NVM_OPCODE_WRITE;

    if ((!is_write && command->opcode != NVME_NVM_OPCODE_READ) || command->flags != 0 ||
        (command->cdw12 & ~(ORDINARY)) != 0 || command->nsid > MAX_NSID)
        return PUNT;
    const struct disk *disk = &engine->disks[command->nsid];
    uint64_t blocks = nvme_read_write_nlb(command);
    if ((!disk->memory && disk->fd < 0) || (is_write && !disk->writable))
        return PUNT;
    if (blocks > disk->blocks || command->slba > disk->blocks - blocks)
        return PUNT;
    uint64_t offset = command->slba << disk->block_shift, length = blocks << disk->block_shift;
    if (length > engine->transfer)
        return PUNT;
    if (!prp_walk(&lane->transfer, &lane->guest, command->prp1, command->prp2, length, engine->page_size, !is_write))
        return PUNT;
    enum verdict verdict = is_write ? disk_write(lane, sq, command, disk, offset, length)
                                    : disk_read(lane, sq, command, disk, offset, length);
    if (verdict == DONE)
        count(lane, is_write, length);
    if (lane->trace && (verdict == DONE || (verdict == PENDING && is_write)))
        trace_data(lane, sq, command, !is_write);
    return verdict;
}
