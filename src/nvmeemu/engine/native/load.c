/* The load of each disk: its bound, which all lanes share, and the commands that wait until there is room. These were
   fetched already, so that commands behind them in their queues, for other disks, go on. */

#include <stdlib.h>

#include "bounds.h"
#include "command.h"
#include "engine.h"
#include "lane.h"
#include "load.h"
#include "op.h"

#define INDEX(lane) ((uint32_t)((lane) - (lane)->engine->lanes))

struct load *load_new(uint32_t lanes)
{
    struct load *load = calloc(1, sizeof(*load) + lanes * sizeof(load->of_lane[0]));

    if (!load)
        return NULL;
    pthread_mutex_init(&load->lock, NULL);
    for (uint32_t i = 0; i < lanes; i++)
        load->of_lane[i].waiting.end = &load->of_lane[i].waiting.first;
    return load;
}

/* By whoever lets go of it last: the engine, or the last command of a disk that is gone. */
static void load_free(struct load *load)
{
    pthread_mutex_destroy(&load->lock);
    free(load);
}

/* With its lock. A lane that uses it has its part of all there is, but may always have one command. */
static bool has_room(const struct engine *engine, const struct load *load, const struct part *mine)
{
    uint32_t lanes = load->lanes + (mine->used == 0);

    if (load->ops >= MAX_OPS || load->bytes >= engine->most_held)
        return false;
    return mine->ops == 0 || (mine->ops < MAX_OPS / lanes && mine->bytes < engine->most_held / lanes);
}

static void use(struct load *load, struct part *mine)
{
    load->lanes += mine->used++ == 0;
}

static void unuse(struct load *load, struct part *mine)
{
    load->lanes -= --mine->used == 0;
}

bool load_take(struct lane *lane, struct load *load, uint32_t size)
{
    struct part *mine = &load->of_lane[INDEX(lane)];

    if (mine->waiting.first && !lane->resumes) /* nobody goes before those */
        return false;
    pthread_mutex_lock(&load->lock);
    bool is_taken = has_room(lane->engine, load, mine);
    if (is_taken) {
        load->ops++;
        load->bytes += size;
        mine->ops++;
        mine->bytes += size;
        use(load, mine);
    }
    pthread_mutex_unlock(&load->lock);
    return is_taken;
}

void load_give(struct lane *lane, struct load *load, uint32_t size)
{
    struct engine *engine = lane->engine;
    struct part *mine = &load->of_lane[INDEX(lane)];

    pthread_mutex_lock(&load->lock);
    load->ops--;
    load->bytes -= size;
    mine->ops--;
    mine->bytes -= size;
    unuse(load, mine);
    bool is_unused = load->is_gone && load->lanes == 0;
    for (uint32_t i = 0; load->has_waited && i < engine->lane_count; i++)
        if (load->of_lane[i].used > load->of_lane[i].ops && &engine->lanes[i] != lane)
            lane_wake(&engine->lanes[i]);
    pthread_mutex_unlock(&load->lock);
    if (is_unused) {
        load_free(load);
        atomic_fetch_sub(&engine->leaving, 1);
    }
}

void load_wait(struct lane *lane, uint32_t nsid, struct op *op)
{
    struct load *load = lane->engine->loads[nsid];
    struct part *mine = &load->of_lane[INDEX(lane)];

    op_list_add(&mine->waiting, op);
    lane->waiting++;
    op->sq->waiting++;
    pthread_mutex_lock(&load->lock);
    load->has_waited = true;
    use(load, mine);
    pthread_mutex_unlock(&load->lock);
}

static struct op *take_waiting(struct lane *lane, struct load *load)
{
    struct part *mine = &load->of_lane[INDEX(lane)];
    struct op *op = op_list_take(&mine->waiting);

    if (!op)
        return NULL;
    lane->waiting--;
    op->sq->waiting--;
    pthread_mutex_lock(&load->lock);
    unuse(load, mine);
    pthread_mutex_unlock(&load->lock);
    return op;
}

static bool is_ready(struct lane *lane, struct load *load)
{
    const struct part *mine = &load->of_lane[INDEX(lane)];

    if (!mine->waiting.first || atomic_load_explicit(&lane->engine->punts_full, memory_order_relaxed))
        return false;
    pthread_mutex_lock(&load->lock);
    bool is_ready = has_room(lane->engine, load, mine);
    pthread_mutex_unlock(&load->lock);
    return is_ready;
}

bool load_has_ready(struct lane *lane)
{
    for (uint32_t nsid = 0; lane->waiting > 0 && nsid <= MAX_NSID; nsid++)
        if (is_ready(lane, lane->engine->loads[nsid]))
            return true;
    return false;
}

/* The first one that waits. False: another lane was quicker, or main has enough. */
static bool resume_next(struct lane *lane, uint32_t nsid)
{
    struct load *load = lane->engine->loads[nsid];

    lane->resumes = true;
    enum verdict verdict = op_resume(lane, load->of_lane[INDEX(lane)].waiting.first);
    lane->resumes = false;
    if (verdict == WAIT && lane->waits_for != nsid) { /* a Flush of all namespaces may be for another one by now */
        load_wait(lane, lane->waits_for, take_waiting(lane, load));
        return true;
    }
    if (verdict == WAIT || verdict == PUNT)
        return false;
    op_free(lane, take_waiting(lane, load));
    return true;
}

bool load_resume(struct lane *lane)
{
    bool any = false;

    for (uint32_t nsid = 0; lane->waiting > 0 && nsid <= MAX_NSID; nsid++)
        for (int i = 0; i < BURST && is_ready(lane, lane->engine->loads[nsid]); i++) {
            if (atomic_load_explicit(&lane->wanted, memory_order_relaxed) > 0)
                return true;
            if (!resume_next(lane, nsid))
                break;
            any = true;
        }
    return any;
}

void load_drop(struct lane *lane)
{
    struct op *op;

    for (uint32_t nsid = 0; lane->waiting > 0 && nsid <= MAX_NSID; nsid++)
        while ((op = take_waiting(lane, lane->engine->loads[nsid])) != NULL)
            op_free(lane, op);
}

void load_replace(struct engine *engine, uint32_t nsid, struct load *load)
{
    struct load *old = engine->loads[nsid];
    struct op *op;

    engine->loads[nsid] = load;
    for (uint32_t i = 0; i < engine->lane_count; i++)
        while ((op = take_waiting(&engine->lanes[i], old)) != NULL)
            load_wait(&engine->lanes[i], nsid, op);
    pthread_mutex_lock(&old->lock);
    old->is_gone = true;
    bool is_unused = old->lanes == 0;
    atomic_fetch_add(&engine->leaving, !is_unused);
    pthread_mutex_unlock(&old->lock);
    if (is_unused)
        load_free(old);
}

bool loads_new(struct engine *engine, uint32_t lanes)
{
    for (uint32_t nsid = 0; nsid <= MAX_NSID; nsid++)
        if (!(engine->loads[nsid] = load_new(lanes)))
            return false;
    return true;
}

void loads_free(struct engine *engine)
{
    for (uint32_t nsid = 0; nsid <= MAX_NSID; nsid++)
        if (engine->loads[nsid])
            load_free(engine->loads[nsid]);
}
