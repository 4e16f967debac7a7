/* Submission and completion queues in guest memory. Base 1.4, 4.1 and 4.6. What is here is called with the lane's
   lock, but for what main calls when the host rings. */

#include <stdlib.h>

#include "bounds.h"
#include "command.h"
#include "doorbells.h"
#include "engine.h"
#include "interface.h"
#include "lane.h"
#include "memory.h"
#include "news.h"
#include "nvme_spec.h"
#include "op.h"
#include "queue.h"
#include "trace.h"

static uint32_t ring_distance(uint32_t from, uint32_t to, uint32_t entries)
{
    return to >= from ? to - from : to + entries - from;
}

void queue_tell(struct queue *queue, enum notice notice)
{
    atomic_fetch_or(&queue->notices, notice);
    engine_notify(queue->lane->engine);
}

/* --- where the host is ------------------------------------------------------------------------------------------- */

/* False: an index that the host cannot have come to. */
static bool queue_accept(struct queue *queue, uint32_t value)
{
    uint32_t host = atomic_load_explicit(&queue->host, memory_order_relaxed);
    uint32_t ours = atomic_load_explicit(&queue->ours, memory_order_acquire);
    uint32_t room = is_cq(queue) ? ring_distance(host, ours, queue->entries)
                                 : queue->entries - 1 - ring_distance(ours, host, queue->entries);

    if (value >= queue->entries || value == host || ring_distance(host, value, queue->entries) > room)
        return false;
    atomic_store(&queue->host, value);
    return true;
}

/* A shadow doorbell's value. If it is the one that we know, and nobody will look again unasked, ask the host to ring
   when it goes on, and look again: it may have written before it could see the question. False: its memory is not
   there. */
static bool shadow_read(struct lane *lane, const struct shadow *shadow, uint32_t known, uint32_t *value)
{
    uint32_t *at = (uint32_t *)(void *)guest_whole(&lane->guest, shadow->value, sizeof(*at));
    if (!at)
        return false;
    *value = __atomic_load_n(at, __ATOMIC_ACQUIRE);
    if (*value != known || !(lane->asks || lane->engine->doorbells))
        return true;
    uint32_t *event = (uint32_t *)(void *)guest_whole(&lane->guest, shadow->event, sizeof(*event));
    if (!event)
        return false;
    __atomic_store_n(event, known, __ATOMIC_RELAXED);
    atomic_thread_fence(memory_order_seq_cst);
    *value = __atomic_load_n(at, __ATOMIC_ACQUIRE);
    return true;
}

static void queue_miss(struct queue *queue)
{
    queue->gap = true;
    queue_tell(queue, NOTICE_GAP);
}

static bool look_at_shadow(struct queue *queue)
{
    uint32_t known = atomic_load_explicit(&queue->host, memory_order_relaxed), value;

    if (!shadow_read(queue->lane, &queue->shadow, known, &value)) {
        if (!is_cq(queue)) /* a completion queue needs it only once it is full, and then asks again and again */
            queue_miss(queue);
        return false;
    }
    if (value == known || value >= queue->entries)
        return false;
    atomic_store(&queue->host, value);
    if (queue->lane->trace)
        trace_doorbell(queue->lane, queue, true, value);
    return true;
}

/* Find the host's index where it is in memory. True: it has changed. */
bool queue_look(struct queue *queue)
{
    struct engine *engine = queue->lane->engine;

    if (queue->shadow.used)
        return look_at_shadow(queue);
    if (!engine->doorbells)
        return false;
    uint32_t value = doorbell_take(engine, queue->doorbell);
    if (value == NOT_RUNG)
        return false;
    if (queue->lane->trace)
        trace_doorbell(queue->lane, queue, false, value);
    if (queue_accept(queue, value))
        return true;
    atomic_store(&queue->bad, value);
    queue_tell(queue, NOTICE_BAD);
    return false;
}

/* --- completion queues ------------------------------------------------------------------------------------------- */

static bool is_full(const struct cq *cq)
{
    uint32_t next = atomic_load_explicit(&cq->queue.ours, memory_order_relaxed) + 1;

    return (next == cq->queue.entries ? 0 : next) == atomic_load(&cq->queue.host);
}

bool cq_has_room(struct cq *cq)
{
    if (!is_full(cq) || (queue_look(&cq->queue) && !is_full(cq)))
        return true;
    /* Said before looking again: main writes the head first and looks at this then. */
    atomic_store(&cq->starved, true);
    if (is_full(cq))
        return false;
    atomic_store(&cq->starved, false);
    return true;
}

bool cq_is_coalesced(const struct cq *cq)
{
    const struct vector *vectors = cq->queue.lane->engine->vectors;

    return cq->vector < MAX_VECTORS && atomic_load_explicit(&vectors[cq->vector].is_coalesced, memory_order_relaxed);
}

/* Two aligned 64-bit stores, the one with the phase tag last: the host polls that bit. */
static bool cq_write(struct cq *cq, uint64_t low, uint64_t high)
{
    struct queue *queue = &cq->queue;
    uint32_t tail = atomic_load_explicit(&queue->ours, memory_order_relaxed);

    if (queue->gap || !cq_has_room(cq))
        return false;
    uint64_t iova = queue->iova + (uint64_t)tail * NVME_CQE_SIZE;
    uint64_t *entry = (uint64_t *)(void *)guest_whole(&queue->lane->guest, iova, NVME_CQE_SIZE);
    if (!entry) {
        queue_miss(queue);
        return false;
    }
    uint32_t next = tail + 1 == queue->entries ? 0 : tail + 1;
    /* Before the entry: a host that has seen it may ring at once. */
    atomic_store_explicit(&queue->ours, next, memory_order_relaxed);
    high ^= (uint64_t)cq->phase << HIGH_SHIFT(PHASE);
    if (queue->lane->trace)
        trace_completion(queue->lane, cq, tail, low, high);
    __atomic_store_n(&entry[0], low, __ATOMIC_RELAXED);
    __atomic_store_n(&entry[1], high, __ATOMIC_RELEASE);
    if (next == 0)
        cq->phase ^= 1;
    cq->posted++;
    return true;
}

static bool cq_wait(struct cq *cq, uint64_t low, uint64_t high)
{
    if (cq->waiting_count == cq->waiting_room) {
        uint32_t room = cq->waiting_room ? cq->waiting_room * 2 : 16;
        struct completion *waiting = malloc(room * sizeof(*waiting));
        if (!waiting)
            return false;
        for (uint32_t i = 0; i < cq->waiting_count; i++)
            waiting[i] = cq->waiting[(cq->waiting_first + i) % cq->waiting_room];
        free(cq->waiting);
        cq->waiting = waiting;
        cq->waiting_first = 0;
        cq->waiting_room = room;
    }
    cq->waiting[(cq->waiting_first + cq->waiting_count++) % cq->waiting_room] = (struct completion){low, high};
    return true;
}

bool cq_post(struct cq *cq, uint64_t low, uint64_t high)
{
    if (cq->waiting_count == 0 && cq_write(cq, low, high))
        return true;
    if (!cq_wait(cq, low, high))
        queue_tell(&cq->queue, NOTICE_LOST); /* the host would wait for it for ever */
    return false;
}

void cq_drop_waiting(struct cq *cq, uint32_t sqid)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < cq->waiting_count; i++) {
        struct completion one = cq->waiting[(cq->waiting_first + i) % cq->waiting_room];
        if ((uint16_t)(one.high >> HIGH_SHIFT(SQID)) != sqid)
            cq->waiting[(cq->waiting_first + kept++) % cq->waiting_room] = one;
    }
    cq->waiting_count = kept;
}

bool cq_post_waiting(struct cq *cq)
{
    bool posted = false;

    while (cq->waiting_count > 0) {
        const struct completion *next = &cq->waiting[cq->waiting_first];
        if (!cq_write(cq, next->low, next->high))
            break;
        cq->waiting_first = (cq->waiting_first + 1) % cq->waiting_room;
        cq->waiting_count--;
        posted = true;
    }
    return posted;
}

bool cq_is_awaited(struct cq *cq)
{
    return (cq->waiting_count > 0 || cq->main_waits) && !cq->queue.gap && cq_has_room(cq);
}

/* --- submission queues ------------------------------------------------------------------------------------------- */

uint64_t completion_high(uint32_t sqhd, uint32_t sqid, uint16_t cid, uint16_t field)
{
    return (uint64_t)sqhd << HIGH_SHIFT(SQHD) | (uint64_t)sqid << HIGH_SHIFT(SQID) |
           (uint64_t)cid << HIGH_SHIFT(CID) | (uint64_t)field << HIGH_SHIFT(STATUS);
}

void sq_complete(struct sq *sq, uint16_t cid)
{
    uint32_t head = atomic_load_explicit(&sq->queue.ours, memory_order_relaxed);

    cq_post(sq->cq, 0, completion_high(head, sq->queue.qid, cid, 0));
}

bool sq_is_runnable(struct sq *sq)
{
    struct queue *queue = &sq->queue;
    struct lane *lane = queue->lane;

    if (queue->gap || sq->held || sq->stopped || sq->waiting >= MAX_WAITING)
        return false;
    if (atomic_load_explicit(&lane->engine->held, memory_order_relaxed) ||
        atomic_load_explicit(&lane->engine->punts_full, memory_order_relaxed))
        return false;
    if (sq->cq->waiting_count > 0 || !cq_has_room(sq->cq))
        return false;
    return atomic_load_explicit(&queue->ours, memory_order_relaxed) !=
               atomic_load_explicit(&queue->host, memory_order_acquire) ||
           queue_look(queue);
}

bool sq_step(struct sq *sq)
{
    struct nvme_read_write command;
    struct queue *queue = &sq->queue;
    struct lane *lane = queue->lane;
    uint32_t head = atomic_load_explicit(&queue->ours, memory_order_relaxed);

    if (!sq_is_runnable(sq))
        return false;
    const uint8_t *entry = guest_whole(&lane->guest, queue->iova + (uint64_t)head * NVME_SQE_SIZE, NVME_SQE_SIZE);
    if (!entry) {
        queue_miss(queue);
        return false;
    }
    memcpy(&command, entry, sizeof(command)); /* once: the host may change it at any moment */
    if (lane->trace && !sq->is_again)
        trace_fetch(lane, sq, head, &command);
    enum verdict verdict = sq->is_behind_first ? PUNT : command_run(lane, sq, &command);
    if (verdict == WAIT)
        verdict = command_wait(lane, sq, &command) ? PENDING : PUNT;
    sq->is_again = verdict == PUNT && !engine_punt(lane->engine, sq, &command, false, sq->is_behind_first);
    if (sq->is_again)
        return false; /* nothing was done */
    sq->is_behind_first = nvme_read_write_fuse(&command) == NVME_FUSE_FIRST;
    atomic_store_explicit(&queue->ours, head + 1 == queue->entries ? 0 : head + 1, memory_order_release);
    if (verdict == DONE)
        sq_complete(sq, command.cid);
    return true;
}

/* --- the host rings: main, without the lock ---------------------------------------------------------------------- */

bool queue_ring(struct queue *queue, uint32_t value)
{
    struct engine *engine = queue->lane->engine;

    if (!queue->shadow.used) {
        if (engine->doorbells && queue->doorbell < MAX_DOORBELLS) /* the lane judges it */
            atomic_store(&engine->doorbells[queue->doorbell], value);
        else if (!queue_accept(queue, value))
            return false;
        if (is_cq(queue) && !atomic_exchange(&as_cq(queue)->starved, false))
            return true; /* nobody waits for it */
    }
    lane_wake(queue->lane);
    return true;
}

uint32_t queue_host(struct queue *queue)
{
    return atomic_load(&queue->host);
}

uint32_t queue_ours(struct queue *queue)
{
    return atomic_load(&queue->ours);
}
