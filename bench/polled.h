/* A polling host for I/O queues that are there already, and the floor that targets are compared with.
   polled.py has the same structures and says where the numbers come from. */

#ifndef POLLED_H
#define POLLED_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "nvme_spec.h"

#define MAX_DEPTH 1024

/* One queue pair, as the host has it. Doorbells that do not exist are NULL. */
struct queue {
    struct nvme_read_write *sq;
    uint8_t *cq;
    uint8_t *data; /* a buffer for each command */
    uint64_t *lists; /* a page for each command's PRP list */
    uint64_t data_iova, lists_iova;
    _Atomic uint32_t *tail_page, *head_page; /* mapped doorbells */
    _Atomic uint32_t *tail_shadow, *tail_event, *head_shadow, *head_event;
    uint64_t tail_register, head_register; /* where they are in BAR0, for messages to the socket */
    int32_t socket;
    uint32_t qid, entries, tail, head, phase;
};

/* What to do, and what came of it. Times in nanoseconds. */
struct load {
    uint64_t disk_pages; /* of 4096 bytes */
    uint64_t seed; /* of random places; 0: one after the other, from `cursor` on */
    uint64_t cursor;
    uint64_t time; /* submit for that long */
    uint64_t commands; /* or until there were so many; 0: no end */
    uint32_t opcode, pages; /* of each command */
    uint32_t depth; /* commands at once in each queue */
    uint32_t check; /* look at what was read: each page begins with its place on the disk */
    uint32_t cdw12; /* bits of each command's dword 12: Force Unit Access, ... */
    uint32_t block; /* bytes of data; 0: 512 */
    uint32_t has_metadata; /* each command's, separate, are at its list, which it has no use for */
    uint32_t has_sgl; /* a data block in the place of PRPs */
    uint32_t every; /* every so many-th command is of this kind, those between are plain Writes; 0: all are */
    uint64_t done, failed, wrong, elapsed, messages;
    uint32_t *samples; /* latencies, of the first `room` commands */
    uint64_t room;
};

/* 0, or an errno. */
int run_load(struct queue *queues, uint32_t count, struct load *load);

uint64_t next_place(struct load *load);
static inline bool is_between(const struct load *load, uint64_t number)
{
    return load->every && (number + 1) % load->every != 0;
}

/* calls.c: ask the kernel for the same, one call after the other. 0, or an errno. */
int run_calls(int fd, struct load *load);

struct floor {
    struct queue *queues;
    uint8_t *guest, *disk;
    _Atomic uint32_t stop;
    uint32_t count, counts_idle; /* asking for the time costs some of it: not where latencies are measured */
    uint64_t served, idle, cpu; /* CPU time: without work, and with it */
};

/* Serve the queues until told to stop: copy the entry, copy the data, store the completion. No checks of any kind. */
void run_floor(struct floor *floor);

#endif
