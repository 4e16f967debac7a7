/* What Python calls, for C and for cffi. All of it on one thread, the controller's. */

struct engine;
struct sq;
struct cq;

/* How a namespace is reached. */
struct disk {
    uint8_t *memory; /* the disk itself, or NULL */
    int fd; /* or -1: Python serves this namespace */
    bool never_waits; /* a file that lies in memory */
    bool can_read_now; /* RWF_NOWAIT works for reads */
    bool writable; /* false: writes are Python's */
    uint32_t block_shift;
    uint64_t blocks;
};

enum event_kind {
    EVENT_PUNT, /* run this entry of the submission queue `id` */
    EVENT_POSTED, /* raise the interrupt of the completion queue `id` */
    EVENT_SQ_GAP, /* the memory of the submission queue `id` is not there */
    EVENT_CQ_GAP,
    EVENT_IDLE, /* nothing of the stopped submission queue `id` is under way any more */
    EVENT_SETTLED /* what engine_in_flight or engine_writing said has ended */
};

struct event {
    enum event_kind kind;
    uint64_t id;
    uint8_t entry[64];
};

struct counts {
    uint64_t reads, writes, bytes_read, bytes_written;
};

/* NULL: errno says why. */
struct engine *engine_new(uint32_t lanes);
/* What waits for a disk for long is left alone, with all it needs. */
void engine_free(struct engine *engine);

/* Guest memory; pause before it changes. A region's memory must be aligned like its address, at least to 16 bytes. */
void engine_pause(struct engine *engine);
void engine_resume(struct engine *engine);
bool engine_map(struct engine *engine, uint64_t iova, uint64_t size, void *memory, bool writable);
bool engine_unmap(struct engine *engine, uint64_t iova);

/* What the controller is: page size and largest transfer in bytes, namespaces, interrupts. */
void engine_set_limits(struct engine *engine, uint64_t page_size, uint64_t transfer);
bool engine_set_disk(struct engine *engine, uint32_t nsid, const struct disk *disk);
/* Takes a copy of the eventfd; -1: main raises it. Completion queues with entries are signalled once. */
bool engine_set_vector(struct engine *engine, uint32_t vector, int eventfd);
void engine_signal_all(struct engine *engine);
void engine_set_coalescing(struct engine *engine, uint64_t nanoseconds, uint32_t completions);
void engine_coalesce_vector(struct engine *engine, uint32_t vector, bool is_coalesced);

/* Queues. `id` comes back in events. NULL: no memory. */
struct cq *engine_add_cq(struct engine *engine, uint64_t id, uint64_t iova, uint32_t entries, uint32_t vector, bool ien);
struct sq *engine_add_sq(struct engine *engine, uint64_t id, struct cq *cq, uint32_t qid, uint64_t iova,
                         uint32_t entries, uint32_t head, uint32_t tail);
void engine_remove_cq(struct engine *engine, struct cq *cq);
/* Only a queue that was idle after engine_stop_sq. */
void engine_remove_sq(struct engine *engine, struct sq *sq);
/* Fetch nothing more from it; EVENT_IDLE follows. */
void engine_stop_sq(struct engine *engine, struct sq *sq);
/* Fetch nothing from it for a while, or go on. */
void engine_hold_sq(struct sq *sq, bool is_held);
/* A reset: all queues are gone, and nothing is completed any more. What a disk works on goes on to its end. */
void engine_drop(struct engine *engine);
/* Fetch nothing, or go on. */
void engine_hold(struct engine *engine, bool is_held);

/* Doorbells. False: a value that the queue cannot have. */
bool sq_ring(struct sq *sq, uint32_t tail);
bool cq_ring(struct cq *cq, uint32_t head);
/* The host has rung, and its shadow doorbell says what. */
void sq_rung(struct sq *sq);
void cq_rung(struct cq *cq);
void sq_set_shadow(struct sq *sq, uint64_t value, uint64_t event);
void cq_set_shadow(struct cq *cq, uint64_t value, uint64_t event);
/* Take the head from the shadow doorbell. */
void cq_look(struct cq *cq);
uint32_t sq_head(struct sq *sq);
uint32_t sq_tail(struct sq *sq);
uint32_t cq_head(struct cq *cq);
uint32_t cq_tail(struct cq *cq);

/* Completions of what Python has executed. False: it has to wait for room or memory, and goes first when they come. */
bool engine_post(struct cq *cq, uint32_t sqid, uint32_t sqhd, uint16_t cid, uint32_t dw0, uint16_t field);
bool engine_has_room(struct cq *cq);
/* Forget the completions of a submission queue that wait. */
void engine_drop_waiting(struct cq *cq, uint32_t sqid);
/* Whether the memory that the queue needs next is still missing. */
bool engine_sq_gap(struct sq *sq);
bool engine_cq_gap(struct cq *cq);

/* News: the descriptor can be read when there are some. */
int engine_fd(struct engine *engine);
void engine_drain_fd(struct engine *engine);
bool engine_has_news(struct engine *engine);
uint32_t engine_events(struct engine *engine, struct event *events, uint32_t most);
/* Commands that wait for a disk; the writes among them. EVENT_SETTLED follows if there are any. */
uint32_t engine_in_flight(struct engine *engine, bool only_writes);
/* Wait until all lanes sleep and nothing is in flight. For tests. */
void engine_settle(struct engine *engine);
/* Whether commands can wait for disks in it, with io_uring; otherwise they are punted. */
bool engine_can_wait(struct engine *engine);
struct counts engine_counts(struct engine *engine);
