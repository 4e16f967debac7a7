/* The hand-over of a lane between its two threads: see handover.h for the states. */

#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "handover.h"
#include "lane.h"
#include "op.h"
#include "uring.h"

#define STOP_TIME 1 /* seconds for a thread to end */
#ifndef SLOW_WRITE /* scripts/sanitize.sh: so that the lanes' threads take turns all the time */
#define SLOW_WRITE 1000000 /* nanoseconds; longer than writing into the page cache takes */
#define SLOW_TIME 1000000000 /* for so long a disk that was slow is left to the ring */
#endif
#define SHARED_TIME (SLOW_TIME / 10) /* so are syncs, once other commands have come meanwhile */

/* It held up others: let the ring wait for a while. */
static void note_slow(struct lane *lane)
{
    const struct handover *handover = &lane->handover;
    uint64_t time = handover->waits ? SHARED_TIME : SLOW_TIME;

    atomic_store(&lane->engine->slow_until[handover->waits][handover->nsid], monotonic_time() + time);
}

/* --- who stands by ------------------------------------------------------------------------------------------------- */

static bool takes_long(const struct handover *handover)
{
    return atomic_load(&handover->state) == WRITING && monotonic_time() - atomic_load(&handover->begun) > SLOW_WRITE;
}

/* WRITING to ALONE. True: the lane is ours, with its lock. False: it does not take long any more, or main has the lock. */
static bool take_over(struct lane *lane)
{
    struct handover *handover = &lane->handover;

    if (!takes_long(handover) || pthread_mutex_trylock(&lane->lock) != 0)
        return false;
    if (!takes_long(handover)) {
        pthread_mutex_unlock(&lane->lock);
        return false;
    }
    if (!handover->waits || lane_has_others(lane)) /* how long a sync takes is nobody else's business */
        note_slow(lane);
    handover->shift++;
    atomic_store(&handover->state, ALONE);
    return true;
}

/* Until the driver begins the next system call after `seen`, or the lane stops. */
static void sleep_after(struct lane *lane, uint64_t seen)
{
    struct handover *handover = &lane->handover;
    eventfd_t value;

    atomic_store(&handover->is_asleep, true);
    if (atomic_load(&handover->begun) == seen && !atomic_load(&lane->stop))
        eventfd_read(handover->eventfd, &value);
    atomic_store(&handover->is_asleep, false);
}

/* Look after the writes of the driver; sleep when there are none. True: the lane is ours, with its lock. False: it
   ends. */
static bool stand_by(struct lane *lane)
{
    struct handover *handover = &lane->handover;
    const struct timespec nap = {0, SLOW_WRITE};

    for (uint64_t seen = 0; !atomic_load(&lane->stop);) {
        uint64_t last = atomic_load(&handover->begun);
        if (take_over(lane))
            return true;
        if (seen != last || atomic_load(&handover->state) == WRITING)
            nanosleep(&nap, NULL);
        else
            sleep_after(lane, seen);
        seen = last;
    }
    return false;
}

/* --- the driver ---------------------------------------------------------------------------------------------------- */

static void *serve_second(void *lane);

/* ALONE to ATTENDED, for the first time: only lanes that write themselves need another thread. */
static void make_second(struct lane *lane)
{
    struct handover *handover = &lane->handover;

    atomic_store(&handover->state, ATTENDED);
    handover->has_second = pthread_create(&handover->second, NULL, serve_second, lane) == 0;
    if (!handover->has_second)
        atomic_store(&handover->state, ALONE);
}

/* ATTENDED to WRITING. False: nobody stands by, or the disk's calls do take long. */
static bool begin(struct lane *lane, const struct op *op)
{
    struct handover *handover = &lane->handover;
    uint64_t time = monotonic_time();

    if (!handover->has_second)
        make_second(lane);
    if (time < atomic_load_explicit(&lane->engine->slow_until[op->waits][op->nsid], memory_order_relaxed) ||
        atomic_load(&handover->state) != ATTENDED)
        return false;
    handover->nsid = op->nsid;
    handover->waits = op->waits;
    atomic_store(&handover->begun, time);
    atomic_store(&handover->state, WRITING);
    if (atomic_load(&handover->is_asleep) && atomic_exchange(&handover->is_asleep, false))
        eventfd_write(handover->eventfd, 1);
    return true;
}

/* ALONE to ATTENDED: the lane was taken over, and we are back. With the lock, and without it in the end. */
static void come_back_late(struct lane *lane, struct op *op)
{
    op_list_add(&lane->handover.late, op);
    lane_leave(lane);
    lane_wake(lane);
    atomic_store(&lane->handover.state, ATTENDED);
}

/* In WRITING, and back to ATTENDED. False: meanwhile the other thread has taken the lane over. */
static bool write_now(struct lane *lane, struct op *op)
{
    struct handover *handover = &lane->handover;
    uint32_t shift = handover->shift;

    pthread_mutex_unlock(&lane->lock);
    op_perform(op);
    lane_enter(lane);
    if (handover->shift != shift) {
        come_back_late(lane, op);
        return false;
    }
    atomic_store(&handover->state, ATTENDED);
    atomic_fetch_sub(&lane->wanted, 1);
    lane_give_way(lane); /* it may have been paused meanwhile */
    if (op->waits && lane_has_others(lane))
        note_slow(lane);
    op_finish(lane, op, op->result);
    return true;
}

void handover_add(struct lane *lane, struct op *op)
{
    op_list_add(&lane->handover.todo, op);
}

bool handover_write(struct lane *lane)
{
    struct op *op;

    while ((op = op_list_take(&lane->handover.todo)) != NULL) {
        bool may_wait = !op->waits || !lane_has_others(lane);
        if (may_wait && begin(lane, op)) {
            if (!write_now(lane, op))
                return false;
        } else if (!ring_start(lane->ring, op)) {
            op_finish(lane, op, -EAGAIN);
        }
    }
    return true;
}

bool handover_has_late(const struct lane *lane)
{
    return lane->handover.late.first != NULL;
}

bool handover_finish_late(struct lane *lane)
{
    struct op *op;
    bool any = false;

    for (; (op = op_list_take(&lane->handover.late)) != NULL; any = true)
        op_finish(lane, op, op->result);
    return any;
}

/* --- the threads ----------------------------------------------------------------------------------------------------- */

/* With the lock, and without it in the end. */
static void drive(struct lane *lane)
{
    while (!atomic_load(&lane->stop))
        if (!lane_round(lane))
            return;
    pthread_mutex_unlock(&lane->lock);
}

static void set_up_thread(void)
{
    prctl(PR_SET_NAME, "nvmeemu-lane"); /* for top(1) and the benches */
    prctl(PR_SET_TIMERSLACK, 1); /* nanosecond: naps are short */
}

static void *serve_first(void *lane)
{
    set_up_thread();
    pthread_mutex_lock(&((struct lane *)lane)->lock);
    do
        drive(lane);
    while (stand_by(lane));
    return NULL;
}

static void *serve_second(void *lane)
{
    set_up_thread();
    while (stand_by(lane))
        drive(lane);
    return NULL;
}

bool handover_start(struct lane *lane)
{
    struct handover *handover = &lane->handover;
    sigset_t all, before;

    handover->todo.end = &handover->todo.first;
    handover->late.end = &handover->late.first;
    handover->eventfd = eventfd(0, EFD_CLOEXEC);
    if (handover->eventfd < 0)
        return false;
    sigfillset(&all); /* signals are for Python's thread */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    errno = pthread_create(&handover->first, NULL, serve_first, lane);
    handover->has_first = errno == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return handover->has_first;
}

bool handover_stop(struct lane *lane)
{
    struct handover *handover = &lane->handover;
    struct timespec end;

    eventfd_write(handover->eventfd, 1);
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += STOP_TIME;
    return pthread_timedjoin_np(handover->first, NULL, &end) == 0 &&
           (!handover->has_second || pthread_timedjoin_np(handover->second, NULL, &end) == 0);
}

void handover_free(struct lane *lane)
{
    if (lane->handover.eventfd >= 0)
        close(lane->handover.eventfd);
}
