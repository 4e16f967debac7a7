/* What the thread that drives a lane does: it serves the queues in turn, and sleeps when there is nothing to do. */

#define _GNU_SOURCE
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "bounds.h"
#include "doorbells.h"
#include "engine.h"
#include "handover.h"
#include "lane.h"
#include "load.h"
#include "news.h"
#include "op.h"
#include "queue.h"
#include "trace.h"
#include "uring.h"

#define LEAST_PATIENCE 5000 /* nanoseconds */
#define SHORTEST_NAP 20000
#define NAP_SHARE 8 /* of the time that there has been nothing to do: what a nap may add to a command's latency */

uint64_t monotonic_time(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static uint64_t engine_time(struct engine *engine)
{
    return atomic_load(&engine->has_test_time) ? atomic_load(&engine->test_time) : monotonic_time();
}

/* --- the lock ------------------------------------------------------------------------------------------------------ */

void lane_give_way(struct lane *lane)
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

void lane_kick(struct lane *lane)
{
    atomic_store(&lane->kicked, true);
    lane_wake(lane);
}

/* --- interrupts ---------------------------------------------------------------------------------------------------- */

static void signal_cq(struct cq *cq, const struct vector *vector)
{
    struct lane *lane = cq->queue.lane;
    int fd = vector ? atomic_load_explicit(&vector->fd, memory_order_relaxed) : -1;

    if (fd >= 0) {
        if (lane->trace) /* first: from then on the host may answer */
            trace_interrupt(lane, cq->vector);
        eventfd_write(fd, 1);
    } else {
        queue_tell(&cq->queue, NOTICE_POSTED);
    }
}

/* Interrupt Coalescing, Base 1.4, 5.21.1.8: enough completions, or the first of them has waited for long enough. All
   queues of a vector count together. */
static bool is_due(struct lane *lane, struct cq *cq, struct vector *vector)
{
    struct engine *engine = lane->engine;
    uint32_t held = atomic_fetch_add(&vector->held, cq->posted);

    if (held + cq->posted == 0)
        return false;
    uint64_t time = engine_time(engine);
    if (held == 0)
        atomic_store(&vector->due, time + atomic_load(&engine->coalesce_time));
    uint64_t due = atomic_load(&vector->due);
    if (held + cq->posted >= atomic_load(&engine->coalesce_count) || time >= due)
        return atomic_exchange(&vector->held, 0) > 0;
    if (!atomic_load(&engine->has_test_time) && (lane->deadline == 0 || due < lane->deadline))
        lane->deadline = due;
    return false;
}

/* One interrupt for each completion queue that has got something. */
static void signal_posted(struct lane *lane)
{
    lane->deadline = 0;
    atomic_store(&lane->kicked, false);
    for (uint32_t i = 0; i < lane->cqs.count; i++) {
        struct cq *cq = as_cq(lane->cqs.items[i]);
        struct vector *vector = cq->vector < MAX_VECTORS ? &lane->engine->vectors[cq->vector] : NULL;
        if (cq->ien && (cq_is_coalesced(cq) ? is_due(lane, cq, vector) : cq->posted > 0))
            signal_cq(cq, vector);
        cq->posted = 0;
    }
}

/* --- work ---------------------------------------------------------------------------------------------------------- */

static bool watches(const struct lane *lane)
{
    return lane == lane->engine->lanes && lane->engine->watched > 0;
}

static bool serve_cq(struct cq *cq)
{
    if (!cq_is_awaited(cq))
        return false;
    bool posted = cq_post_waiting(cq);
    if (cq->main_waits && cq->waiting_count == 0 && cq_has_room(cq)) {
        cq->main_waits = false;
        queue_tell(&cq->queue, NOTICE_HEAD);
    }
    return posted;
}

static bool serve_sq(struct lane *lane, struct sq *sq)
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

    busy |= handover_finish_late(lane);
    busy |= load_resume(lane);
    while (lane->ring && (op = ring_reap(lane->ring, &result)) != NULL) {
        op_finish(lane, op, result);
        busy = true;
    }
    for (uint32_t i = 0; i < lane->cqs.count; i++)
        busy |= serve_cq(as_cq(lane->cqs.items[i]));
    for (uint32_t i = 0; i < lane->sqs.count; i++)
        busy |= serve_sq(lane, as_sq(lane->sqs.items[i]));
    if (watches(lane) && doorbells_are_rung(lane->engine, lane->engine->watched))
        engine_notify(lane->engine);
    return busy;
}

/* A lane reads a mapped head only when the queue is full, and a tail only when there is room. But main is told of every bad
   value, and raises or lowers the pin by the good ones: so before it sleeps, a lane reads all of them. */
static bool look_for_main(struct queue *queue)
{
    return queue->lane->engine->doorbells && !queue->shadow.used && queue_look(queue);
}

static bool is_pin(struct engine *engine, const struct cq *cq)
{
    return cq->ien && (cq->vector >= MAX_VECTORS || atomic_load(&engine->vectors[cq->vector].fd) < 0);
}

/* Those of no queue, too: what the host writes there is only to be told, which is not worth a look before each nap. */
static void look_at_all_doorbells(struct lane *lane, uint64_t time)
{
    lane->looked_at_all = time;
    if (watches(lane) && doorbells_are_rung(lane->engine, MAX_DOORBELLS))
        engine_notify(lane->engine);
}

static bool has_work(struct lane *lane)
{
    if (handover_has_late(lane) || load_has_ready(lane))
        return true;
    if (watches(lane) && doorbells_are_rung(lane->engine, lane->engine->watched))
        engine_notify(lane->engine);
    for (uint32_t i = 0; i < lane->cqs.count; i++) {
        struct cq *cq = as_cq(lane->cqs.items[i]);
        if (look_for_main(&cq->queue) && is_pin(lane->engine, cq))
            queue_tell(&cq->queue, NOTICE_HEAD);
        if (cq_is_awaited(cq))
            return true;
    }
    for (uint32_t i = 0; i < lane->sqs.count; i++) {
        look_for_main(lane->sqs.items[i]);
        if (sq_is_runnable(as_sq(lane->sqs.items[i])))
            return true;
    }
    return false;
}

bool lane_is_quiet(struct lane *lane)
{
    bool is_resting = atomic_load(&lane->asleep) && (lane->asks || lane->engine->doorbells);

    look_at_all_doorbells(lane, monotonic_time());
    return is_resting && !atomic_load(&lane->kicked) && lane->ops == 0 && lane->deadline == 0 && !has_work(lane);
}

/* --- rest ---------------------------------------------------------------------------------------------------------- */

/* Until somebody wakes us or the time comes (0: never). Whoever rings sees that we sleep, or we see that it has. */
static void sleep_until(struct lane *lane, uint64_t end)
{
    atomic_store(&lane->asleep, true);
    atomic_thread_fence(memory_order_seq_cst);
    if (!has_work(lane) && !atomic_load(&lane->kicked) && atomic_load(&lane->wanted) == 0 && !lane->stop) {
        if (lane->trace && !trace_is_empty(lane->trace))
            engine_notify(lane->engine);
        pthread_cond_broadcast(&lane->quiet);
        pthread_mutex_unlock(&lane->lock);
        eventfd_t value;
        struct pollfd wait = {lane->eventfd, POLLIN, 0};
        uint64_t time = end ? monotonic_time() : 0;
        uint64_t left = end > time ? end - time : 0;
        struct timespec timeout = {(time_t)(left / 1000000000), (long)(left % 1000000000)};
        if (!end || ppoll(&wait, 1, &timeout, NULL) > 0)
            eventfd_read(lane->eventfd, &value);
        pthread_mutex_lock(&lane->lock);
    }
    atomic_store(&lane->asleep, false);
}

/* A time worth spending on looking for work: once more has come just later than that, and less has not come in time. */
static uint64_t learned(uint64_t time, uint64_t idle, uint64_t most)
{
    if (idle > most)
        time /= 2;
    else if (idle > time)
        time = time < LEAST_PATIENCE ? LEAST_PATIENCE : time * 2;
    return time < most ? time : most;
}

/* Work has come after a while without: would it have been better to wait for it, or not to? */
static void learn(struct lane *lane)
{
    uint64_t idle = monotonic_time() - lane->idle_since;

    lane->idle_since = 0;
    lane->patience = learned(lane->patience, idle, lane->engine->most_patience);
    lane->watch = learned(lane->watch, idle, lane->engine->most_watch);
}

static void relax(const struct lane *lane)
{
    if (lane->owed > 0) {
        sched_yield(); /* main may be waiting for this very CPU */
        return;
    }
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

static bool has_shadows(const struct lane *lane)
{
    for (uint32_t i = 0; i < lane->sqs.count; i++)
        if (lane->sqs.items[i]->shadow.used)
            return true;
    return false;
}

/* The longer there was nothing to do, the longer. */
static uint64_t end_of_nap(const struct lane *lane, uint64_t time, uint64_t idle)
{
    uint64_t nap = idle / NAP_SHARE < SHORTEST_NAP ? SHORTEST_NAP : idle / NAP_SHARE;
    uint64_t end = time + (nap < lane->engine->longest_nap ? nap : lane->engine->longest_nap);

    return lane->deadline && lane->deadline < end ? lane->deadline : end;
}

/* Doorbells in memory wake nobody: look again at once for a while, then less and less often. Who has shadow doorbells
   can be asked to ring, which costs a message: as soon as watching them is not worth it. */
static void rest(struct lane *lane)
{
    /* Submission queues may all be Python's: completion queues tell whether the lane has any doorbells. */
    bool is_mapped = lane->engine->doorbells && (lane->cqs.count > 0 || watches(lane));
    uint64_t time = monotonic_time();

    if (lane->idle_since == 0)
        lane->idle_since = time;
    uint64_t idle = time - lane->idle_since;
    if (!is_mapped && (idle >= lane->watch || !has_shadows(lane))) {
        lane->asks = true;
        sleep_until(lane, lane->deadline);
        lane->asks = false;
        return;
    }
    if (time - lane->looked_at_all >= lane->engine->longest_nap)
        look_at_all_doorbells(lane, time);
    if (idle < lane->patience) {
        relax(lane);
        return;
    }
    sleep_until(lane, end_of_nap(lane, time, idle));
}

bool lane_has_others(struct lane *lane)
{
    for (uint32_t i = 0; i < lane->sqs.count; i++)
        if (sq_is_runnable(as_sq(lane->sqs.items[i])))
            return true;
    return lane->ops > 1;
}

bool lane_round(struct lane *lane)
{
    lane_give_way(lane);
    bool busy = work(lane);
    if (!handover_write(lane))
        return false;
    if (lane->ring)
        busy |= !ring_submit(lane->ring); /* nobody would wake us */
    signal_posted(lane);
    if (!busy)
        rest(lane);
    else if (lane->idle_since)
        learn(lane);
    return true;
}

/* --- its life ------------------------------------------------------------------------------------------------------ */

bool lane_start(struct engine *engine, struct lane *lane)
{
    lane->engine = engine;
    lane->guest.memory = &engine->memory;
    pthread_mutex_init(&lane->lock, NULL);
    pthread_cond_init(&lane->resumed, NULL);
    pthread_cond_init(&lane->quiet, NULL);
    lane->eventfd = eventfd(0, EFD_CLOEXEC);
    if (lane->eventfd < 0)
        return false;
    lane->ring = ring_open(lane->eventfd);
    return handover_start(lane);
}

bool lane_stop(struct lane *lane)
{
    if (lane->handover.has_first) {
        lane_enter(lane);
        lane->stop = true;
        pthread_cond_broadcast(&lane->resumed);
        lane_leave(lane);
        eventfd_write(lane->eventfd, 1);
        if (!handover_stop(lane))
            return false;
    }
    if (lane->ring)
        ring_close(lane->ring);
    free(lane->trace);
    free(lane->room);
    if (lane->eventfd >= 0)
        close(lane->eventfd);
    handover_free(lane);
    free(lane->sqs.items);
    free(lane->cqs.items);
    return true;
}
