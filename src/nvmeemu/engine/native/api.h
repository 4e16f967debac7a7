/* What Python calls, for C and for cffi. All of it on one thread, the controller's. */

struct engine;
struct queue; /* every sq and every cq is one */
struct sq;
struct cq;
struct ranges;
struct journal;

/* Of a disk, for the engine and Python together: the array of backend.FailedSync. */
struct failed_sync {
    int32_t error; /* errno of the first sync that has failed, its negative until somebody was told of it, or 0 */
    int32_t doubts; /* durable writes of the engine's that have failed, perhaps with a sync: that is being found out */
};

struct block_map; /* block_map.h */

/* The companion of a disk: a file with the states of its blocks, and their metadata. */
struct companion {
    struct block_map *map; /* its chunks in memory; NULL: there is no companion, and every block can be read */
    int fd;
    bool never_waits, can_read_now; /* as of the disk */
    bool is_extended; /* metadata follow the data of each block in the host's buffer */
    bool is_protected; /* by protection information of type 1 with a guard of 16 bits */
    bool is_first; /* it comes first in the metadata */
    uint32_t metadata_size; /* bytes of a block */
    uint64_t begin; /* of the first chunk, in the file */
};

/* How a namespace is reached. */
struct disk {
    uint8_t *memory; /* the disk itself, or NULL */
    int fd; /* or -1: Python serves this namespace */
    bool never_waits; /* a file that lies in memory */
    bool can_read_now; /* RWF_NOWAIT works for reads */
    bool begins_now; /* io_uring can begin reads and writes without a thread that may block */
    bool writable; /* false: writes are Python's */
    bool is_volatile; /* what is written may be lost until a sync */
    bool writes_through; /* the write cache is off: a write is complete when it is durable */
    struct failed_sync *failed_sync; /* with fd */
    struct ranges *ranges; /* what is being read and written, by whomever; or NULL: nobody minds halves of writes */
    const struct journal *journal; /* of writes that a kill must not cut; or NULL */
    uint32_t block_shift;
    uint64_t blocks; /* 0: there is no namespace */
    struct companion companion;
};

enum event_kind {
    EVENT_PUNT, /* run this entry of the submission queue `id`; `value`: it follows the first one of a fused operation */
    EVENT_POSTED, /* raise the interrupt of the completion queue `id` */
    EVENT_HEAD, /* the host has consumed entries of the completion queue `id`: after engine_has_room said no, or for the
                   pin */
    EVENT_LOST, /* a completion of the completion queue `id` is lost: there was no memory for it to wait in */
    EVENT_GAP, /* the memory of the queue `id` is not there */
    EVENT_IDLE, /* nothing of the stopped submission queue `id` is under way any more */
    EVENT_BAD_DOORBELL, /* the host has rung that of the queue `id` with `value`, which it cannot have */
    EVENT_RUNG, /* the host has rung the watched doorbell number `id` with `value` */
    EVENT_ENGINE_IDLE /* what engine_in_flight has counted is no longer in flight */
};

struct event {
    enum event_kind kind;
    uint32_t value;
    uint64_t id;
    uint8_t entry[64];
};

struct counts {
    uint64_t reads, writes, bytes_read, bytes_written;
    uint64_t others; /* Flush, Write Zeroes, Dataset Management */
};

/* NULL: errno says why. */
struct engine *engine_new(uint32_t lanes);
/* What waits for a disk for long is left alone, with all it needs. */
void engine_free(struct engine *engine);

/* Guest memory; pause before it changes. A region's memory must be aligned like its address, at least to 16 bytes.
   engine_map: false, errno says why; engine_unmap: false, it is not there. */
void engine_pause(struct engine *engine);
void engine_resume(struct engine *engine);
bool engine_map(struct engine *engine, uint64_t iova, uint64_t size, void *memory, bool writable);
bool engine_unmap(struct engine *engine, uint64_t iova);

/* What the controller is: page size and largest transfer in bytes, namespaces, interrupts. */
/* `most_held`: bytes that the commands at one disk may have, before another one has to wait. */
void engine_set_limits(struct engine *engine, uint64_t page_size, uint64_t transfer, uint32_t most_held,
                       bool has_sgls);
/* False: there can be no such NSID here, or there is no memory. */
bool engine_set_disk(struct engine *engine, uint32_t nsid, const struct disk *disk);
/* The only namespace that a Flush of all of them has to sync; 0: there is none; another one than the engine knows: that
   Flush is Python's. */
void engine_set_flush_all(struct engine *engine, uint32_t nsid);
/* Takes a copy of the eventfd; -1, or where there cannot be one: main raises it. Completion queues with entries are
   signalled once. */
void engine_set_vector(struct engine *engine, uint32_t vector, int eventfd);
void engine_signal_all(struct engine *engine);
/* From now on no vector is coalesced but those that follow. engine_post leaves their interrupts to the engine. */
void engine_set_coalescing(struct engine *engine, uint64_t nanoseconds, uint32_t completions);
void engine_coalesce_vector(struct engine *engine, uint32_t vector);
/* It is now this time, for coalescing: for tests. */
void engine_set_test_time(struct engine *engine, uint64_t nanoseconds);

/* Mapped doorbells: from now on the bytes of this file from NVME_DOORBELLS on are the doorbells, for a client to map;
   -1: errno says why not. queue_ring works as before. */
int engine_map_doorbells(struct engine *engine);
/* EVENT_RUNG for those that are not of the engine's queues, from now on; what was rung before counts for nothing. */
void engine_watch(struct engine *engine, bool is_watched);
/* Its queue begins or ends: what was rung before counts for nothing. */
void engine_forget_doorbell(struct engine *engine, uint32_t number);

/* Queues. `id` comes back in events. NULL: no memory. */
struct cq *engine_add_cq(struct engine *engine, uint64_t id, uint32_t qid, uint64_t iova, uint32_t entries,
                         uint32_t vector, bool ien);
struct sq *engine_add_sq(struct engine *engine, uint64_t id, struct cq *cq, uint32_t qid, uint64_t iova,
                         uint32_t entries, uint32_t head, uint32_t tail);
void engine_remove_cq(struct engine *engine, struct cq *cq);
/* Only a queue that was idle after engine_stop_sq. */
void engine_remove_sq(struct engine *engine, struct sq *sq);
/* Fetch nothing more from it; EVENT_IDLE follows. */
void engine_stop_sq(struct sq *sq);
/* Fetch nothing from it for a while, or go on. */
void engine_hold_sq(struct sq *sq, bool is_held);
/* A reset: all queues are gone, and nothing is completed any more. What a disk works on goes on to its end. */
void engine_drop(struct engine *engine);
/* Fetch nothing, or go on. */
void engine_hold(struct engine *engine, bool is_held);

/* The same as queue_ring for who knows the doorbell's number only; `engine` is a struct engine. False: it is for main. */
bool engine_ring(void *engine, uint32_t doorbell, uint32_t value);
void engine_take_doorbells(struct engine *engine, bool is_wanted);
/* The host has rung a queue's doorbell; with a shadow doorbell, that says the value. False: it cannot have this one. */
bool queue_ring(struct queue *queue, uint32_t value);
void queue_set_shadow(struct queue *queue, uint64_t value, uint64_t event);
/* The host's index, and the engine's. */
uint32_t queue_host(struct queue *queue);
uint32_t queue_ours(struct queue *queue);
/* Whether the memory that it needs next is still missing. */
bool queue_has_gap(struct queue *queue);
/* Find the head where the host writes it into memory. */
void engine_look(struct cq *cq);

/* Completions of what Python has executed. False: it has to wait for room or memory, and goes first when they come.
   `sqhd` is for submission queues that are not the engine's: it knows the heads of its own better. */
bool engine_post(struct cq *cq, uint32_t sqid, uint32_t sqhd, uint16_t cid, uint32_t dw0, uint16_t field,
                 bool wrong_phase);
bool engine_has_room(struct cq *cq);
/* Forget the completions of a submission queue that wait. */
void engine_drop_waiting(struct cq *cq, uint32_t sqid);

/* Records of what lanes do, in the format of docs/trace-format.md, with times since `start` of CLOCK_MONOTONIC.
   engine_trace: false, there is no memory, or this build has no libisal. engine_take_trace: the number of bytes, whole
   records and all that one lane has; 0: no lane has any. */
bool engine_can_trace(void);
bool engine_trace(struct engine *engine, bool is_traced, uint64_t start);
#define TRACE_RING 4194304 /* bytes: room for all that a lane keeps */
uint32_t engine_take_trace(struct engine *engine, uint8_t *data);

/* Events (the "news"): the descriptor can be read when there are some. */
int engine_fd(struct engine *engine);
void engine_drain_fd(struct engine *engine);
bool engine_has_news(struct engine *engine);
/* At most so many, 8 or more. */
uint32_t engine_events(struct engine *engine, struct event *events, uint32_t most);
/* Commands that wait for a disk, or the writes among them. EVENT_ENGINE_IDLE follows if there are any. */
uint32_t engine_in_flight(struct engine *engine, bool only_writes);
/* Disks that are no namespaces any more have commands that have not ended. */
bool engine_is_letting_go(struct engine *engine);
/* Wait until all lanes sleep and nothing is in flight. For tests. */
void engine_wait_until_idle(struct engine *engine);
/* Whether commands can wait for disks in it, with io_uring; otherwise they are punted. */
bool engine_can_wait(struct engine *engine);
struct counts engine_counts(struct engine *engine);
