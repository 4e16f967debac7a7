/* A host for the native engine: its memory, its disks, its queues, and its books. See fuzz_engine.c. */

#ifndef NVMEEMU_FUZZ_HOST_H
#define NVMEEMU_FUZZ_HOST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nvme_spec.h"

#include "api.h" /* only what Python calls: the inside of the engine may change */

#define PAGE 4096u
#define MAX_ENTRIES 9
#define QUEUES 2
#define CIDS 1024
#define MOST_PUNTS 1024
#define DISK_SIZE (64u << 10)
#define MOST_HELD (8u << 10) /* of one disk, so that commands wait */
#define DOORBELLS (PAGE / sizeof(uint32_t))
#define NOT_RUNG UINT32_MAX /* what the engine leaves in the page where it has looked */

enum { QUEUE_MEMORY, LISTS, DATA, MORE_DATA, ROM, TOP, ODD, REGIONS };

struct place {
    uint64_t iova, size;
    bool writable;
    uint8_t *memory; /* NULL: unmapped, and what was there is in `saved` */
    uint8_t *saved;
};

/* What the host knows of its queues. */
struct host_cq {
    struct cq *cq;
    uint64_t id, iova;
    uint32_t entries, head, phase;
    bool has_shadow;
};

struct host_sq {
    struct sq *sq;
    uint64_t id, iova;
    uint32_t entries, qid, tail;
    uint32_t shadow, fetched; /* the shadow doorbell's value; up to where the engine was seen to be */
    unsigned cq; /* whose index */
    bool has_shadow, is_idle;
    struct nvme_read_write entry[MAX_ENTRIES]; /* what is in the queue */
};

struct host {
    struct engine *engine;
    struct place places[REGIONS];
    uint8_t *disk, *read_only_disk;
    struct failed_sync failed_syncs[3];
    struct host_cq cqs[QUEUES];
    struct host_sq sqs[QUEUES];
    bool is_paused;
    _Atomic uint32_t *doorbells; /* their page; NULL: it is not mapped */
    uint32_t rung[DOORBELLS]; /* what was written there last, and not told of */
    bool is_watched; /* main is to hear of doorbells that are no queue's */
    uint64_t ids; /* the engine's names for queues */
    /* Commands by their CID: how often fetched and completed; whether Python has completed it, with its own status. */
    uint16_t cids;
    uint8_t fetched[CIDS], completed[CIDS], owner[CIDS], cq_of[CIDS];
    bool is_pythons[CIDS];
    struct event punts[MOST_PUNTS];
    uint32_t punt_count;
};

#define PYTHONS_STATUS 0x4281 /* in the Status Field of what Python completes here */

void fault(const char *what); /* report and abort */

/* host.c */
void host_start(struct host *host, bool is_mapped); /* once */
void host_begin(struct host *host, uint64_t page_size);
void host_end(struct host *host); /* everything must complete now */
/* Let the engine do all that it can, and look at what it has done. */
void host_sync(struct host *host);
void host_unmap(struct host *host, unsigned region);
void host_map(struct host *host, unsigned region);
void host_pause(struct host *host, bool is_paused);
bool host_write(struct host *host, uint64_t iova, const void *data, size_t size);
bool host_read(struct host *host, uint64_t iova, void *data, size_t size);
void host_add_queues(struct host *host, unsigned index, uint32_t sq_entries, uint32_t cq_entries, unsigned cq);
void host_remove_sq(struct host *host, unsigned index);
void host_reset(struct host *host);
uint64_t host_shadow(unsigned index, bool is_cq);
/* Put an entry, with a CID of its own, at the tail. */
void host_submit(struct host *host, unsigned index, struct nvme_read_write *entry);
/* Take up to so many completions, and ring. */
bool host_consume(struct host *host, unsigned index, unsigned most);
/* Complete the oldest of the commands that Python has. */
bool host_complete(struct host *host);

/* rings.c */
static inline uint32_t doorbell(unsigned index, bool is_cq)
{
    return 2 * (index + 1) + is_cq;
}

void host_map_doorbells(struct host *host);
/* Any doorbell, with any value that the books can follow. */
void host_ring(struct host *host, uint32_t number, uint32_t value, bool by_message);
void host_ring_sq(struct host *host, unsigned index, uint32_t value);
void host_ring_cq(struct host *host, unsigned index); /* with its head */
void host_watch(struct host *host, bool is_watched);
void host_forget(struct host *host, uint32_t number);
/* Something of doorbells that the engine tells main. */
void host_hear(struct host *host, const struct event *event);

#endif
