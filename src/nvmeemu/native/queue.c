/* Submission and completion queues in guest memory. Base 1.4, 4.1 and 4.6. What is here is called with the lane's
   lock, but for what main calls when the host rings. */

#include <stdlib.h>

#include "engine.h"

/* Where a field lies in the second half of a completion. */
#define HIGH_SHIFT(field) (NVME_COMPLETION_##field##_BIT - 64)

static uint32_t ring_distance(uint32_t from, uint32_t to, uint32_t entries)
{
    return to >= from ? to - from : to + entries - from;
}

void sq_tell(struct sq *sq, enum notice notice)
{
    atomic_fetch_or(&sq->notices, notice);
    engine_notify(sq->lane->engine);
}

void cq_tell(struct cq *cq, enum notice notice)
{
    atomic_fetch_or(&cq->notices, notice);
    engine_notify(cq->lane->engine);
}

/* A shadow doorbell's value. If it is the one that we know, ask the host to ring when it goes on, and look again: it
   may have written before it could see the question. False: its memory is not there. */
static bool shadow_read(struct lane *lane, const struct shadow *shadow, uint32_t known, uint32_t *value)
{
    uint32_t *at = (uint32_t *)(void *)guest_whole(&lane->guest, shadow->value, sizeof(*at));
    if (!at)
        return false;
    *value = __atomic_load_n(at, __ATOMIC_ACQUIRE);
    if (*value != known)
        return true;
    uint32_t *event = (uint32_t *)(void *)guest_whole(&lane->guest, shadow->event, sizeof(*event));
    if (!event)
        return false;
    __atomic_store_n(event, known, __ATOMIC_RELAXED);
    atomic_thread_fence(memory_order_seq_cst);
    *value = __atomic_load_n(at, __ATOMIC_ACQUIRE);
    return true;
}

/* --- completion queues ------------------------------------------------------------------------------------------- */

void cq_refresh(struct cq *cq)
{
    uint32_t head = atomic_load(&cq->head), value;

    if (cq->shadow.used && shadow_read(cq->lane, &cq->shadow, head, &value) && value < cq->entries)
        atomic_store(&cq->head, value);
}

static bool is_full(const struct cq *cq)
{
    uint32_t next = atomic_load_explicit(&cq->tail, memory_order_relaxed) + 1;

    return (next == cq->entries ? 0 : next) == atomic_load(&cq->head);
}

bool cq_has_room(struct cq *cq)
{
    if (!is_full(cq))
        return true;
    if (cq->shadow.used) {
        cq_refresh(cq);
        return !is_full(cq);
    }
    /* Said before looking again: main writes the head first and looks at this then. */
    atomic_store(&cq->starved, true);
    if (is_full(cq))
        return false;
    atomic_store(&cq->starved, false);
    return true;
}

/* Two aligned 64-bit stores, the one with the phase tag last: the host polls that bit. */
static bool cq_write(struct cq *cq, uint64_t low, uint64_t high)
{
    uint32_t tail = atomic_load_explicit(&cq->tail, memory_order_relaxed);

    if (cq->gap || !cq_has_room(cq))
        return false;
    uint64_t *entry =
        (uint64_t *)(void *)guest_whole(&cq->lane->guest, cq->iova + (uint64_t)tail * NVME_CQE_SIZE, NVME_CQE_SIZE);
    if (!entry) {
        cq->gap = true;
        cq_tell(cq, NOTICE_GAP);
        return false;
    }
    uint32_t next = tail + 1 == cq->entries ? 0 : tail + 1;
    /* Before the entry: a host that has seen it may ring at once. */
    atomic_store_explicit(&cq->tail, next, memory_order_relaxed);
    __atomic_store_n(&entry[0], low, __ATOMIC_RELAXED);
    __atomic_store_n(&entry[1], high | (uint64_t)cq->phase << HIGH_SHIFT(PHASE), __ATOMIC_RELEASE);
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
        abort(); /* without memory for it the host would wait for ever */
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

bool cq_can_post_waiting(struct cq *cq)
{
    return cq->waiting_count > 0 && !cq->gap && cq_has_room(cq);
}

/* --- submission queues ------------------------------------------------------------------------------------------- */

uint64_t completion_high(uint32_t sqhd, uint32_t sqid, uint16_t cid, uint16_t field)
{
    return (uint64_t)sqhd << HIGH_SHIFT(SQHD) | (uint64_t)sqid << HIGH_SHIFT(SQID) |
           (uint64_t)cid << HIGH_SHIFT(CID) | (uint64_t)field << HIGH_SHIFT(STATUS);
}

void sq_complete(struct sq *sq, uint16_t cid)
{
    cq_post(sq->cq, 0, completion_high(atomic_load_explicit(&sq->head, memory_order_relaxed), sq->qid, cid, 0));
}

static void sq_miss(struct sq *sq)
{
    sq->gap = true;
    sq_tell(sq, NOTICE_GAP);
}

bool sq_refresh(struct sq *sq)
{
    uint32_t tail = atomic_load_explicit(&sq->tail, memory_order_relaxed), value;

    if (!sq->shadow.used)
        return false;
    if (!shadow_read(sq->lane, &sq->shadow, tail, &value)) {
        sq_miss(sq);
        return false;
    }
    if (value == tail || value >= sq->entries)
        return false;
    atomic_store_explicit(&sq->tail, value, memory_order_relaxed);
    return true;
}

bool sq_is_runnable(struct sq *sq)
{
    struct lane *lane = sq->lane;

    if (sq->gap || sq->held || sq->stopped || lane->ops >= MAX_OPS || lane->op_bytes >= MAX_OP_BYTES)
        return false;
    if (atomic_load_explicit(&lane->engine->held, memory_order_relaxed) ||
        atomic_load_explicit(&lane->engine->punts_full, memory_order_relaxed))
        return false;
    if (sq->cq->waiting_count > 0 || !cq_has_room(sq->cq))
        return false;
    return atomic_load_explicit(&sq->head, memory_order_relaxed) !=
               atomic_load_explicit(&sq->tail, memory_order_acquire) ||
           sq_refresh(sq);
}

bool sq_step(struct sq *sq)
{
    struct nvme_read_write command;
    struct lane *lane = sq->lane;
    uint32_t head = atomic_load_explicit(&sq->head, memory_order_relaxed);

    if (!sq_is_runnable(sq))
        return false;
    const uint8_t *entry = guest_whole(&lane->guest, sq->iova + (uint64_t)head * NVME_SQE_SIZE, NVME_SQE_SIZE);
    if (!entry) {
        sq_miss(sq);
        return false;
    }
    memcpy(&command, entry, sizeof(command)); /* once: the host may change it at any moment */
    enum verdict verdict = command_run(lane, sq, &command);
    if (verdict == PUNT && !engine_punt(lane->engine, sq, &command, false))
        return false; /* nothing was done: it is fetched again */
    atomic_store_explicit(&sq->head, head + 1 == sq->entries ? 0 : head + 1, memory_order_release);
    if (verdict == DONE)
        sq_complete(sq, command.cid);
    return true;
}

/* --- the host rings: main, without the lock ---------------------------------------------------------------------- */

bool sq_ring(struct sq *sq, uint32_t value)
{
    uint32_t tail = atomic_load_explicit(&sq->tail, memory_order_relaxed);

    if (value >= sq->entries || value == tail)
        return false;
    uint32_t there = ring_distance(atomic_load_explicit(&sq->head, memory_order_acquire), tail, sq->entries);
    if (there + ring_distance(tail, value, sq->entries) >= sq->entries)
        return false;
    atomic_store(&sq->tail, value);
    lane_wake(sq->lane);
    return true;
}

void sq_rung(struct sq *sq)
{
    lane_wake(sq->lane);
}

bool cq_ring(struct cq *cq, uint32_t value)
{
    uint32_t head = atomic_load_explicit(&cq->head, memory_order_relaxed);

    if (value >= cq->entries || value == head)
        return false;
    if (ring_distance(head, value, cq->entries) >
        ring_distance(head, atomic_load_explicit(&cq->tail, memory_order_acquire), cq->entries))
        return false;
    atomic_store(&cq->head, value);
    if (atomic_exchange(&cq->starved, false))
        lane_wake(cq->lane);
    return true;
}

void cq_rung(struct cq *cq)
{
    lane_wake(cq->lane);
}

uint32_t sq_head(struct sq *sq)
{
    return atomic_load(&sq->head);
}

uint32_t sq_tail(struct sq *sq)
{
    return atomic_load(&sq->tail);
}

uint32_t cq_head(struct cq *cq)
{
    return atomic_load(&cq->head);
}

uint32_t cq_tail(struct cq *cq)
{
    return atomic_load(&cq->tail);
}
