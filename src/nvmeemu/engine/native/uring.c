/* Waiting for many disks at once, with io_uring. Where liburing was not there at build time, or the kernel refuses it,
   Python's threads wait instead. */

#include <stdlib.h>

#include "bounds.h"
#include "op.h"
#include "uring.h"

#ifdef HAVE_LIBURING

#include <liburing.h>

struct ring {
    struct io_uring uring;
    bool has_new;
};

struct ring *ring_open(int eventfd)
{
    struct ring *ring = calloc(1, sizeof(*ring));

    if (!ring)
        return NULL;
    if (io_uring_queue_init(MAX_OPS, &ring->uring, 0) < 0) {
        free(ring);
        return NULL;
    }
    unsigned workers[2] = {MAX_NSID * MAX_OPS, 0}; /* by default too few for a slow disk on a machine with few CPUs */
    (void)io_uring_register_iowq_max_workers(&ring->uring, workers);
    if (io_uring_register_eventfd(&ring->uring, eventfd) < 0) {
        ring_close(ring);
        return NULL;
    }
    return ring;
}

void ring_close(struct ring *ring)
{
    io_uring_queue_exit(&ring->uring);
    free(ring);
}

static void prepare(struct io_uring_sqe *entry, const struct op *op)
{
    const struct extent *at = &op->extent;

    switch (op->work) {
    case WORK_READ:
        io_uring_prep_read(entry, op->file, op->bytes, op->length, at->offset);
        break;
    case WORK_WRITE:
        io_uring_prep_write(entry, op->file, op->bytes, op->length, at->offset);
        entry->rw_flags = op->flags;
        break;
    case WORK_ALLOCATE:
        io_uring_prep_fallocate(entry, op->file, op->flags, at->offset, at->length);
        break;
    case WORK_SYNC:
        io_uring_prep_fsync(entry, op->file, IORING_FSYNC_DATASYNC);
        break;
    }
}

bool ring_start(struct ring *ring, struct op *op)
{
    struct io_uring_sqe *entry = io_uring_get_sqe(&ring->uring);

    if (!entry && ring_submit(ring)) /* for another disk there may be more */
        entry = io_uring_get_sqe(&ring->uring);
    if (!entry)
        return false;
    prepare(entry, op);
    if (op->would_block)
        io_uring_sqe_set_flags(entry, IOSQE_ASYNC);
    io_uring_sqe_set_data(entry, op);
    ring->has_new = true;
    return true;
}

bool ring_submit(struct ring *ring)
{
    /* What the kernel does not take now (it may be short of memory) stays in the ring, for the next time. */
    if (ring->has_new && io_uring_submit(&ring->uring) >= 0 && io_uring_sq_ready(&ring->uring) == 0)
        ring->has_new = false;
    return !ring->has_new;
}

struct op *ring_reap(struct ring *ring, long *result)
{
    struct io_uring_cqe *completion;

    if (io_uring_peek_cqe(&ring->uring, &completion) != 0)
        return NULL;
    struct op *op = io_uring_cqe_get_data(completion);
    *result = completion->res;
    io_uring_cqe_seen(&ring->uring, completion);
    return op;
}

#else

struct ring *ring_open(int eventfd)
{
    (void)eventfd;
    return NULL;
}

void ring_close(struct ring *ring)
{
    (void)ring;
}

bool ring_start(struct ring *ring, struct op *op)
{
    (void)ring;
    (void)op;
    return false;
}

bool ring_submit(struct ring *ring)
{
    (void)ring;
    return true;
}

struct op *ring_reap(struct ring *ring, long *result)
{
    (void)ring;
    (void)result;
    return NULL;
}

#endif
