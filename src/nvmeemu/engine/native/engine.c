/* The engine's life, guest memory, and what the controller is. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "bounds.h"
#include "doorbells.h"
#include "engine.h"
#include "interface.h"
#include "lane.h"
#include "load.h"
#include "memory.h"
#include "news.h"
#include "nvme_spec.h"
#include "queue.h"

#define MOST_PATIENCE 200000 /* nanoseconds */
#define MOST_WATCH 1000000
#define LONG_NAP 8000000
#define WAKE_TIME 1000000 /* idle lanes wake less often than once in this time, all together */

static void enter_all(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->lane_count; i++)
        lane_enter(&engine->lanes[i]);
}

static void leave_all(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->lane_count; i++)
        lane_leave(&engine->lanes[i]);
}

static void kick_all(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->lane_count; i++)
        lane_kick(&engine->lanes[i]);
}

/* --- its life ------------------------------------------------------------------------------------------------------ */

struct engine *engine_new(uint32_t lanes)
{
    struct engine *engine = calloc(1, sizeof(*engine));

    if (!engine)
        return NULL;
    engine->page_size = NVME_PAGE_MIN;
    engine->most_held = UINT32_MAX;
    if (sysconf(_SC_NPROCESSORS_ONLN) > 1) { /* the host may run on another one, though this process may not */
        engine->most_patience = MOST_PATIENCE;
        engine->most_watch = MOST_WATCH;
    }
    engine->longest_nap = lanes > LONG_NAP / WAKE_TIME ? lanes * WAKE_TIME : LONG_NAP;
    for (int i = 0; i <= MAX_NSID; i++)
        engine->disks[i].fd = -1;
    for (int i = 0; i < MAX_VECTORS; i++)
        engine->vectors[i].fd = -1;
    engine->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    engine->lanes = calloc(lanes, sizeof(*engine->lanes));
    bool is_good = engine->eventfd >= 0 && engine->lanes && punts_new(engine) && loads_new(engine, lanes);
    for (uint32_t i = 0; is_good && i < lanes; i++) {
        engine->lane_count++;
        engine->lanes[i].eventfd = engine->lanes[i].handover.eventfd = -1;
        is_good = lane_start(engine, &engine->lanes[i]);
    }
    if (is_good)
        return engine;
    int error = errno;
    engine_free(engine);
    errno = error;
    return NULL;
}

void engine_free(struct engine *engine)
{
    if (engine->lane_count)
        engine_drop(engine);
    for (uint32_t i = 0; i < engine->lane_count; i++)
        if (!lane_stop(&engine->lanes[i]))
            return; /* the thread still needs all of it */
    for (uint32_t i = 0; i < engine->sqs.count; i++)
        free(engine->sqs.items[i]);
    for (int i = 0; i < MAX_VECTORS; i++)
        if (engine->vectors[i].fd >= 0)
            close(engine->vectors[i].fd);
    if (engine->eventfd >= 0)
        close(engine->eventfd);
    doorbells_free(engine);
    free(engine->sqs.items);
    free(engine->cqs.items);
    free(engine->memory.regions);
    loads_free(engine);
    punts_free(engine);
    free(engine->lanes);
    free(engine);
}

/* --- guest memory -------------------------------------------------------------------------------------------------- */

void engine_pause(struct engine *engine)
{
    if (engine->is_paused)
        return;
    engine->is_paused = true;
    for (uint32_t i = 0; i < engine->lane_count; i++) {
        struct lane *lane = &engine->lanes[i];
        lane_enter(lane);
        pthread_mutex_unlock(&lane->lock); /* it goes on once `wanted` is 0: after engine_resume */
    }
}

void engine_resume(struct engine *engine)
{
    if (!engine->is_paused)
        return;
    engine->is_paused = false;
    for (uint32_t i = 0; i < engine->lane_count; i++) {
        struct lane *lane = &engine->lanes[i];
        pthread_mutex_lock(&lane->lock);
        for (uint32_t j = 0; j < lane->sqs.count; j++)
            lane->sqs.items[j]->gap = false;
        for (uint32_t j = 0; j < lane->cqs.count; j++)
            lane->cqs.items[j]->gap = false;
        lane_leave(lane);
        lane_wake(lane);
    }
}

static void forget_regions(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->lane_count; i++)
        engine->lanes[i].guest.hit = NULL;
}

bool engine_map(struct engine *engine, uint64_t iova, uint64_t size, void *memory, bool writable)
{
    struct region region = {iova, size, memory, writable};

    if ((((uintptr_t)memory ^ iova) & 15) != 0) {
        errno = EINVAL;
        return false;
    }
    enter_all(engine);
    forget_regions(engine);
    bool is_added = memory_add(&engine->memory, region);
    leave_all(engine);
    return is_added;
}

bool engine_unmap(struct engine *engine, uint64_t iova)
{
    enter_all(engine);
    forget_regions(engine);
    bool is_removed = memory_remove(&engine->memory, iova);
    leave_all(engine);
    return is_removed;
}

/* --- what the controller is ------------------------------------------------------------------------------------------ */

void engine_set_limits(struct engine *engine, uint64_t page_size, uint64_t transfer, uint32_t most_held,
                       bool has_sgls)
{
    enter_all(engine);
    engine->page_size = page_size;
    engine->transfer = transfer;
    engine->has_sgls = has_sgls;
    engine->most_held = most_held;
    leave_all(engine);
}

bool engine_set_disk(struct engine *engine, uint32_t nsid, const struct disk *disk)
{
    if (nsid == 0 || nsid > MAX_NSID)
        return false;
    enter_all(engine);
    struct disk *old = &engine->disks[nsid];
    bool is_same = old->memory == disk->memory && old->fd == disk->fd && old->failed_sync == disk->failed_sync;
    struct load *load = is_same ? NULL : load_new(engine->lane_count);
    if (load)
        load_replace(engine, nsid, load);
    *old = *disk;
    atomic_store(&engine->writes_wait[nsid], false);
    leave_all(engine);
    kick_all(engine);
    return is_same || load;
}

void engine_set_flush_all(struct engine *engine, uint32_t nsid)
{
    enter_all(engine);
    engine->flush_all = nsid;
    leave_all(engine);
}

void engine_set_vector(struct engine *engine, uint32_t vector, int eventfd)
{
    if (vector >= MAX_VECTORS)
        return;
    int copy = eventfd < 0 ? -1 : fcntl(eventfd, F_DUPFD_CLOEXEC, 3);
    enter_all(engine);
    int before = atomic_exchange(&engine->vectors[vector].fd, copy);
    leave_all(engine);
    if (before >= 0)
        close(before);
}

void engine_signal_all(struct engine *engine)
{
    for (uint32_t i = 0; i < engine->cqs.count; i++) {
        struct cq *cq = as_cq(engine->cqs.items[i]);
        lane_enter(cq->queue.lane);
        queue_look(&cq->queue); /* nobody needed to know until now */
        if (cq->posted == 0 && atomic_load(&cq->queue.host) != atomic_load(&cq->queue.ours))
            cq->posted = 1;
        lane_leave(cq->queue.lane);
    }
    kick_all(engine);
}

void engine_set_coalescing(struct engine *engine, uint64_t nanoseconds, uint32_t completions)
{
    enter_all(engine);
    atomic_store(&engine->coalesce_time, nanoseconds);
    atomic_store(&engine->coalesce_count, completions);
    for (uint32_t i = 0; i < MAX_VECTORS; i++)
        atomic_store(&engine->vectors[i].is_coalesced, false);
    for (uint32_t i = 0; i < engine->cqs.count; i++) { /* what was held back for the old values is raised now */
        struct cq *cq = as_cq(engine->cqs.items[i]);
        if (cq->ien && cq->vector < MAX_VECTORS)
            cq->posted += atomic_exchange(&engine->vectors[cq->vector].held, 0);
    }
    leave_all(engine);
    kick_all(engine);
}

void engine_coalesce_vector(struct engine *engine, uint32_t vector)
{
    if (vector < MAX_VECTORS)
        atomic_store(&engine->vectors[vector].is_coalesced, true);
}

void engine_set_test_time(struct engine *engine, uint64_t nanoseconds)
{
    atomic_store(&engine->test_time, nanoseconds);
    atomic_store(&engine->has_test_time, true);
    kick_all(engine);
}
