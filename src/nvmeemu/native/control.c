/* What main does with queues: they come, go, and take completions from Python. */

#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

#include "engine.h"

#define LIST_ADD(list, item) list_add((void ***)&(list)->items, &(list)->count, &(list)->room, item)
#define LIST_REMOVE(list, item) list_remove((void **)(list)->items, &(list)->count, item)

static bool list_add(void ***items, uint32_t *count, uint32_t *room, void *item)
{
    if (*count == *room) {
        uint32_t more = *room ? *room * 2 : 16;
        void **longer = realloc(*items, more * sizeof(*longer));
        if (!longer)
            return false;
        *items = longer;
        *room = more;
    }
    (*items)[(*count)++] = item;
    return true;
}

static void list_remove(void **items, uint32_t *count, const void *item)
{
    for (uint32_t i = 0; i < *count; i++) {
        if (items[i] == item) {
            memmove(&items[i], &items[i + 1], (*count - i - 1) * sizeof(*items));
            --*count;
            return;
        }
    }
}

struct cq *engine_add_cq(struct engine *engine, uint64_t id, uint64_t iova, uint32_t entries, uint32_t vector, bool ien)
{
    struct cq *cq = calloc(1, sizeof(*cq));
    struct lane *lane = &engine->lanes[engine->cqs.count % engine->lane_count];

    if (!cq)
        return NULL;
    cq->id = id;
    cq->lane = lane;
    cq->iova = iova;
    cq->entries = entries;
    cq->vector = vector;
    cq->ien = ien;
    cq->phase = 1;
    lane_enter(lane);
    bool is_added = LIST_ADD(&lane->cqs, cq);
    if (is_added && !LIST_ADD(&engine->cqs, cq)) {
        LIST_REMOVE(&lane->cqs, cq);
        is_added = false;
    }
    lane_leave(lane);
    if (!is_added)
        free(cq);
    return is_added ? cq : NULL;
}

struct sq *engine_add_sq(struct engine *engine, uint64_t id, struct cq *cq, uint32_t qid, uint64_t iova,
                         uint32_t entries, uint32_t head, uint32_t tail)
{
    struct sq *sq = calloc(1, sizeof(*sq));
    struct lane *lane = cq->lane;

    if (!sq)
        return NULL;
    sq->id = id;
    sq->lane = lane;
    sq->cq = cq;
    sq->qid = qid;
    sq->iova = iova;
    sq->entries = entries;
    sq->head = head;
    sq->tail = tail;
    lane_enter(lane);
    bool is_added = LIST_ADD(&lane->sqs, sq);
    if (is_added && !LIST_ADD(&engine->sqs, sq)) {
        LIST_REMOVE(&lane->sqs, sq);
        is_added = false;
    }
    lane_leave(lane);
    lane_wake(lane);
    if (!is_added)
        free(sq);
    return is_added ? sq : NULL;
}

void engine_stop_sq(struct engine *engine, struct sq *sq)
{
    struct lane *lane = sq->lane;

    (void)engine;
    lane_enter(lane);
    if (!sq->stopped) {
        sq->stopped = true;
        LIST_REMOVE(&lane->sqs, sq);
        }
    sq_tell(sq, NOTICE_IDLE); /* counts only once nothing is under way */
    lane_leave(lane);
}

void engine_hold_sq(struct sq *sq, bool is_held)
{
    lane_enter(sq->lane);
    sq->held = is_held;
    lane_leave(sq->lane);
    lane_wake(sq->lane);
}

void engine_remove_sq(struct engine *engine, struct sq *sq)
{
    LIST_REMOVE(&engine->sqs, sq);
    free(sq);
}

static void cq_free(struct cq *cq)
{
    free(cq->waiting);
    free(cq);
}

void engine_remove_cq(struct engine *engine, struct cq *cq)
{
    struct lane *lane = cq->lane;

    lane_enter(lane);
    LIST_REMOVE(&lane->cqs, cq);
    lane_leave(lane);
    LIST_REMOVE(&engine->cqs, cq);
    cq_free(cq);
}

/* Commands that main has not taken. */
static void drop_punts(struct engine *engine)
{
    pthread_mutex_lock(&engine->punt_lock);
    for (; engine->punt_count > 0; engine->punt_count--) {
        atomic_fetch_sub(&engine->punts[engine->punt_first].sq->under_way, 1);
        engine->punt_first = (engine->punt_first + 1) % engine->punt_room;
    }
    atomic_store(&engine->punts_full, false);
    pthread_mutex_unlock(&engine->punt_lock);
}

void engine_drop(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->lane_count; i++) {
        struct lane *lane = &engine->lanes[i];
        lane_enter(lane);
        lane->sqs.count = lane->cqs.count = 0;
            for (uint32_t j = 0; j < engine->sqs.count; j++) {
            struct sq *sq = engine->sqs.items[j];
            if (sq->lane == lane)
                sq->stopped = sq->dropped = true;
        }
        lane_leave(lane);
    }
    drop_punts(engine);
    for (uint32_t i = 0; i < engine->cqs.count; i++)
        cq_free(engine->cqs.items[i]);
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

void sq_set_shadow(struct sq *sq, uint64_t value, uint64_t event)
{
    lane_enter(sq->lane);
    sq->shadow = (struct shadow){value, event, true};
    lane_leave(sq->lane);
    lane_wake(sq->lane);
}

void cq_set_shadow(struct cq *cq, uint64_t value, uint64_t event)
{
    lane_enter(cq->lane);
    cq->shadow = (struct shadow){value, event, true};
    lane_leave(cq->lane);
    lane_wake(cq->lane);
}

bool engine_post(struct cq *cq, uint32_t sqid, uint32_t sqhd, uint16_t cid, uint32_t dw0, uint16_t field)
{
    lane_enter(cq->lane);
    uint32_t posted = cq->posted;
    bool is_posted = cq_post(cq, dw0, completion_high(sqhd, sqid, cid, field));
    if (is_posted)
        cq->posted = posted; /* its interrupt is main's */
    lane_leave(cq->lane);
    return is_posted;
}

bool engine_has_room(struct cq *cq)
{
    lane_enter(cq->lane);
    bool has_room = cq->waiting_count == 0 && cq_has_room(cq);
    lane_leave(cq->lane);
    return has_room;
}

void engine_drop_waiting(struct cq *cq, uint32_t sqid)
{
    lane_enter(cq->lane);
    cq_drop_waiting(cq, sqid);
    lane_leave(cq->lane);
}

void cq_look(struct cq *cq)
{
    lane_enter(cq->lane);
    cq_refresh(cq);
    lane_leave(cq->lane);
}

bool engine_sq_gap(struct sq *sq)
{
    lane_enter(sq->lane);
    bool gap = sq->gap;
    lane_leave(sq->lane);
    return gap;
}

bool engine_cq_gap(struct cq *cq)
{
    lane_enter(cq->lane);
    bool gap = cq->gap;
    lane_leave(cq->lane);
    return gap;
}
