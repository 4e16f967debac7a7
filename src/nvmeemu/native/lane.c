/* A lane's thread: serves its queues in turn, and sleeps when there is nothing to do. */

#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* --- the lock ------------------------------------------------------------------------------------------------------ */

/* With the lock: let main have it first if it wants to, or has paused us. */
static void give_way(struct lane *lane)
{
    if (atomic_load(&lane->wanted) == 0)
        return;
    pthread_cond_broadcast(&lane->quiet);
    while (atomic_load(&lane->wanted) > 0 && !lane->stop)
        pthread_cond_wait(&lane->resumed, &lane->lock);
}

void lane_enter(struct lane *lane)
{
    atomic_fetch_add(&lane->wanted, 1);
    pthread_mutex_lock(&lane->lock);
}

void lane_leave(struct lane *lane)
{
    if (atomic_fetch_sub(&lane->wanted, 1) == 1)
        pthread_cond_signal(&lane->resumed);
    pthread_mutex_unlock(&lane->lock);
}

/* What was changed for it to see comes before. */
void lane_wake(struct lane *lane)
{
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&lane->asleep) && atomic_exchange(&lane->asleep, false))
        eventfd_write(lane->eventfd, 1);
}

/* --- interrupts ---------------------------------------------------------------------------------------------------- */

/* False: Interrupt Coalescing lets it wait until the lane's deadline. */
static bool is_due(struct lane *lane, struct cq *cq, const struct vector *vector)
{
    struct engine *engine = lane->engine;
    uint64_t patience = atomic_load_explicit(&engine->coalesce_time, memory_order_relaxed);

    if (patience == 0 || !vector || !atomic_load_explicit(&vector->is_coalesced, memory_order_relaxed))
        return true;
    if (cq->posted >= atomic_load_explicit(&engine->coalesce_count, memory_order_relaxed))
        return true;
    uint64_t time = now();
    if (cq->posted_at == 0)
        cq->posted_at = time;
    if (time - cq->posted_at >= patience)
        return true;
    if (lane->deadline == 0 || cq->posted_at + patience < lane->deadline)
        lane->deadline = cq->posted_at + patience;
    return false;
}

/* One interrupt for each completion queue that has got something. */
static void signal_posted(struct lane *lane)
{
    lane->deadline = 0;
    for (uint32_t i = 0; i < lane->cqs.count; i++) {
        struct cq *cq = lane->cqs.items[i];
        struct vector *vector = cq->vector < MAX_VECTORS ? &lane->engine->vectors[cq->vector] : NULL;
        if (cq->posted == 0 || (cq->ien && !is_due(lane, cq, vector)))
            continue;
        cq->posted = 0;
        cq->posted_at = 0;
        if (!cq->ien)
            continue;
        int fd = vector ? atomic_load_explicit(&vector->fd, memory_order_relaxed) : -1;
        if (fd >= 0)
            eventfd_write(fd, 1);
        else
            cq_tell(cq, NOTICE_POSTED);
    }
}

/* --- work ---------------------------------------------------------------------------------------------------------- */

static bool serve(struct lane *lane, struct sq *sq)
{
    for (int i = 0; i < BURST; i++) {
        if (atomic_load_explicit(&lane->wanted, memory_order_relaxed) > 0)
            return true;
        if (!sq_step(sq))
            return i > 0;
    }
    return true;
}

/* A round over all queues; true if anything was done. */
static bool work(struct lane *lane)
{
    bool busy = false;
    struct op *op;
    long result;

    while (lane->ring && (op = ring_reap(lane->ring, &result)) != NULL) {
        op_finish(lane, op, result);
        busy = true;
    }
    for (uint32_t i = 0; i < lane->cqs.count; i++)
        busy |= lane->cqs.items[i]->waiting_count > 0 && cq_post_waiting(lane->cqs.items[i]);
    for (uint32_t i = 0; i < lane->sqs.count; i++)
        busy |= serve(lane, lane->sqs.items[i]);
    return busy;
}

static bool has_work(struct lane *lane)
{
    for (uint32_t i = 0; i < lane->cqs.count; i++)
        if (cq_can_post_waiting(lane->cqs.items[i]))
            return true;
    for (uint32_t i = 0; i < lane->sqs.count; i++)
        if (sq_is_runnable(lane->sqs.items[i]))
            return true;
    return false;
}

/* Until somebody wakes us or the deadline comes. Whoever rings sees that we sleep, or we see that it has rung. */
static void sleep_until_woken(struct lane *lane)
{
    atomic_store(&lane->asleep, true);
    atomic_thread_fence(memory_order_seq_cst);
    if (!has_work(lane) && atomic_load(&lane->wanted) == 0 && !lane->stop) {
        uint64_t deadline = lane->deadline;
        pthread_cond_broadcast(&lane->quiet);
        pthread_mutex_unlock(&lane->lock);
        eventfd_t value;
        struct pollfd wait = {lane->eventfd, POLLIN, 0};
        uint64_t time = deadline ? now() : 0;
        uint64_t left = deadline > time ? deadline - time : 0;
        struct timespec timeout = {(time_t)(left / 1000000000), (long)(left % 1000000000)};
        if (!deadline || ppoll(&wait, 1, &timeout, NULL) > 0)
            eventfd_read(lane->eventfd, &value);
        pthread_mutex_lock(&lane->lock);
    }
    atomic_store(&lane->asleep, false);
}

void *lane_main(void *argument)
{
    struct lane *lane = argument;

    pthread_mutex_lock(&lane->lock);
    while (!lane->stop) {
        give_way(lane);
        bool busy = work(lane);
        if (lane->ring)
            ring_submit(lane->ring);
        signal_posted(lane);
        if (!busy)
            sleep_until_woken(lane);
    }
    pthread_mutex_unlock(&lane->lock);
    return NULL;
}
