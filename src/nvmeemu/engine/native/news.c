/* Towards main: commands that are Python's, and what happens to queues. */

#include <stdlib.h>
#include <sys/eventfd.h>

#include "bounds.h"
#include "control.h"
#include "doorbells.h"
#include "engine.h"
#include "interface.h"
#include "lane.h"
#include "news.h"
#include "nvme_spec.h"
#include "queue.h"

#define COMMANDS_PART 8 /* an eighth of the events that are taken at once may be commands */

struct punt {
    struct sq *sq;
    struct nvme_read_write command;
    bool is_behind_first;
};

static void wake_all(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->lane_count; i++)
        lane_wake(&engine->lanes[i]);
}

void engine_notify(struct engine *engine)
{
    if (!atomic_exchange(&engine->notified, true))
        eventfd_write(engine->eventfd, 1);
}

bool punts_new(struct engine *engine)
{
    pthread_mutex_init(&engine->punt_lock, NULL);
    engine->punt_room = MAX_REPORTS;
    engine->punts = calloc(engine->punt_room, sizeof(*engine->punts));
    return engine->punts != NULL;
}

void punts_free(struct engine *engine)
{
    free(engine->punts);
}

void punts_drop(struct engine *engine)
{
    pthread_mutex_lock(&engine->punt_lock);
    for (; engine->punt_count > 0; engine->punt_count--) {
        atomic_fetch_sub(&engine->punts[engine->punt_first].sq->under_way, 1);
        engine->punt_first = (engine->punt_first + 1) % engine->punt_room;
    }
    atomic_store(&engine->punts_full, false);
    pthread_mutex_unlock(&engine->punt_lock);
}

bool engine_punt(struct engine *engine, struct sq *sq, const struct nvme_read_write *command, bool always,
                 bool is_behind_first)
{
    pthread_mutex_lock(&engine->punt_lock);
    bool has_room = engine->punt_count < (always ? engine->punt_room : MAX_PUNTS);
    if (has_room) {
        engine->punts[(engine->punt_first + engine->punt_count++) % engine->punt_room] = (struct punt){sq, *command, is_behind_first};
        atomic_fetch_add(&sq->under_way, 1);
        sq->owed++;
        sq->queue.lane->owed++;
    }
    if (engine->punt_count >= MAX_PUNTS) /* more can come only from disks, and there is room for that */
        atomic_store(&engine->punts_full, true);
    pthread_mutex_unlock(&engine->punt_lock);
    engine_notify(engine);
    return has_room;
}

static bool take_punt(struct engine *engine, struct event *event)
{
    struct sq *sq = NULL;

    pthread_mutex_lock(&engine->punt_lock);
    if (engine->punt_count > 0) {
        const struct punt *punt = &engine->punts[engine->punt_first];
        sq = punt->sq;
        *event = (struct event){.kind = EVENT_PUNT, .value = punt->is_behind_first, .id = sq->queue.id};
        memcpy(event->entry, &punt->command, sizeof(event->entry));
        engine->punt_first = (engine->punt_first + 1) % engine->punt_room;
        engine->punt_count--;
    }
    bool was_full = engine->punt_count < MAX_PUNTS / 2 && atomic_exchange(&engine->punts_full, false);
    pthread_mutex_unlock(&engine->punt_lock);
    if (was_full)
        wake_all(engine);
    if (sq && atomic_fetch_sub(&sq->under_way, 1) == 1 && sq->stopped)
        queue_tell(&sq->queue, NOTICE_IDLE);
    return sq != NULL;
}

int engine_fd(struct engine *engine)
{
    return engine->eventfd;
}

void engine_drain_fd(struct engine *engine)
{
    eventfd_t value;

    eventfd_read(engine->eventfd, &value);
}

bool engine_has_news(struct engine *engine)
{
    return atomic_load(&engine->notified);
}

/* The first notice of a queue, taken. */
static bool take_notice(_Atomic uint32_t *notices, enum notice notice)
{
    return (atomic_load(notices) & notice) && (atomic_fetch_and(notices, ~(uint32_t)notice) & notice);
}

/* One that it has to tell, if there is any. */
static bool queue_event(struct queue *queue, struct event *event)
{
    event->id = queue->id;
    event->kind = EVENT_GAP;
    if (take_notice(&queue->notices, NOTICE_GAP))
        return true;
    event->kind = EVENT_BAD_DOORBELL;
    if (take_notice(&queue->notices, NOTICE_BAD)) {
        event->value = atomic_load(&queue->bad);
        return true;
    }
    if (is_cq(queue)) {
        event->kind = EVENT_LOST;
        if (take_notice(&queue->notices, NOTICE_LOST))
            return true;
        event->kind = EVENT_HEAD;
        if (take_notice(&queue->notices, NOTICE_HEAD))
            return true;
        event->kind = EVENT_POSTED;
        return take_notice(&queue->notices, NOTICE_POSTED);
    }
    struct sq *sq = as_sq(queue);
    event->kind = EVENT_IDLE;
    return take_notice(&queue->notices, NOTICE_IDLE) && sq->stopped && atomic_load(&sq->under_way) == 0;
}

/* At most so many; those of dropped queues are told to nobody. */
static uint32_t queue_events(const struct queue_list *queues, struct event *events, uint32_t most)
{
    uint32_t number = 0;

    for (uint32_t i = 0; i < queues->count; i++) {
        struct queue *queue = queues->items[i];
        if (!is_cq(queue) && as_sq(queue)->dropped)
            continue;
        while (number < most && queue_event(queue, &events[number]))
            number++;
    }
    return number;
}

/* Queues of before a reset go when the last disk has answered. */
static void free_dropped(struct engine *engine)
{
    for (uint32_t i = engine->sqs.count; i-- > 0;) {
        struct sq *sq = as_sq(engine->sqs.items[i]);
        if (sq->dropped && atomic_load(&sq->under_way) == 0) {
            engine->sqs.items[i] = engine->sqs.items[--engine->sqs.count];
            sq_leave_lane(sq);
            free(sq);
        }
    }
}

uint32_t engine_events(struct engine *engine, struct event *events, uint32_t most)
{
    /* Commands come last, and the rest has a part of its own: nothing waits for it, however many commands there are. */
    uint32_t number = 0, others = most - most / COMMANDS_PART;

    if (!atomic_load(&engine->notified))
        return 0;
    engine_drain_fd(engine);
    atomic_store(&engine->notified, false); /* what comes from now on notifies again */
    number += queue_events(&engine->sqs, events, others);
    number += queue_events(&engine->cqs, &events[number], others - number);
    if (number < others && atomic_exchange(&engine->became_idle, false))
        events[number++] = (struct event){.kind = EVENT_ENGINE_IDLE};
    while (number < others && doorbells_next(engine, &events[number]))
        number++;
    bool has_more = number == others;
    uint32_t end = number + most / COMMANDS_PART;
    while (number < end && take_punt(engine, &events[number]))
        number++;
    free_dropped(engine);
    if (has_more || number == end)
        engine_notify(engine); /* there may be more */
    return number;
}

uint32_t engine_in_flight(struct engine *engine, bool only_writes)
{
    uint32_t number = 0;

    atomic_store(&engine->idle_awaited, true);
    for (uint32_t i = 0; i < engine->lane_count; i++) {
        struct lane *lane = &engine->lanes[i];
        lane_enter(lane);
        number += only_writes ? atomic_load(&lane->writing) : lane->ops;
        lane_leave(lane);
    }
    if (number == 0)
        atomic_store(&engine->idle_awaited, false);
    return number;
}

bool engine_is_letting_go(struct engine *engine)
{
    return atomic_load(&engine->leaving) > 0;
}

void engine_wait_until_idle(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->lane_count; i++) {
        struct lane *lane = &engine->lanes[i];
        pthread_mutex_lock(&lane->lock);
        while (!lane_is_quiet(lane) && !engine->is_paused) {
            lane_wake(lane);
            pthread_cond_wait(&lane->quiet, &lane->lock);
        }
        pthread_mutex_unlock(&lane->lock);
    }
}

bool engine_can_wait(struct engine *engine)
{
    return engine->lanes[0].ring != NULL;
}

struct counts engine_counts(struct engine *engine)
{
    struct counts counts = {0};

    for (uint32_t i = 0; i < engine->lane_count; i++) {
        const struct counters *counters = &engine->lanes[i].counters;
        counts.reads += atomic_load(&counters->reads);
        counts.writes += atomic_load(&counters->writes);
        counts.bytes_read += atomic_load(&counters->bytes_read);
        counts.bytes_written += atomic_load(&counters->bytes_written);
        counts.others += atomic_load(&counters->others);
    }
    return counts;
}
