/* How the host rings: by messages, in shadow doorbells, or in the doorbells' page, which it has mapped like a client.
   The page may be given anything; what the engine tells of it is compared with what was written. */

#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "host.h"

static uint32_t distance(uint32_t from, uint32_t to, uint32_t entries)
{
    return (to + entries - from) % entries;
}

void host_map_doorbells(struct host *host)
{
    int fd = engine_map_doorbells(host->engine);
    void *page = fd < 0 ? MAP_FAILED : mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, NVME_DOORBELLS);

    if (page == MAP_FAILED)
        fault("no page of doorbells");
    host->doorbells = page;
}

/* --- whose doorbell it is ----------------------------------------------------------------------------------------- */

static struct host_sq *sq_of(struct host *host, uint32_t number)
{
    uint32_t index = number / 2 - 1;

    return index < QUEUES && !(number & 1) && host->sqs[index].sq ? &host->sqs[index] : NULL;
}

static struct host_cq *cq_of(struct host *host, uint32_t number)
{
    uint32_t index = number / 2 - 1;

    return index < QUEUES && number & 1 && host->cqs[index].cq ? &host->cqs[index] : NULL;
}

static bool has_shadow(struct host *host, uint32_t number)
{
    const struct host_sq *sq = sq_of(host, number);
    const struct host_cq *cq = cq_of(host, number);

    return (sq && sq->has_shadow) || (cq && cq->has_shadow);
}

/* Whether our books can follow: a head that we have not come to yet would let the engine write over what we have not
   seen; and a tail that a paused engine finds later, when it has fetched what is before it, might send it around the
   queue before we count. */
static bool is_countable(struct host *host, uint32_t number, uint32_t value)
{
    const struct host_sq *sq = sq_of(host, number);
    const struct host_cq *cq = cq_of(host, number);

    if (cq && value < cq->entries && value != cq->head) {
        uint32_t ours = queue_ours((struct queue *)cq->cq);
        return !host->is_paused && distance(cq->head, value, cq->entries) > distance(cq->head, ours, cq->entries);
    }
    if (sq && value < sq->entries && host->is_paused) {
        uint32_t known = queue_host((struct queue *)sq->sq);
        return distance(sq->fetched, value, sq->entries) >= distance(sq->fetched, known, sq->entries);
    }
    return true;
}

/* What comes of it is certain: main hears of it. */
static bool is_told(struct host *host, uint32_t number, uint32_t value)
{
    const struct host_sq *sq = sq_of(host, number);
    const struct host_cq *cq = cq_of(host, number);

    if (host->is_paused || value == NOT_RUNG)
        return false;
    if (!sq && !cq)
        return host->is_watched;
    return !has_shadow(host, number) && value >= (sq ? sq->entries : cq->entries);
}

/* --- ringing ------------------------------------------------------------------------------------------------------ */

static void write_page(struct host *host, uint32_t number, uint32_t value)
{
    atomic_store(&host->doorbells[number], value);
    host->rung[number] = value;
}

void host_ring(struct host *host, uint32_t number, uint32_t value, bool by_message)
{
    if (!is_countable(host, number, value))
        return;
    if (by_message || !host->doorbells) {
        if (engine_ring(host->engine, number, value) && host->doorbells && !has_shadow(host, number))
            host->rung[number] = value;
    } else if (number < DOORBELLS) {
        write_page(host, number, value);
        bool is_awaited = is_told(host, number, value);
        host_sync(host);
        if (is_awaited && host->rung[number] != NOT_RUNG)
            fault("a doorbell that main was not told of");
    }
}

void host_ring_sq(struct host *host, unsigned index, uint32_t value)
{
    struct host_sq *sq = &host->sqs[index];

    if (!sq->sq)
        return;
    if (!sq->has_shadow) {
        if (host->doorbells)
            host_ring(host, doorbell(index, false), value, false);
        else
            queue_ring((struct queue *)sq->sq, value);
    } else if (value >= sq->entries) {
        host_write(host, host_shadow(index, false), &value, sizeof(value));
        queue_ring((struct queue *)sq->sq, value);
    } else if (distance(sq->fetched, value, sq->entries) >= distance(sq->fetched, sq->shadow, sq->entries)) {
        /* Otherwise the engine might go around the queue more than once before we count what it has fetched. */
        if (host_write(host, host_shadow(index, false), &value, sizeof(value)))
            sq->shadow = value;
        queue_ring((struct queue *)sq->sq, value);
    }
}

void host_ring_cq(struct host *host, unsigned index)
{
    struct host_cq *cq = &host->cqs[index];

    if (cq->has_shadow)
        host_write(host, host_shadow(index, true), &cq->head, sizeof(cq->head));
    else if (host->doorbells)
        write_page(host, doorbell(index, true), cq->head);
    if (!host->doorbells && !queue_ring((struct queue *)cq->cq, cq->head))
        fault("a right head was refused");
}

/* --- what main hears of it ---------------------------------------------------------------------------------------- */

void host_watch(struct host *host, bool is_watched)
{
    engine_watch(host->engine, is_watched);
    host->is_watched = is_watched && host->doorbells;
    memset(host->rung, 0xff, sizeof(host->rung)); /* NOT_RUNG */
}

void host_forget(struct host *host, uint32_t number)
{
    engine_forget_doorbell(host->engine, number);
    if (number >= DOORBELLS)
        return;
    host->is_watched = host->doorbells != NULL; /* from there on, if not before */
    host->rung[number] = NOT_RUNG;
}

static void hear(struct host *host, uint32_t number, uint32_t value)
{
    if (number >= DOORBELLS || value == NOT_RUNG || host->rung[number] != value)
        fault("a doorbell that nobody has rung");
    host->rung[number] = NOT_RUNG;
}

void host_hear(struct host *host, const struct event *event)
{
    if (event->kind == EVENT_RUNG) {
        if (sq_of(host, (uint32_t)event->id) || cq_of(host, (uint32_t)event->id))
            fault("main was told of a queue's doorbell");
        hear(host, (uint32_t)event->id, event->value);
    }
    for (unsigned i = 0; event->kind == EVENT_BAD_DOORBELL && i < QUEUES; i++) {
        if (host->sqs[i].sq && host->sqs[i].id == event->id)
            hear(host, doorbell(i, false), event->value);
        if (host->cqs[i].cq && host->cqs[i].id == event->id)
            hear(host, doorbell(i, true), event->value);
    }
}
