/* The host of the fuzz target. What it gives the engine is allocated anew at each map and freed at each unmap, so that
   the address sanitizer sees every touch of memory that is not (any more) the engine's. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "host.h"

static const struct place PLACES[REGIONS] = {
    [QUEUE_MEMORY] = {0x100000, 4 * PAGE, true, NULL, NULL},
    [LISTS] = {0x200000, 4 * PAGE, true, NULL, NULL},
    [DATA] = {0x300000, 8 * PAGE, true, NULL, NULL},
    [MORE_DATA] = {0x300000 + 8 * PAGE, 4 * PAGE, true, NULL, NULL}, /* behind it, but elsewhere in our memory */
    [ROM] = {0x400000, 2 * PAGE, false, NULL, NULL},
    [TOP] = {-2ull * PAGE, 2 * PAGE, true, NULL, NULL}, /* the end of the address space */
    [ODD] = {0x500000, PAGE + 0x804, true, NULL, NULL},
};
#define SHADOWS (0x100000 + 3 * PAGE)
#define QUEUE_ROOM 0x400 /* bytes for one queue */

void fault(const char *what)
{
    fprintf(stderr, "FAULT: %s\n", what);
    abort();
}

static uint8_t *exact(size_t size)
{
    void *memory;

    if (posix_memalign(&memory, PAGE, size) != 0)
        fault("no memory");
    return memory;
}

/* --- disks: by NSID, 1 for each way that the engine has --- */

static int memory_file(size_t size)
{
    int fd = memfd_create("disk", MFD_CLOEXEC);

    if (fd < 0 || ftruncate(fd, (off_t)size) != 0)
        fault("no memory file");
    return fd;
}

/* A disk with a cache that a sync empties. */
#define DURABLE(number) .is_volatile = true, .failed_sync = &host->failed_syncs[number]

void host_start(struct host *host, bool is_mapped)
{
    uint64_t blocks = DISK_SIZE >> 9;
    int file = memory_file(DISK_SIZE), shorter = memory_file(DISK_SIZE / 2 + 512);
    int unwritable = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

    host->engine = engine_new(1);
    host->disk = exact(DISK_SIZE);
    host->read_only_disk = exact(DISK_SIZE);
    memset(host->disk, 0xD1, DISK_SIZE);
    memset(host->read_only_disk, 0xD2, DISK_SIZE);
    const struct disk disks[] = {
        {.memory = host->disk, .fd = -1, .writable = true, .block_shift = 9, .blocks = blocks},
        {.memory = host->read_only_disk, .fd = -1, .block_shift = 9, .blocks = blocks},
        /* at once */
        {.fd = file, .never_waits = true, .can_read_now = true, .writable = true, .block_shift = 9, .blocks = blocks},
        /* through io_uring */
        {.fd = file, .begins_now = true, .writable = true, .block_shift = 12, .blocks = blocks >> 3, DURABLE(0)},
        /* fails; the lane writes it: memory files have no RWF_NOWAIT */
        {.fd = shorter, .can_read_now = true, .begins_now = true, .writable = true, .block_shift = 9, .blocks = blocks,
         DURABLE(1)},
        /* maybe at once; its writes fail */
        {.fd = unwritable, .can_read_now = true, .writable = true, .block_shift = 9, .blocks = blocks, DURABLE(2),
         .writes_through = true},
        {.fd = -1, .writable = true, .block_shift = 9, .blocks = blocks}, /* Python's */
    };
    if (!host->engine)
        fault("no engine");
    for (uint32_t i = 0; i < sizeof(disks) / sizeof(*disks); i++)
        if (!engine_set_disk(host->engine, i + 1, &disks[i]))
            fault("a disk was refused");
    if (is_mapped)
        host_map_doorbells(host);
}

/* --- memory --- */

void host_pause(struct host *host, bool is_paused)
{
    host->is_paused = is_paused;
    if (is_paused)
        engine_pause(host->engine);
    else
        engine_resume(host->engine);
}

void host_unmap(struct host *host, unsigned region)
{
    struct place *place = &host->places[region];

    if (!place->memory)
        return;
    engine_pause(host->engine);
    if (!engine_unmap(host->engine, place->iova))
        fault("a region was not there");
    memcpy(place->saved, place->memory, place->size);
    free(place->memory);
    place->memory = NULL;
    if (!host->is_paused)
        engine_resume(host->engine);
}

void host_map(struct host *host, unsigned region)
{
    struct place *place = &host->places[region];

    if (place->memory)
        return;
    engine_pause(host->engine);
    place->memory = exact(place->size);
    memcpy(place->memory, place->saved, place->size);
    if (!engine_map(host->engine, place->iova, place->size, place->memory, place->writable))
        fault("a region was refused");
    if (!host->is_paused)
        engine_resume(host->engine);
}

static uint8_t *at(struct host *host, uint64_t iova, size_t size)
{
    for (int i = 0; i < REGIONS; i++) {
        const struct place *place = &host->places[i];
        if (iova - place->iova < place->size)
            return place->memory && place->size - (iova - place->iova) >= size ? place->memory + (iova - place->iova)
                                                                               : NULL;
    }
    return NULL;
}

bool host_write(struct host *host, uint64_t iova, const void *data, size_t size)
{
    uint8_t *place = at(host, iova, size);

    if (place)
        memcpy(place, data, size);
    return place != NULL;
}

bool host_read(struct host *host, uint64_t iova, void *data, size_t size)
{
    const uint8_t *place = at(host, iova, size);

    if (place)
        memcpy(data, place, size);
    return place != NULL;
}

/* --- queues --- */

uint64_t host_shadow(unsigned index, bool is_cq)
{
    return SHADOWS + 16 * index + (is_cq ? 4 : 0); /* the event stands 8 bytes behind */
}

void host_add_queues(struct host *host, unsigned index, uint32_t sq_entries, uint32_t cq_entries, unsigned cq)
{
    struct host_sq *sq = &host->sqs[index];
    struct host_cq *own = &host->cqs[index];
    static const uint8_t zeros[QUEUE_ROOM];

    if (!own->cq) {
        *own = (struct host_cq){
            .id = ++host->ids, .iova = 0x100000 + PAGE + QUEUE_ROOM * index, .entries = cq_entries, .phase = 1};
        if (!host_write(host, own->iova, zeros, sizeof(zeros)))
            return;
        host_forget(host, doorbell(index, true));
        own->cq = engine_add_cq(host->engine, own->id, index + 1, own->iova, cq_entries, index, index == 0);
    }
    if (!sq->sq && host->cqs[cq].cq) {
        *sq = (struct host_sq){
            .id = ++host->ids, .iova = 0x100000 + QUEUE_ROOM * index, .entries = sq_entries, .qid = index + 1, .cq = cq};
        for (uint32_t i = 0; i < sq_entries; i++) /* what a wrong doorbell makes the engine fetch */
            sq->entry[i].cid = (uint16_t)index;
        if (!host_write(host, sq->iova, sq->entry, sizeof(*sq->entry) * sq_entries))
            return;
        host_forget(host, doorbell(index, false));
        sq->sq = engine_add_sq(host->engine, sq->id, host->cqs[cq].cq, sq->qid, sq->iova, sq_entries, 0, 0);
    }
}

void host_submit(struct host *host, unsigned index, struct nvme_read_write *entry)
{
    struct host_sq *sq = &host->sqs[index];

    if (!sq->sq || host->cids + 1 >= CIDS || (sq->tail + 1) % sq->entries == sq->fetched)
        return;
    entry->cid = host->cids + 1;
    if (!host_write(host, sq->iova + sizeof(*entry) * sq->tail, entry, sizeof(*entry)))
        return;
    host->cids++;
    sq->entry[sq->tail] = *entry;
    host->owner[entry->cid] = (uint8_t)index;
    host->cq_of[entry->cid] = (uint8_t)sq->cq;
    sq->tail = (sq->tail + 1) % sq->entries;
}

/* The completion at a place of the queue, or false. */
static bool completion_at(struct host *host, const struct host_cq *cq, uint32_t head, uint32_t phase, uint64_t entry[2])
{
    return host_read(host, cq->iova + 16ull * head, entry, 16) && (entry[1] >> 48 & 1) == phase;
}

/* The second half of an entry of this completion queue. */
static void check_completion(const struct host *host, unsigned index, uint64_t high)
{
    uint16_t cid = (uint16_t)(high >> 32), sqid = (uint16_t)(high >> 16), status = (uint16_t)(high >> 49);

    if (cid >= CIDS || host->completed[cid] >= host->fetched[cid])
        fault("a completion of nothing");
    if (sqid != host->owner[cid] + 1u || (cid >= QUEUES && host->cq_of[cid] != index))
        fault("a completion of another queue's");
    /* A wrong doorbell may run an entry once more, and this time it is the engine's. */
    if (status != 0 && !(host->is_pythons[cid] && status == PYTHONS_STATUS))
        fault("a status that nobody has given");
}

bool host_consume(struct host *host, unsigned index, unsigned most)
{
    struct host_cq *cq = &host->cqs[index];
    uint64_t entry[2];
    bool any = false;

    while (cq->cq && most-- > 0 && completion_at(host, cq, cq->head, cq->phase, entry)) {
        check_completion(host, index, entry[1]);
        host->completed[(uint16_t)(entry[1] >> 32)]++;
        cq->head = (cq->head + 1) % cq->entries;
        cq->phase ^= cq->head == 0;
        any = true;
    }
    if (any)
        host_ring_cq(host, index);
    return any;
}

bool host_complete(struct host *host)
{
    struct nvme_read_write entry;

    if (host->punt_count == 0)
        return false;
    memcpy(&entry, host->punts[0].entry, sizeof(entry));
    memmove(&host->punts[0], &host->punts[1], --host->punt_count * sizeof(*host->punts));
    const struct host_sq *sq = &host->sqs[host->owner[entry.cid]];
    host->is_pythons[entry.cid] = true;
    engine_post(host->cqs[sq->cq].cq, sq->qid, queue_ours((struct queue *)sq->sq), entry.cid, 7, PYTHONS_STATUS, false);
    return true;
}

/* A completion that is in a queue already will be seen; others of this submission queue must not come any more. */
static void forget_commands(struct host *host, unsigned index)
{
    for (unsigned cid = 0; cid < CIDS; cid++)
        if (host->owner[cid] == index)
            host->fetched[cid] = host->completed[cid];
    for (unsigned i = 0; i < QUEUES; i++) {
        const struct host_cq *cq = &host->cqs[i];
        uint32_t head = cq->head, phase = cq->phase;
        uint64_t entry[2];
        while (cq->cq && completion_at(host, cq, head, phase, entry)) {
            uint16_t cid = (uint16_t)(entry[1] >> 32) % CIDS;
            host->fetched[cid] += host->owner[cid] == index;
            head = (head + 1) % cq->entries;
            phase ^= head == 0;
        }
    }
}

void host_remove_sq(struct host *host, unsigned index)
{
    struct host_sq *sq = &host->sqs[index];

    if (!sq->sq || host->is_paused || !host->places[QUEUE_MEMORY].memory)
        return;
    engine_stop_sq(sq->sq);
    host_sync(host);
    while (host_complete(host))
        host_sync(host);
    if (!sq->is_idle)
        fault("a stopped queue is not idle");
    engine_drop_waiting(host->cqs[sq->cq].cq, sq->qid);
    engine_remove_sq(host->engine, sq->sq);
    forget_commands(host, index);
    sq->sq = NULL;
}

void host_reset(struct host *host)
{
    uint8_t before[2 * QUEUE_ROOM], after[2 * QUEUE_ROOM];

    host_pause(host, false);
    engine_drop(host->engine);
    bool is_there = host_read(host, 0x100000 + PAGE, before, sizeof(before));
    memset(host->sqs, 0, sizeof(host->sqs));
    memset(host->cqs, 0, sizeof(host->cqs));
    host->punt_count = 0;
    host_sync(host);
    if (is_there && host_read(host, 0x100000 + PAGE, after, sizeof(after)) && memcmp(before, after, sizeof(after)) != 0)
        fault("a completion after a reset");
    memset(host->fetched, 0, sizeof(host->fetched));
    memset(host->completed, 0, sizeof(host->completed));
    memset(host->is_pythons, 0, sizeof(host->is_pythons));
}

/* --- the books --- */

static void take_events(struct host *host)
{
    struct event events[16];

    while (engine_has_news(host->engine)) {
        uint32_t number = engine_events(host->engine, events, 16);
        for (uint32_t i = 0; i < number; i++) {
            host_hear(host, &events[i]);
            for (unsigned j = 0; j < QUEUES; j++)
                host->sqs[j].is_idle |= events[i].kind == EVENT_IDLE && events[i].id == host->sqs[j].id;
            if (events[i].kind != EVENT_PUNT)
                continue;
            if (host->punt_count == MOST_PUNTS)
                fault("too many punts");
            host->punts[host->punt_count++] = events[i];
        }
    }
}

static void count_fetched(struct host *host)
{
    for (unsigned i = 0; i < QUEUES; i++) {
        struct host_sq *sq = &host->sqs[i];
        while (sq->sq && sq->fetched != queue_ours((struct queue *)sq->sq)) {
            host->fetched[sq->entry[sq->fetched].cid]++;
            sq->fetched = (sq->fetched + 1) % sq->entries;
        }
    }
}

void host_sync(struct host *host)
{
    static uint8_t trace[TRACE_RING];

    if (!host->is_paused)
        engine_wait_until_idle(host->engine);
    take_events(host);
    if (!host->is_paused)
        engine_wait_until_idle(host->engine); /* taken punts may have made room */
    take_events(host);
    count_fetched(host);
    while (engine_take_trace(host->engine, trace))
        ;
}

void host_begin(struct host *host, uint64_t page_size)
{
    engine_set_limits(host->engine, page_size, DISK_SIZE, MOST_HELD, true);
    engine_take_doorbells(host->engine, true);
    memset(host->failed_syncs, 0, sizeof(host->failed_syncs));
    host_watch(host, false);
    host_pause(host, true);
    for (unsigned i = 0; i < REGIONS; i++) {
        host->places[i] = PLACES[i];
        host->places[i].saved = exact(PLACES[i].size);
        memset(host->places[i].saved, i == ROM ? 0xC0 : 0, PLACES[i].size);
        host_map(host, i);
    }
    host_pause(host, false);
    host->cids = QUEUES - 1;
    host->owner[1] = 1;
}

/* Nothing holds the engine up any more. */
static void let_go(struct host *host)
{
    host_pause(host, true);
    for (unsigned i = 0; i < REGIONS; i++)
        host_map(host, i);
    host_pause(host, false);
    engine_hold(host->engine, false);
    for (unsigned i = 0; i < QUEUES; i++)
        if (host->sqs[i].sq)
            engine_hold_sq(host->sqs[i].sq, false);
    for (unsigned i = 0; i < QUEUES; i++)
        if (host->doorbells && host->cqs[i].cq)
            host_ring_cq(host, i); /* it may have been rung with something else before the engine looked */
}

static void complete_all(struct host *host)
{
    bool more = true;

    while (more) {
        host_sync(host);
        more = host_complete(host);
        for (unsigned i = 0; i < QUEUES; i++)
            more |= host_consume(host, i, MAX_ENTRIES);
    }
    for (unsigned cid = 0; cid < CIDS; cid++)
        if (host->fetched[cid] != host->completed[cid])
            fault("a command was fetched and not completed");
}

static void check_read_only(const struct host *host)
{
    for (unsigned i = 0; i < DISK_SIZE; i++)
        if (host->read_only_disk[i] != 0xD2)
            fault("a read-only disk was written");
    for (unsigned i = 0; i < 2 * PAGE; i++)
        if (host->places[ROM].memory[i] != 0xC0)
            fault("read-only memory was written");
}

void host_end(struct host *host)
{
    let_go(host);
    complete_all(host);
    host_reset(host);
    check_read_only(host);
    host_pause(host, true);
    for (unsigned i = 0; i < REGIONS; i++) {
        host_unmap(host, i);
        free(host->places[i].saved);
    }
    host_pause(host, false);
}
