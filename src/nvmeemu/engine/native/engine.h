/* The native engine: serves the ordinary commands of the queues that it is given, on threads of its own: Read, Write,
   Flush, Write Zeroes, Dataset Management.

   It never decides a status. Whatever is not ordinary, or does not succeed, is handed to Python ("punted"),
   as the entry that was copied, before anything has happened to the disk that doing it again would not do as well.
   It is the only writer of the completion queues that it has; Python completes commands through it.

   A lane is a thread, its lock and the queues that it serves. It holds the lock unless it sleeps or writes into the page
   cache, and does not wait for a disk: what is not in the cache goes to io_uring, which works on private memory, or to
   Python; and where a write into the cache takes long, a second thread takes the lane over. Calls of the controller's
   thread ("main" here) announce themselves and get the lock between two commands; so a new memory map waits for no
   disk. */

#ifndef NVMEEMU_ENGINE_H
#define NVMEEMU_ENGINE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "nvme_spec.h"

#include "api.h"

#define BURST 32 /* commands that one queue may run before the next has its turn */
#define MAX_NSID 64
#define MAX_DOORBELLS (NVME_PAGE_MIN / sizeof(uint32_t)) /* of the page that a client may map */
#define NOT_RUNG UINT32_MAX
#define MAX_VECTORS 128
#define MAX_PIECES 1024 /* IOV_MAX: what one system call takes */
#define MAX_PUNTS 256 /* fetched commands that may wait for main before lanes stop fetching */
#define MAX_OPS 256 /* commands that one disk may have at once */
#define MAX_WAITING 1024 /* of a queue, fetched, until a disk has room: a host may take no notice of its depth */

/* --- memory.c: guest memory ------------------------------------------------------------------------------------ */

struct region {
    uint64_t iova, size;
    uint8_t *memory;
    bool writable;
};

/* Sorted by iova, never overlapping. */
struct memory {
    struct region *regions;
    size_t count, room;
};

/* One reader of a map, and the region that it used last. */
struct guest {
    const struct memory *memory;
    const struct region *hit;
};

/* False: errno says why. */
bool memory_add(struct memory *memory, struct region region);
bool memory_remove(struct memory *memory, uint64_t iova);

/* Where iova lies; *size is cut to what the region holds from there on. NULL: nothing (writable) is there. */
uint8_t *guest_at(struct guest *guest, uint64_t iova, uint64_t *size, bool writable);
/* The same for what must lie in one writable region as a whole: queue entries, shadow doorbells. */
uint8_t *guest_whole(struct guest *guest, uint64_t iova, uint64_t size);

/* --- prp.c: the data of a command ------------------------------------------------------------------------------ */

/* As records of docs/trace-format.md have it. */
struct __attribute__((packed)) run {
    uint64_t iova;
    uint32_t size;
};

struct transfer {
    unsigned count;
    struct iovec pieces[MAX_PIECES];
    bool has_list; /* of PRPs */
    bool wants_runs; /* for the trace: the same as addresses of the guest's, neighbours taken together */
    unsigned run_count;
    struct run runs[MAX_PIECES];
};

/* The pieces of guest memory that PRP1 and PRP2 describe. False: Python has to say what is wrong. */
bool prp_walk(struct transfer *transfer, struct guest *guest, uint64_t prp1, uint64_t prp2, uint64_t length,
              uint64_t page_size, bool writable);
void transfer_scatter(const struct transfer *transfer, const uint8_t *data);
void transfer_gather(const struct transfer *transfer, uint8_t *data);

/* --- queues ------------------------------------------------------------------------------------------------------ */

struct lane;
struct engine;

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
    bool held; /* main has enough of it at the moment */
    bool is_again; /* the next command was fetched before, and had to wait for main */
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

/* queue.c; all with the lane's lock */
void queue_tell(struct queue *queue, enum notice notice);
bool queue_look(struct queue *queue);
bool cq_has_room(struct cq *cq);
bool cq_is_coalesced(const struct cq *cq);
bool cq_post(struct cq *cq, uint64_t low, uint64_t high);
bool cq_post_waiting(struct cq *cq);
void cq_drop_waiting(struct cq *cq, uint32_t sqid);
/* A change of the head that somebody waits for has come. */
bool cq_is_awaited(struct cq *cq);
uint64_t completion_high(uint32_t sqhd, uint32_t sqid, uint16_t cid, uint16_t field);
/* A command of ours has succeeded. */
void sq_complete(struct sq *sq, uint16_t cid);
/* There is a command, and nothing that it has to wait for. */
bool sq_is_runnable(struct sq *sq);
/* Run the next command. False: there is none, or it has to wait. */
bool sq_step(struct sq *sq);

/* --- disks and commands ------------------------------------------------------------------------------------------ */

/* What a disk can be asked for, each with one system call. */
enum work { WORK_READ, WORK_WRITE, WORK_ALLOCATE, WORK_SYNC };

struct extent {
    uint64_t offset, length;
};

/* A command that waits for a disk. It has a copy of all it needs; nothing in it points into guest memory. */
struct op {
    struct sq *sq;
    struct load *load; /* NULL: it waits until there is room */
    struct nvme_read_write command;
    uint32_t nsid; /* the disk's */
    int fd;
    struct failed_sync *failed_sync; /* of the disk */
    enum work work; /* what the disk is to do now */
    int flags; /* of pwritev2, or the mode of fallocate */
    bool is_durable; /* when it has succeeded, or it need not be: the write cache may go off meanwhile */
    bool syncs_last; /* a sync is still to come */
    bool waits; /* for the medium, not only for the page cache */
    bool suits_lane; /* it may do that itself */
    bool would_block; /* even if asked not to wait: only a thread may begin it */
    int lost; /* errno of a sync that has failed */
    struct extent extent; /* for its present work */
    const struct extent *more; /* where it has to do the same, in its buffer */
    uint32_t more_count;
    uint32_t size; /* bytes */
    uint8_t *buffer;
    long result; /* of lane_write */
    struct op *next;
};

struct op_list {
    struct op *first, **end;
};

enum verdict { DONE, PENDING, PUNT, WAIT };

/* The bits of a field of a command, in its dword. */
#define CDW_BITS(record, field, dword)                                                                                 \
    (((1u << NVME_##record##_##field##_WIDTH) - 1) << (NVME_##record##_##field##_BIT - 32 * (dword)))
#define READ_WRITE_FUA CDW_BITS(READ_WRITE, FUA, 12)
#define READ_WRITE_LR CDW_BITS(READ_WRITE, LR, 12) /* Limited Retry, which changes nothing */

/* command.c: what can be done with the lane's lock */
enum verdict command_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command);
/* After the verdict WAIT: until its disk has room. False: no memory. */
bool command_wait(struct lane *lane, struct sq *sq, const struct nvme_read_write *command);
/* A command that waits until there is room has its turn. WAIT, PUNT: it cannot begin yet. */
enum verdict op_resume(struct lane *lane, const struct op *op);
/* It has succeeded. */
void count_command(struct lane *lane, uint8_t opcode, uint64_t length);
/* A write, or zeroes, have to be on the medium before they are complete. */
bool has_to_last(const struct disk *disk, const struct nvme_read_write *command);
bool disk_has(const struct disk *disk, uint64_t slba, uint64_t blocks);

/* media.c: those that transfer no blocks. */
enum verdict flush_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command);
enum verdict zeroes_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command);
enum verdict dataset_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command);

/* op.c: commands that wait for a disk. PENDING: here is one, with a buffer of `size` bytes, for the work of which op_start has to be told. */
enum verdict op_new(struct op **new_op, struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                    uint32_t nsid, uint64_t size);
enum verdict op_start(struct lane *lane, struct op *op);
/* The disk has answered: what the system call returns, or a negative errno. */
void op_finish(struct lane *lane, struct op *op, long result);
/* By the engine. What a sync says can no longer be relied upon once one has failed: the kernel tells that once. */
bool can_sync(const struct disk *disk);
void op_free(struct lane *lane, struct op *op);
void op_list_add(struct op_list *list, struct op *op);
struct op *op_list_take(struct op_list *list);
/* Buffered writes of file systems that cannot be asked not to wait. They hardly ever do, and the lane is much cheaper
   than a thread of the ring's. So it writes them itself, without its lock, until one takes long. False: by then another
   thread has taken the lane over. What waits for the medium (syncs, for one) it does itself only as long as nothing else
   is there to be done. */
bool lane_write(struct lane *lane);
/* Those that have ended after that. */
bool lane_reap(struct lane *lane);

/* load.c: what commands have at a disk; all with the lane's lock. */
struct part {
    uint32_t ops, bytes;
    uint32_t used; /* ops, and commands that wait */
    struct op_list waiting; /* the lane's, under its lock */
};

struct load {
    pthread_mutex_t lock;
    uint32_t ops, bytes; /* of all lanes */
    uint32_t lanes; /* that use it */
    bool has_waited; /* a command has had to wait */
    bool is_gone; /* its disk is no namespace any more */
    struct part of_lane[];
};

struct load *load_new(uint32_t lanes);
/* One command more, with so many bytes. False: it has to wait. */
bool load_take(struct lane *lane, struct load *load, uint32_t size);
void load_give(struct lane *lane, struct load *load, uint32_t size);
void load_wait(struct lane *lane, uint32_t nsid, struct op *op);
/* A command that waits may begin. */
bool load_has_ready(struct lane *lane);
/* Begin those that may. False: there were none. */
bool load_resume(struct lane *lane);
/* Nothing of the lane's waits any more. */
void load_drop(struct lane *lane);
/* The namespace has another disk, or none; with all locks. */
void load_replace(struct engine *engine, uint32_t nsid, struct load *load);
/* One for each namespace that there can be. */
bool loads_new(struct engine *engine, uint32_t lanes);
void loads_free(struct engine *engine);

/* uring.c: waiting for many disks at once. False: it cannot be done here. */
struct ring;
struct ring *ring_open(int eventfd);
void ring_close(struct ring *ring);
bool ring_start(struct ring *ring, struct op *op);
bool ring_submit(struct ring *ring);
struct op *ring_reap(struct ring *ring, long *result);

/* --- engine.c ------------------------------------------------------------------------------------------------------ */

#define MAX_REPORTS (MAX_PUNTS + (MAX_NSID + 1) * MAX_OPS) /* commands that may wait for main at the most */

struct counters {
    _Atomic uint64_t reads, writes, bytes_read, bytes_written, others;
};

struct lane {
    struct engine *engine;
    pthread_t thread, relief;
    pthread_mutex_t lock;
    pthread_cond_t resumed, quiet;
    _Atomic uint32_t wanted; /* calls of main that want the lock, and pauses */
    _Atomic bool asleep;
    _Atomic bool kicked; /* interrupts are to be looked at, although there may be nothing to run */
    _Atomic bool stop;
    bool is_running, relief_is_running; /* the threads were started */
    int eventfd; /* wakes the thread that drives */
    /* Of the two threads one drives the lane; the other one stands by, or has not come back from a write yet. */
    uint32_t shift; /* a number for each time that one of them takes it over */
    _Atomic bool has_relief; /* one stands by */
    _Atomic bool relief_sleeps;
    int relief_eventfd; /* wakes it */
    _Atomic bool writes_now; /* the one that drives: in the system call, without the lock */
    _Atomic uint64_t write_begun; /* monotonic_time() */
    uint32_t write_nsid;
    bool write_waits;
    struct queue_list sqs, cqs;
    struct guest guest;
    struct transfer transfer; /* of the command that is being run */
    uint32_t owed; /* commands of its queues that main has to complete */
    uint32_t ops; /* that wait for a disk */
    uint32_t waiting; /* those among them that have not begun */
    uint32_t waits_for; /* the namespace, after the verdict WAIT */
    bool resumes; /* it begins one of those that wait */
    _Atomic uint32_t writing; /* those that have begun and are no reads */
    struct ring *ring;
    struct op_list writes, written; /* for lane_write, and what comes back late from it */
    uint64_t deadline; /* when it must wake by itself; 0: never */
    uint64_t idle_since; /* 0: it is busy */
    /* Learned, nanoseconds: how long it looks at doorbells in memory again and again before it does so less often, and
       how long it watches shadow doorbells before it asks for a message. */
    uint64_t patience, watch;
    uint64_t looked_at_all; /* doorbells: when; not only at those of queues */
    bool asks; /* it, or main, is done with looking for now: the host is asked to ring */
    struct counters counters;
    struct trace *trace; /* NULL: off */
};

struct punt {
    struct sq *sq;
    struct nvme_read_write command;
};

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
    uint32_t most_held; /* bytes of one disk's commands; exceeded by one transfer at the most */
    struct disk disks[MAX_NSID + 1];
    struct load *loads[MAX_NSID + 1];
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
    _Atomic bool anxious; /* main wants to know when nothing is in flight any more */
    _Atomic bool settled;
    pthread_mutex_t punt_lock;
    struct punt *punts;
    uint32_t punt_first, punt_count, punt_room;
    _Atomic bool punts_full;

    /* Main's own: all queues, for notices, and by their doorbells, for engine_ring. */
    bool takes_doorbells;
    struct queue *by_doorbell[MAX_DOORBELLS];
    struct queue_list sqs, cqs;
};

/* lane.c */
void *lane_main(void *lane);
void *lane_relieve(void *lane);
/* A call begins that may take long. False: nobody stands by for that, or they do take long. */
bool lane_begin_write(struct lane *lane, uint32_t nsid, bool waits);
/* It held up others: let the ring wait for a while. */
void lane_note_slow(struct lane *lane);
/* Other commands than the one that it works on. */
bool lane_has_others(struct lane *lane);
uint64_t monotonic_time(void); /* nanoseconds */
/* There is nothing to do, as far as can be seen from outside. */
bool lane_is_quiet(struct lane *lane);
/* With the lock: let main have it first if it wants to, or has paused us. */
void lane_give_way(struct lane *lane);
void lane_wake(struct lane *lane);
void lane_kick(struct lane *lane);
/* The lock, for main: with the next command's end. */
void lane_enter(struct lane *lane);
void lane_leave(struct lane *lane);

/* control.c */
/* Nothing of it is under way; wait until the lane has told so, and does not touch it any more. */
void sq_leave_lane(struct sq *sq);

/* Main completes a command of this queue; with the lane's lock. */
void sq_settle(struct sq *sq, uint32_t commands);

/* news.c */
bool engine_punt(struct engine *engine, struct sq *sq, const struct nvme_read_write *command, bool always);
void engine_notify(struct engine *engine);

/* trace.c; only while the lane has a trace, with its lock */
bool trace_is_empty(const struct trace *trace);
void trace_doorbell(struct lane *lane, const struct queue *queue, bool is_shadow, uint32_t value);
void trace_fetch(struct lane *lane, const struct sq *sq, uint32_t slot, const struct nvme_read_write *command);
/* The data of a command has moved; lane->transfer says where. */
void trace_data(struct lane *lane, const struct sq *sq, const struct nvme_read_write *command, bool to_host);
void trace_completion(struct lane *lane, const struct cq *cq, uint32_t slot, uint64_t low, uint64_t high);
void trace_interrupt(struct lane *lane, uint32_t vector);

/* doorbells.c */
void doorbells_free(struct engine *engine);
/* What the host has written to a mapped doorbell since the last call, or NOT_RUNG. */
uint32_t doorbell_take(struct engine *engine, uint32_t number);
bool doorbell_is_rung(struct engine *engine, uint32_t number);
void doorbell_own(struct engine *engine, uint32_t number, struct queue *queue);
/* One below `end` that is not of the engine's queues. */
bool doorbells_are_rung(struct engine *engine, uint32_t end);
bool doorbells_next(struct engine *engine, struct event *event);

#endif
