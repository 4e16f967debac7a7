/* What main does with queues: they come, go, and take completions from Python. */

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "bounds.h"
#include "control.h"
#include "doorbells.h"
#include "engine.h"
#include "interface.h"
#include "lane.h"
#include "load.h"
#include "news.h"
#include "queue.h"

static bool list_add(struct queue_list *list, struct queue *queue)
{
    if (list->count == list->room) {
        uint32_t room = list->room ? list->room * 2 : 16;
        struct queue **items = realloc(list->items, room * sizeof(*items));
        if (!items)
            return false;
        list->items = items;
        list->room = room;
    }
    list->items[list->count++] = queue;
    return true;
}

static void list_remove(struct queue_list *list, const struct queue *queue)
{
    for (uint32_t i = 0; i < list->count; i++) {
        if (list->items[i] == queue) {
            list->count--;
            memmove(&list->items[i], &list->items[i + 1], (list->count - i) * sizeof(*list->items));
            return;
        }
    }
}

/* NULL, and the queue is gone, if there is no memory for it. */
static struct queue *queue_add(struct queue *queue, struct queue_list *all, struct queue_list *of_lane)
{
    struct lane *lane = queue->lane;

    lane_enter(lane);
    bool is_added = list_add(all, queue);
    if (is_added && !list_add(of_lane, queue)) {
        list_remove(all, queue);
        is_added = false;
    }
    doorbell_own(lane->engine, queue->doorbell, is_added ? queue : NULL);
    lane_leave(lane);
    lane_wake(lane);
    if (!is_added)
        free(queue);
    return is_added ? queue : NULL;
}

struct cq *engine_add_cq(struct engine *engine, uint64_t id, uint32_t qid, uint64_t iova, uint32_t entries,
                         uint32_t vector, bool ien)
{
    struct cq *cq = calloc(1, sizeof(*cq));
    struct lane *lane = &engine->lanes[engine->cqs.count % engine->lane_count];

    if (!cq)
        return NULL;
    cq->queue = (struct queue){.id = id, .lane = lane, .iova = iova, .entries = entries, .qid = qid};
    cq->queue.doorbell = 2 * qid + 1;
    cq->vector = vector;
    cq->ien = ien;
    cq->phase = 1;
    return as_cq(queue_add(&cq->queue, &engine->cqs, &lane->cqs));
}

struct sq *engine_add_sq(struct engine *engine, uint64_t id, struct cq *cq, uint32_t qid, uint64_t iova,
                         uint32_t entries, uint32_t head, uint32_t tail)
{
    struct sq *sq = calloc(1, sizeof(*sq));
    struct lane *lane = cq->queue.lane;

    if (!sq)
        return NULL;
    sq->queue = (struct queue){.id = id, .lane = lane, .iova = iova, .entries = entries, .qid = qid};
    sq->queue.doorbell = 2 * qid;
    sq->queue.ours = head;
    sq->queue.host = tail;
    sq->cq = cq;
    return as_sq(queue_add(&sq->queue, &engine->sqs, &lane->sqs));
}

void engine_stop_sq(struct sq *sq)
{
    struct lane *lane = sq->queue.lane;

    lane_enter(lane);
    if (!sq->stopped) {
        sq->stopped = true;
        sq_forget_owed(sq, UINT32_MAX);
        list_remove(&lane->sqs, &sq->queue);
    }
    queue_tell(&sq->queue, NOTICE_IDLE); /* counts only once nothing is under way */
    lane_leave(lane);
}

void engine_hold_sq(struct sq *sq, bool is_held)
{
    lane_enter(sq->queue.lane);
    sq->held = is_held;
    lane_leave(sq->queue.lane);
    lane_wake(sq->queue.lane);
}

void sq_leave_lane(struct sq *sq)
{
    lane_enter(sq->queue.lane);
    sq_forget_owed(sq, UINT32_MAX);
    lane_leave(sq->queue.lane);
}

void sq_forget_owed(struct sq *sq, uint32_t commands)
{
    uint32_t number = commands < sq->owed ? commands : sq->owed;

    sq->owed -= number;
    sq->queue.lane->owed -= number;
}

void engine_remove_sq(struct engine *engine, struct sq *sq)
{
    doorbell_own(engine, sq->queue.doorbell, NULL);
    if (doorbell_is_rung(engine, sq->queue.doorbell))
        engine_notify(engine); /* the lane did not look any more */
    list_remove(&engine->sqs, &sq->queue);
    sq_leave_lane(sq);
    free(sq);
}

static void cq_free(struct cq *cq)
{
    free(cq->waiting);
    free(cq);
}

void engine_remove_cq(struct engine *engine, struct cq *cq)
{
    struct lane *lane = cq->queue.lane;

    lane_enter(lane);
    list_remove(&lane->cqs, &cq->queue);
    doorbell_own(engine, cq->queue.doorbell, NULL);
    lane_leave(lane);
    list_remove(&engine->cqs, &cq->queue);
    cq_free(cq);
}

void engine_drop(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->lane_count; i++) {
        struct lane *lane = &engine->lanes[i];
        lane_enter(lane);
        lane->sqs.count = lane->cqs.count = 0;
        load_drop(lane);
        for (uint32_t j = 0; j < engine->sqs.count; j++) {
            struct sq *sq = as_sq(engine->sqs.items[j]);
            if (sq->queue.lane == lane) {
                sq->stopped = sq->dropped = true;
                sq_forget_owed(sq, UINT32_MAX);
            }
        }
        lane_leave(lane);
    }
    punts_drop(engine);
    for (uint32_t i = 0; i < MAX_VECTORS; i++)
        atomic_store(&engine->vectors[i].held, 0);
    for (uint32_t i = 0; i < MAX_DOORBELLS; i++)
        doorbell_own(engine, i, NULL);
    for (uint32_t i = 0; i < engine->cqs.count; i++)
        cq_free(as_cq(engine->cqs.items[i]));
    engine->cqs.count = 0;
    atomic_store(&engine->held, false);
    engine_notify(engine); /* engine_events frees what nothing holds any more */
}

void engine_hold(struct engine *engine, bool is_held)
{
    atomic_store(&engine->held, is_held);
    for (uint32_t i = 0; i < engine->lane_count; i++) {
        struct lane *lane = &engine->lanes[i];
        lane_enter(lane); /* once it has the lock, no command is between its fetch and its end */
        lane_leave(lane);
        lane_wake(lane);
    }
}

void queue_set_shadow(struct queue *queue, uint64_t value, uint64_t event)
{
    lane_enter(queue->lane);
    queue->shadow = (struct shadow){value, event, true};
    lane_leave(queue->lane);
    lane_wake(queue->lane);
}

bool queue_has_gap(struct queue *queue)
{
    lane_enter(queue->lane);
    bool gap = queue->gap;
    lane_leave(queue->lane);
    return gap;
}

bool engine_post(struct cq *cq, uint32_t sqid, uint32_t sqhd, uint16_t cid, uint32_t dw0, uint16_t field,
                 bool wrong_phase)
{
    struct lane *lane = cq->queue.lane;
    struct queue *sq = 2 * sqid < MAX_DOORBELLS ? lane->engine->by_doorbell[2 * sqid] : NULL;

    lane_enter(lane);
    uint32_t posted = cq->posted;
    if (sq) { /* by now the lane may have told a later head, which must not go back */
        sqhd = queue_ours(sq);
        sq_forget_owed(as_sq(sq), 1);
    }
    uint64_t high = completion_high(sqhd, sqid, cid, field) | (uint64_t)wrong_phase << HIGH_SHIFT(PHASE);
    bool is_posted = cq_post(cq, dw0, high);
    bool is_coalesced = cq_is_coalesced(cq);
    if (is_posted && !is_coalesced)
        cq->posted = posted; /* its interrupt is main's */
    lane_leave(lane);
    if (is_coalesced)
        lane_kick(lane);
    if (lane->trace)
        engine_notify(lane->engine);
    return is_posted;
}

bool engine_has_room(struct cq *cq)
{
    struct lane *lane = cq->queue.lane;

    lane_enter(lane);
    bool has_room = cq->waiting_count == 0 && cq_has_room(cq);
    cq->main_waits = !has_room;
    lane_leave(lane);
    return has_room;
}

void engine_drop_waiting(struct cq *cq, uint32_t sqid)
{
    lane_enter(cq->queue.lane);
    cq_drop_waiting(cq, sqid);
    lane_leave(cq->queue.lane);
}

void engine_look(struct cq *cq)
{
    struct lane *lane = cq->queue.lane;

    lane_enter(lane);
    bool asks = lane->asks;
    lane->asks = true; /* main looks again only when it hears of something */
    queue_look(&cq->queue);
    lane->asks = asks;
    lane_leave(lane);
}
