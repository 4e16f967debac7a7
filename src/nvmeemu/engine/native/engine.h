/* The native engine: serves the ordinary commands of the queues that it is given, on threads of its own: Read, Write,
   Flush, Write Zeroes, Dataset Management.

   It never decides a status. Whatever is not ordinary, or does not succeed, is handed to Python ("punted"),
   as the entry that was copied, before anything has happened to the disk that doing it again would not do as well.
   It is the only writer of the completion queues that it has; Python completes commands through it.

   A lane is a thread, its lock and the queues that it serves. It holds the lock unless it sleeps or writes into the page
   cache, and does not wait for a disk: what is not in the cache goes to io_uring, which works on private memory, or to
   Python; and where a write into the cache takes long, a second thread takes the lane over. Calls of the controller's
   thread ("main" here) announce themselves and get the lock between two commands; so a new memory map waits for no
   disk.

   Its parts, each a module with a header; what includes what has no circle (tests/native/test_headers.py):
     interface (api.h)  what Python calls; control, engine, news and doorbells do it
     lane, handover     the thread that serves queues; the hand-over of a lane between two threads, with its states
     queue              submission and completion queues
     command, media     what can be done at once; op, load, uring: what waits for a disk, how much may, and with what
     paired, pair       the same for disks with a companion, and what lies where there; block_map, protection: the states
                        of their blocks, which Python shares, and their protection information
     memory, prp, sgl   guest memory, and where a command's data lies in it
     news               commands for Python, and that there is something to tell
     trace              records of what lanes do */

#ifndef NVMEEMU_ENGINE_H
#define NVMEEMU_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "bounds.h"
#include "doorbells.h"
#include "interface.h"
#include "memory.h"
#include "queue.h"

struct lane;
struct load;
struct punt;

struct vector {
    _Atomic int fd; /* -1: main raises the interrupt */
    _Atomic bool is_coalesced;
    _Atomic uint32_t held; /* completions that wait for an interrupt, with coalescing */
    _Atomic uint64_t due; /* when it is raised at the latest, nanoseconds */
};

struct engine {
    struct lane *lanes;
    uint32_t lane_count;
    struct memory memory;
    uint64_t page_size, transfer; /* bytes */
    bool has_sgls; /* commands may have them */
    uint32_t most_held; /* bytes of one disk's commands; exceeded by one transfer at the most */
    struct disk disks[MAX_NSID + 1];
    struct load *loads[MAX_NSID + 1];
    _Atomic uint32_t leaving; /* loads of disks that are gone, with commands that have begun */
    _Atomic uint32_t ops; /* that have begun */
    _Atomic bool writes_wait[MAX_NSID + 1]; /* RWF_NOWAIT does not work for writes: seen by trying */
    uint32_t flush_all; /* the namespace that a Flush of all of them is for; 0: none */
    _Atomic uint64_t slow_until[2][MAX_NSID + 1]; /* monotonic_time(): the ring has to wait, for writes and for what
                                                     op.waits says */
    struct vector vectors[MAX_VECTORS];
    _Atomic uint64_t coalesce_time; /* nanoseconds */
    _Atomic uint32_t coalesce_count; /* completions */
    _Atomic bool has_test_time;
    _Atomic uint64_t test_time; /* nanoseconds; for coalescing, instead of the real one */
    _Atomic bool held; /* lanes fetch nothing */
    bool is_paused; /* main's */

    /* Mapped doorbells: their page, which the host writes, or NULL. A doorbell that was not rung since we looked is
       NOT_RUNG, so that ringing it with the same value again is seen, too. */
    _Atomic uint32_t *doorbells;
    int doorbells_fd;
    uint64_t most_patience, most_watch, longest_nap; /* of lanes, nanoseconds */
    _Atomic bool owned[MAX_DOORBELLS]; /* by queues of the engine's; the first lane watches all others for main: */
    uint32_t watched; /* so many in every round, the rest once in the longest nap; 0: none; with that lane's lock */

    /* Towards main. */
    int eventfd;
    _Atomic bool notified;
    _Atomic bool idle_awaited; /* main wants EVENT_ENGINE_IDLE once what it has counted is no longer in flight */
    _Atomic bool became_idle; /* that event is to be told */
    pthread_mutex_t punt_lock;
    struct punt *punts;
    uint32_t punt_first, punt_count, punt_room;
    _Atomic bool punts_full;

    /* Main's own: all queues, for notices, and by their doorbells, for engine_ring. */
    bool takes_doorbells;
    struct queue *by_doorbell[MAX_DOORBELLS];
    struct queue_list sqs, cqs;
};

#endif
