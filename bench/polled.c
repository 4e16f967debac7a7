/* The polling host. One thread serves all queues: takes completions, submits again in their place, rings. */

#define _GNU_SOURCE
#include "polled.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

#define PAGE 4096
#define LISTED (PAGE / sizeof(uint64_t))
#define PATIENCE 20000000000ull /* without any completion */
#define PHASE(high) ((high) >> (NVME_COMPLETION_PHASE_BIT - 64) & 1)
#define CID(high) ((uint16_t)((high) >> (NVME_COMPLETION_CID_BIT - 64)))
#define STATUS(high) ((high) >> (NVME_COMPLETION_STATUS_BIT - 64))

#define REGION_WRITE 10 /* vfio-user's messages */
#define NO_REPLY (1 << 4)

struct message {
    uint16_t id, command;
    uint32_t size, flags, error;
    uint64_t offset;
    uint32_t region, count, value;
} __attribute__((packed));

struct state {
    struct queue *queue;
    struct load *load;
    uint64_t submitted[MAX_DEPTH], place[MAX_DEPTH];
    uint64_t begun;
    uint32_t outstanding;
};

static uint64_t now(clockid_t clock)
{
    struct timespec time;

    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* --- doorbells ----------------------------------------------------------------------------------------------------- */

static int post(const struct queue *queue, struct load *load, uint64_t offset, uint32_t value)
{
    struct message message = {0, REGION_WRITE, sizeof(message), NO_REPLY, 0, offset, 0, sizeof(value), value};

    load->messages++;
    return send(queue->socket, &message, sizeof(message), MSG_NOSIGNAL) == sizeof(message) ? 0 : errno;
}

/* Base 1.4, B.5: a shadow doorbell that moves past the value that the device waits for is told. */
static int ring(const struct queue *queue, struct load *load, _Atomic uint32_t *page, _Atomic uint32_t *shadow,
                _Atomic uint32_t *event, uint64_t offset, uint32_t value)
{
    if (page) {
        atomic_store_explicit(page, value, memory_order_release);
        return 0;
    }
    if (shadow) {
        uint16_t before = (uint16_t)atomic_load_explicit(shadow, memory_order_relaxed);
        atomic_store_explicit(shadow, value, memory_order_release);
        atomic_thread_fence(memory_order_seq_cst);
        uint16_t awaited = (uint16_t)atomic_load_explicit(event, memory_order_relaxed);
        if ((uint16_t)(value - awaited - 1) >= (uint16_t)(value - before))
            return 0;
    }
    return post(queue, load, offset, value);
}

static int ring_tail(const struct queue *queue, struct load *load)
{
    return ring(queue, load, queue->tail_page, queue->tail_shadow, queue->tail_event, queue->tail_register,
                queue->tail);
}

static int ring_head(const struct queue *queue, struct load *load)
{
    return ring(queue, load, queue->head_page, queue->head_shadow, queue->head_event, queue->head_register,
                queue->head);
}

/* --- commands ------------------------------------------------------------------------------------------------------ */

uint64_t next_place(struct load *load)
{
    if (load->seed) { /* xorshift; a page is a multiple of the command's size */
        load->seed ^= load->seed << 13;
        load->seed ^= load->seed >> 7;
        load->seed ^= load->seed << 17;
        return load->seed % (load->disk_pages / load->pages) * load->pages;
    }
    uint64_t place = load->cursor;
    load->cursor = place + 2 * load->pages > load->disk_pages ? 0 : place + load->pages;
    return place;
}

static uint8_t *buffer_of(const struct state *state, uint32_t slot)
{
    return state->queue->data + (uint64_t)slot * state->load->pages * PAGE;
}

static uint64_t second_prp(const struct state *state, uint32_t slot, uint64_t prp1)
{
    uint32_t pages = state->load->pages;
    uint64_t *list = state->queue->lists + slot * LISTED;

    if (pages <= 2)
        return pages == 2 ? prp1 + PAGE : 0;
    for (uint32_t i = 1; i < pages; i++)
        list[i - 1] = prp1 + (uint64_t)i * PAGE;
    return state->queue->lists_iova + slot * PAGE;
}

/* Each page of the disk begins with its place. */
static void stamp(uint8_t *data, uint64_t place, uint32_t pages)
{
    for (uint32_t i = 0; i < pages; i++, place++)
        memcpy(data + (uint64_t)i * PAGE, &place, sizeof(place));
}

static bool is_stamped(const uint8_t *data, uint64_t place, uint32_t pages)
{
    for (uint32_t i = 0; i < pages; i++, place++)
        if (memcmp(data + (uint64_t)i * PAGE, &place, sizeof(place)) != 0)
            return false;
    return true;
}

/* To be deallocated. */
static void set_range(uint8_t *data, uint64_t place, uint32_t pages)
{
    struct nvme_dsm_range range = {.length = pages * (PAGE / 512), .slba = place * (PAGE / 512)};

    memcpy(data, &range, sizeof(range));
}

static void set_sgl(struct nvme_read_write *command, uint64_t iova, uint32_t length)
{
    struct nvme_sgl_descriptor block = {.address = iova, .length = length};

    command->flags = NVME_PSDT_SGL << (NVME_READ_WRITE_PSDT_BIT - 8);
    memcpy(&command->prp1, &block, sizeof(block)); /* in the place of both PRPs */
}

static void submit(struct state *state, uint32_t slot, uint64_t time)
{
    struct queue *queue = state->queue;
    struct load *load = state->load;
    uint32_t opcode = is_between(load, state->begun) ? NVME_NVM_OPCODE_WRITE : load->opcode;
    uint32_t in_page = PAGE / (load->block ? load->block : 512);
    uint64_t place = next_place(load), prp1 = queue->data_iova + (uint64_t)slot * load->pages * PAGE;

    if (opcode == NVME_NVM_OPCODE_DATASET_MANAGEMENT)
        set_range(buffer_of(state, slot), place, load->pages);
    else if (opcode == NVME_NVM_OPCODE_WRITE)
        stamp(buffer_of(state, slot), place, load->pages);
    else if (load->check)
        stamp(buffer_of(state, slot), ~place, load->pages);
    queue->sq[queue->tail] = (struct nvme_read_write){
        .opcode = (uint8_t)opcode,
        .cid = (uint16_t)slot,
        .nsid = 1,
        .prp1 = prp1,
        .prp2 = second_prp(state, slot, prp1),
        .slba = place * in_page,
        .cdw12 = (load->pages * in_page - 1) | (opcode == load->opcode ? load->cdw12 : 0),
        .mptr = load->has_metadata ? queue->lists_iova + slot * PAGE : 0,
        .cdw14 = (uint32_t)(place * in_page), /* what a reference tag of type 1 is */
    };
    if (load->has_sgl)
        set_sgl(&queue->sq[queue->tail], prp1, load->pages * PAGE);
    if (opcode == NVME_NVM_OPCODE_DATASET_MANAGEMENT)
        queue->sq[queue->tail].slba = 1ull << (NVME_DATASET_MANAGEMENT_AD_BIT - 320); /* in its place: one range */
    queue->tail = queue->tail + 1 == queue->entries ? 0 : queue->tail + 1;
    state->submitted[slot] = time;
    state->place[slot] = place;
    state->begun++;
    state->outstanding++;
}

static void complete(struct state *state, uint64_t high, uint64_t time)
{
    struct load *load = state->load;
    uint32_t slot = CID(high);

    if (load->done < load->room)
        load->samples[load->done] = (uint32_t)(time - state->submitted[slot]);
    load->done++;
    load->failed += STATUS(high) != 0;
    if (load->check && load->opcode == NVME_NVM_OPCODE_READ)
        load->wrong += !is_stamped(buffer_of(state, slot), state->place[slot], load->pages);
    state->outstanding--;
}

/* Take what has come, submit in its place. The number of completions, or -1 with errno. */
static int turn(struct state *state, bool goes_on, uint64_t time)
{
    struct queue *queue = state->queue;
    int taken = 0, error = 0;
    uint32_t tail = queue->tail;

    for (;;) {
        const uint8_t *entry = queue->cq + (uint64_t)queue->head * NVME_CQE_SIZE;
        uint64_t high = __atomic_load_n((const uint64_t *)(const void *)(entry + 8), __ATOMIC_ACQUIRE);
        if (PHASE(high) != queue->phase)
            break;
        if (taken++ == 0)
            time = now(CLOCK_MONOTONIC);
        if (++queue->head == queue->entries) {
            queue->head = 0;
            queue->phase ^= 1;
        }
        complete(state, high, time);
        if (goes_on)
            submit(state, CID(high), time);
    }
    if (queue->tail != tail)
        error = ring_tail(queue, state->load);
    if (taken > 0 && error == 0)
        error = ring_head(queue, state->load);
    errno = error;
    return error ? -1 : taken;
}

static bool is_over(const struct load *load, uint64_t begun, uint64_t spent)
{
    return (load->time && spent >= load->time) || (load->commands && begun >= load->commands);
}

static int begin(struct state *states, uint32_t count, uint64_t time)
{
    for (uint32_t i = 0; i < count; i++) {
        const struct load *load = states[i].load;
        for (uint32_t slot = 0; slot < load->depth && !(load->commands && slot * count >= load->commands); slot++)
            submit(&states[i], slot, time);
        int error = ring_tail(states[i].queue, states[i].load);
        if (error)
            return error;
    }
    return 0;
}

static uint32_t outstanding(const struct state *states, uint32_t count)
{
    uint32_t sum = 0;

    for (uint32_t i = 0; i < count; i++)
        sum += states[i].outstanding;
    return sum;
}

int run_load(struct queue *queues, uint32_t count, struct load *load)
{
    struct state *states = calloc(count, sizeof(*states));
    uint64_t start = now(CLOCK_MONOTONIC), time = start, last = start;

    if (!states)
        return ENOMEM;
    for (uint32_t i = 0; i < count; i++) {
        states[i].queue = &queues[i];
        states[i].load = load;
    }
    int error = begin(states, count, start);
    uint32_t under_way = outstanding(states, count);
    while (error == 0 && under_way > 0) {
        int taken = 0;
        for (uint32_t i = 0; i < count && error == 0; i++) {
            int one = turn(&states[i], !is_over(load, load->done + under_way, time - start), time);
            taken += one < 0 ? 0 : one;
            error = one < 0 ? errno : 0;
        }
        time = now(CLOCK_MONOTONIC);
        under_way = outstanding(states, count);
        if (taken > 0)
            last = time;
        else if (time - last > PATIENCE)
            error = ETIMEDOUT;
        else
            relax();
    }
    load->elapsed = time - start;
    free(states);
    return error;
}

/* --- the floor ----------------------------------------------------------------------------------------------------- */

/* The data is whole pages, as the host above has it. */
static void transfer(const struct floor *floor, const struct nvme_read_write *command)
{
    uint64_t pages = nvme_read_write_nlb(command) * 512 / PAGE;
    const uint64_t *list = pages > 2 ? (const uint64_t *)(const void *)(floor->guest + command->prp2) : &command->prp2;

    for (uint64_t i = 0; i < pages; i++) {
        uint8_t *guest = floor->guest + (i == 0 ? command->prp1 : list[i - 1]);
        uint8_t *disk = floor->disk + command->slba * 512 + i * PAGE;
        if (command->opcode == NVME_NVM_OPCODE_WRITE)
            memcpy(disk, guest, PAGE);
        else
            memcpy(guest, disk, PAGE);
    }
}

static uint64_t serve(const struct floor *floor, struct queue *queue)
{
    uint32_t tail = atomic_load_explicit(queue->tail_page, memory_order_acquire);
    uint64_t served = 0;

    for (; queue->tail != tail; served++) {
        struct nvme_read_write command;
        memcpy(&command, &queue->sq[queue->tail], sizeof(command));
        transfer(floor, &command);
        queue->tail = queue->tail + 1 == queue->entries ? 0 : queue->tail + 1;
        uint64_t *entry = (uint64_t *)(void *)(queue->cq + (uint64_t)queue->head * NVME_CQE_SIZE);
        uint64_t high = queue->tail | (uint64_t)queue->qid << 16 | (uint64_t)command.cid << 32 |
                        (uint64_t)queue->phase << (NVME_COMPLETION_PHASE_BIT - 64);
        __atomic_store_n(&entry[0], 0, __ATOMIC_RELAXED);
        __atomic_store_n(&entry[1], high, __ATOMIC_RELEASE);
        if (++queue->head == queue->entries) {
            queue->head = 0;
            queue->phase ^= 1;
        }
    }
    return served;
}

static bool has_work(const struct floor *floor)
{
    for (uint32_t i = 0; i < floor->count; i++)
        if (atomic_load_explicit(floor->queues[i].tail_page, memory_order_relaxed) != floor->queues[i].tail)
            return true;
    return false;
}

/* The time without work counts as idle. Until it was told to stop: true if there is work. */
static bool wait_for_work(struct floor *floor)
{
    uint64_t since = floor->counts_idle ? now(CLOCK_THREAD_CPUTIME_ID) : 0;
    bool is_stopped;

    while (!(is_stopped = atomic_load_explicit(&floor->stop, memory_order_relaxed)) && !has_work(floor))
        relax();
    if (floor->counts_idle)
        floor->idle += now(CLOCK_THREAD_CPUTIME_ID) - since;
    return !is_stopped;
}

void run_floor(struct floor *floor)
{
    uint64_t start = now(CLOCK_THREAD_CPUTIME_ID);

    while (wait_for_work(floor)) {
        uint64_t served;
        do {
            served = 0;
            for (uint32_t i = 0; i < floor->count; i++)
                served += serve(floor, &floor->queues[i]);
            floor->served += served;
        } while (served > 0);
    }
    floor->cpu = now(CLOCK_THREAD_CPUTIME_ID) - start - floor->idle;
}
