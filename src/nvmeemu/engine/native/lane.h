/* A lane: a lock, and the queues that are served with it, by one of two threads (handover.h). */

#ifndef NVMEEMU_LANE_H
#define NVMEEMU_LANE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "handover.h"
#include "memory.h"
#include "pair.h"
#include "prp.h"
#include "queue.h"
#include "ranges.h"

struct engine;
struct ring;
struct trace;

struct counters {
    _Atomic uint64_t reads, writes, bytes_read, bytes_written, others;
};

struct lane {
    struct engine *engine;
    pthread_mutex_t lock;
    pthread_cond_t resumed, quiet;
    _Atomic uint32_t wanted; /* calls of main that want the lock, and pauses */
    _Atomic bool asleep;
    _Atomic bool kicked; /* interrupts are to be looked at, although there may be nothing to run */
    _Atomic bool stop;
    int eventfd; /* wakes the thread that drives */
    struct handover handover; /* between its two threads */
    struct queue_list sqs, cqs;
    struct guest guest;
    struct transfer transfer; /* of the command that is being run */
    struct pair pair; /* its blocks; without a chunk: its disk has no companion */
    uint8_t *room; /* for their data and metadata, or NULL */
    size_t room_size;
    struct range range; /* of its disk, that it reads or writes */
    uint32_t owed; /* commands of its queues that main has to complete */
    uint32_t ops; /* commands that wait for a disk */
    uint32_t waiting; /* those of them that have not begun: their disk has no room */
    uint32_t waits_for; /* the namespace, after the verdict WAIT */
    bool resumes; /* it is beginning one of those that wait */
    _Atomic uint32_t writing; /* those of `ops` that have begun and are no reads */
    struct ring *ring;
    uint64_t deadline; /* when it must wake by itself; 0: never */
    uint64_t idle_since; /* 0: it is busy */
    /* Learned, nanoseconds: how long it looks at doorbells in memory again and again before it does so less often, and
       how long it watches shadow doorbells before it asks for a message. */
    uint64_t patience, watch;
    uint64_t looked_at_all; /* doorbells: when; not only at those of queues */
    bool asks; /* it, or main, will not look at shadow doorbells for a while: EventIdx asks the host to ring */
    struct counters counters;
    struct trace *trace; /* NULL: off */
};

/* Its life. False: errno says why; or it waits for a disk that does not answer. */
bool lane_start(struct engine *engine, struct lane *lane);
bool lane_stop(struct lane *lane);
/* With the lock: serve each queue in turn, once, or rest. False: the other thread has taken the lane over, and the lock is
   not ours any more. */
bool lane_round(struct lane *lane);
/* Other commands than the one that it works on. */
bool lane_has_others(struct lane *lane);
uint64_t monotonic_time(void); /* nanoseconds */
/* There is nothing to do, as far as can be seen from outside. */
bool lane_is_quiet(struct lane *lane);
/* With the lock: let main have it first if it wants to, or has paused us. */
void lane_give_way(struct lane *lane);
void lane_wake(struct lane *lane);
void lane_kick(struct lane *lane);
/* The lock, for main: with the next command's end. */
void lane_enter(struct lane *lane);
void lane_leave(struct lane *lane);

#endif
