/*
 * An io_uring of threads, for the same misbehaviour as in shim.c: what the engine gives to liburing goes through the
 * calls there. Only what the engine uses. Without SHIM_URING there is no io_uring, as on an old kernel.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <liburing.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/uio.h>
#include <unistd.h>

#define ENTRIES 1024 /* at least as many as the engine has in flight */

struct fake {
    struct io_uring_sqe sqes[ENTRIES];
    struct io_uring_cqe cqes[ENTRIES];
    unsigned sq_head, cq_head, cq_tail;
    pthread_mutex_t lock;
    int eventfd;
};

struct call {
    struct fake *fake;
    struct io_uring_sqe sqe;
};

ssize_t preadv64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags);
ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags);
int fallocate64(int fd, int mode, off_t offset, off_t length);

int io_uring_queue_init(unsigned entries, struct io_uring *ring, unsigned flags)
{
    struct fake *fake;

    (void)flags;
    if (!getenv("SHIM_URING") || entries > ENTRIES)
        return -ENOSYS;
    fake = calloc(1, sizeof *fake);
    pthread_mutex_init(&fake->lock, NULL);
    *ring = (struct io_uring){0};
    ring->features = IORING_FEAT_EXT_ARG;
    ring->sq.ring_ptr = fake;
    ring->sq.khead = &fake->sq_head;
    ring->sq.sqes = fake->sqes;
    ring->sq.ring_entries = ENTRIES;
    ring->sq.ring_mask = ENTRIES - 1;
    ring->cq.khead = &fake->cq_head;
    ring->cq.ktail = &fake->cq_tail;
    ring->cq.cqes = fake->cqes;
    ring->cq.ring_entries = ENTRIES;
    ring->cq.ring_mask = ENTRIES - 1;
    return 0;
}

int io_uring_register_eventfd(struct io_uring *ring, int fd)
{
    ((struct fake *)ring->sq.ring_ptr)->eventfd = fd;
    return 0;
}

int io_uring_register_iowq_max_workers(struct io_uring *ring, unsigned *values)
{
    (void)ring, (void)values;
    return 0;
}

void io_uring_queue_exit(struct io_uring *ring)
{
    (void)ring; /* threads may still be at it */
}

int __io_uring_get_cqe(struct io_uring *ring, struct io_uring_cqe **cqe, unsigned submit, unsigned wait, sigset_t *mask)
{
    (void)ring, (void)cqe, (void)submit, (void)wait, (void)mask;
    return -EAGAIN; /* asked only when there is none */
}

static ssize_t do_call(const struct io_uring_sqe *sqe)
{
    struct iovec piece = {(void *)(uintptr_t)sqe->addr, sqe->len};

    switch (sqe->opcode) {
    case IORING_OP_READ:
        return preadv64v2(sqe->fd, &piece, 1, (off_t)sqe->off, 0);
    case IORING_OP_WRITE:
        return pwritev64v2(sqe->fd, &piece, 1, (off_t)sqe->off, (int)sqe->rw_flags);
    case IORING_OP_FSYNC:
        return fdatasync(sqe->fd);
    case IORING_OP_FALLOCATE:
        return fallocate64(sqe->fd, (int)sqe->len, (off_t)sqe->off, (off_t)sqe->addr);
    default:
        errno = ENOSYS;
        return -1;
    }
}

static void *run(void *argument)
{
    struct call *call = argument;
    struct fake *fake = call->fake;
    ssize_t done = do_call(&call->sqe);

    pthread_mutex_lock(&fake->lock);
    fake->cqes[fake->cq_tail % ENTRIES] =
        (struct io_uring_cqe){.user_data = call->sqe.user_data, .res = done < 0 ? -errno : (int)done};
    __atomic_store_n(&fake->cq_tail, fake->cq_tail + 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&fake->lock);
    eventfd_write(fake->eventfd, 1);
    free(call);
    return NULL;
}

int io_uring_submit(struct io_uring *ring)
{
    struct fake *fake = ring->sq.ring_ptr;
    int number = 0;

    for (; fake->sq_head != ring->sq.sqe_tail; number++) {
        struct call *call = malloc(sizeof *call);
        pthread_t thread;
        *call = (struct call){fake, fake->sqes[fake->sq_head++ % ENTRIES]};
        if (pthread_create(&thread, NULL, run, call) != 0)
            abort();
        pthread_detach(thread);
    }
    ring->sq.sqe_head = fake->sq_head;
    return number;
}
