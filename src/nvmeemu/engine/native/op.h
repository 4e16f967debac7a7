/* Commands that wait for a disk, and the work that it has to do for them. */

#ifndef NVMEEMU_OP_H
#define NVMEEMU_OP_H

#include <stdbool.h>
#include <stdint.h>

#include "nvme_spec.h"
#include "pair.h"
#include "ranges.h"

struct disk;
struct failed_sync;
struct journal;
struct lane;
struct load;
struct slot;
struct sq;

/* What a disk can be asked for, each with one system call. */
enum work { WORK_READ, WORK_WRITE, WORK_ALLOCATE, WORK_SYNC };

struct extent {
    uint64_t offset, length;
};

/* A command that waits for a disk. It has a copy of all it needs; nothing in it points into guest memory. */
struct op {
    struct sq *sq;
    struct load *load; /* NULL: it waits until there is room */
    struct nvme_read_write command;
    uint32_t nsid; /* the disk's */
    int fd; /* of the disk */
    struct pair pair; /* its blocks, if the disk has a companion */
    struct failed_sync *failed_sync; /* of the disk */
    enum work work; /* what the disk is to do now */
    int flags; /* of pwritev2, or the mode of fallocate */
    bool is_durable; /* its success means that it is durable, even if the write cache is switched off meanwhile */
    bool syncs_last; /* a sync is still to come */
    bool waits; /* for the medium, not only for the page cache */
    bool suits_lane; /* the lane may make the system call itself */
    bool would_block; /* it blocks even if asked not to: a thread of io_uring must begin it */
    int lost; /* errno of a sync that has failed */
    int file; /* for its present work: where, */
    struct extent extent;
    uint8_t *bytes; /* and with what */
    uint32_t length;
    const struct extent *more; /* where it has to do the same, in its buffer */
    uint32_t more_count;
    uint32_t size; /* bytes */
    uint8_t *buffer;
    struct range range; /* of the disk, that it reads or writes */
    struct slot *slot; /* of the journal, or NULL */
    long result; /* of op_perform */
    struct op *next;
};

struct op_list {
    struct op *first, **end;
};

enum verdict { DONE, PENDING, PUNT, WAIT };

/* PENDING: here is one, with a buffer of `size` bytes, for the work of which op_start has to be told. */
enum verdict op_new(struct op **new_op, struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                    uint32_t nsid, uint64_t size);
enum verdict op_start(struct lane *lane, struct op *op);
/* Keep the write that it is to do, if a kill could cut it. False: there is no room for it. */
bool op_keep(struct op *op, const struct journal *journal);
/* The disk has answered: what the system call returns, or a negative errno. */
void op_finish(struct lane *lane, struct op *op, long result);
/* Do the work that it has to do now, with the system call that it is; without the lane's lock. op_finish is still to come. */
void op_perform(struct op *op);
/* By the engine. What a sync says can no longer be relied upon once one has failed: the kernel tells that once. */
bool can_sync(const struct disk *disk);
void op_free(struct lane *lane, struct op *op);
void op_list_add(struct op_list *list, struct op *op);
struct op *op_list_take(struct op_list *list);

#endif
