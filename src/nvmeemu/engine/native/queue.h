/* Submission and completion queues in guest memory. All functions need the lane's lock, but for those that main calls
   (interface.h). */

#ifndef NVMEEMU_QUEUE_H
#define NVMEEMU_QUEUE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "nvme_spec.h"

struct lane;

/* What main is to be told of a queue. */
enum notice {
    NOTICE_POSTED = 1 << 0, /* completions whose interrupt main must raise */
    NOTICE_GAP = 1 << 1, /* the memory that the queue needs next is not there */
    NOTICE_IDLE = 1 << 2, /* a stopped queue has nothing under way any more */
    NOTICE_HEAD = 1 << 3, /* the host has consumed completions, and main waits for that */
    NOTICE_BAD = 1 << 4, /* its doorbell was given a value that it cannot have */
    NOTICE_LOST = 1 << 5, /* there was no memory for a completion that has to wait */
};

/* The place of the host's index in the shadow doorbell buffers. */
struct shadow {
    uint64_t value, event;
    bool used;
};

/* What both kinds have. One index is the host's, the tail of a submission queue or the head of a completion queue: main
   writes it when the doorbell is rung, or the lane where the host writes it into memory. The other one is the lane's. */
struct queue {
    uint64_t id; /* main's name for it */
    struct lane *lane;
    uint64_t iova;
    uint32_t entries, qid, doorbell; /* the number of its doorbell, from the first one; odd: a completion queue */
    struct shadow shadow;
    _Atomic uint32_t host, ours;
    bool gap;
    _Atomic uint32_t bad; /* what NOTICE_BAD is about */
    _Atomic uint32_t notices;
};

struct queue_list {
    struct queue **items;
    uint32_t count, room;
};

/* Where a field lies in the second half of a completion. */
#define HIGH_SHIFT(field) (NVME_COMPLETION_##field##_BIT - 64)

/* A completion that found no room or no memory. */
struct completion {
    uint64_t low, high; /* its phase tag is to be inverted (a fault), or 0 */
};

struct cq {
    struct queue queue; /* first, also in struct sq */
    uint32_t vector;
    bool ien;
    uint32_t phase;
    _Atomic bool starved; /* full: a new head has to wake the lane */
    bool main_waits; /* for room */
    uint32_t posted; /* completions that no interrupt was raised for, nor held back */
    struct completion *waiting;
    uint32_t waiting_first, waiting_count, waiting_room;
};

struct sq {
    struct queue queue;
    struct cq *cq;
    bool held; /* fetches nothing until main lets it go on: it has too many commands of this queue */
    bool is_again; /* the next command was fetched before, and had to wait for main */
    bool is_behind_first; /* the next command follows the first one of a fused operation, so main has to see it */
    uint32_t waiting; /* commands that wait until their disks have room */
    bool stopped; /* fetches nothing more */
    bool dropped; /* its commands' completions go nowhere: a reset */
    _Atomic uint32_t under_way; /* commands that wait for a disk, or for main to take them */
    uint32_t owed; /* that main has to complete */
};

_Static_assert(offsetof(struct cq, queue) == 0 && offsetof(struct sq, queue) == 0, "each is its queue, by casts");

static inline bool is_cq(const struct queue *queue)
{
    return queue->doorbell & 1;
}

static inline struct cq *as_cq(struct queue *queue)
{
    return (struct cq *)(void *)queue;
}

static inline struct sq *as_sq(struct queue *queue)
{
    return (struct sq *)(void *)queue;
}

void queue_tell(struct queue *queue, enum notice notice);
bool queue_look(struct queue *queue);
bool cq_has_room(struct cq *cq);
bool cq_is_coalesced(const struct cq *cq);
bool cq_post(struct cq *cq, uint64_t low, uint64_t high);
bool cq_post_waiting(struct cq *cq);
void cq_drop_waiting(struct cq *cq, uint32_t sqid);
/* Somebody waits for room in this queue, and now there is some. */
bool cq_is_awaited(struct cq *cq);
uint64_t completion_high(uint32_t sqhd, uint32_t sqid, uint16_t cid, uint16_t field);
/* A command of ours has succeeded. */
void sq_complete(struct sq *sq, uint16_t cid);
/* There is a command, and nothing that it has to wait for. */
bool sq_is_runnable(struct sq *sq);
/* Run the next command. False: there is none, or it has to wait. */
bool sq_step(struct sq *sq);

#endif
