/* What a lane does, as records of docs/trace-format.md. They wait in a ring of its own until main takes them; when it is
   full, records are left out and counted. */

#include <stdlib.h>

#include "engine.h"
#include "interface.h"
#include "lane.h"
#include "news.h"
#include "nvme_spec.h"
#include "prp.h"
#include "queue.h"
#include "trace.h"

#define RING_SIZE ((uint32_t)TRACE_RING) /* a power of two */

enum kind { DOORBELL = 3, FETCH = 4, PRP = 5, DIGEST = 6, COMPLETION = 8, INTERRUPT = 9, LOST = 18, SGL = 21 };

struct __attribute__((packed)) head {
    uint64_t time; /* nanoseconds since the trace began */
    uint16_t length;
    uint8_t kind, lane;
};

struct trace {
    _Atomic uint64_t put, taken; /* bytes; the lane's, and main's */
    uint64_t start, lost;
    uint8_t lane;
    uint8_t bytes[RING_SIZE];
};

#ifdef HAVE_LIBISAL

#include <isa-l/crc.h>

static uint32_t checksum(const struct transfer *transfer)
{
    uint32_t crc = 0;

    for (unsigned i = 0; i < transfer->count; i++)
        crc = crc32_gzip_refl(crc, transfer->pieces[i].iov_base, transfer->pieces[i].iov_len);
    return crc;
}

bool engine_can_trace(void)
{
    return true;
}

#else

static uint32_t checksum(const struct transfer *transfer)
{
    (void)transfer;
    return 0;
}

bool engine_can_trace(void)
{
    return false;
}

#endif

static struct trace *trace_new(uint8_t lane, uint64_t start)
{
    struct trace *trace = malloc(sizeof(*trace)); /* untouched pages cost nothing */

    if (trace) {
        atomic_init(&trace->put, 0);
        atomic_init(&trace->taken, 0);
        trace->start = start;
        trace->lost = 0;
        trace->lane = lane;
    }
    return trace;
}

static void copy_in(struct trace *trace, uint64_t at, const void *data, uint32_t size)
{
    uint32_t offset = at & (RING_SIZE - 1);
    uint32_t first = size < RING_SIZE - offset ? size : RING_SIZE - offset;

    memcpy(trace->bytes + offset, data, first);
    memcpy(trace->bytes, (const uint8_t *)data + first, size - first);
}

static bool fits(const struct trace *trace, uint64_t put, uint32_t size)
{
    return put + size - atomic_load_explicit(&trace->taken, memory_order_acquire) <= RING_SIZE;
}

static void put(struct lane *lane, enum kind kind, const void *body, uint32_t size, const void *more, uint32_t more_size)
{
    struct trace *trace = lane->trace;
    uint64_t at = atomic_load_explicit(&trace->put, memory_order_relaxed), time = monotonic_time() - trace->start;
    struct head head = {time, (uint16_t)(sizeof(head) + size + more_size), (uint8_t)kind, trace->lane};
    struct __attribute__((packed)) {
        struct head head;
        uint64_t records;
    } lost = {{time, sizeof(lost), LOST, trace->lane}, trace->lost};
    bool was_full = trace->lost > 0;

    if (!fits(trace, at, head.length + (was_full ? (uint32_t)sizeof(lost) : 0))) {
        trace->lost++;
        return;
    }
    if (was_full) {
        copy_in(trace, at, &lost, sizeof(lost));
        at += sizeof(lost);
        trace->lost = 0;
    }
    copy_in(trace, at, &head, sizeof(head));
    copy_in(trace, at + sizeof(head), body, size);
    if (more_size)
        copy_in(trace, at + sizeof(head) + size, more, more_size);
    atomic_store_explicit(&trace->put, at + head.length, memory_order_release);
    if (at + head.length - atomic_load_explicit(&trace->taken, memory_order_relaxed) > RING_SIZE / 4)
        engine_notify(lane->engine);
}

bool trace_is_empty(const struct trace *trace)
{
    return atomic_load(&trace->put) == atomic_load(&trace->taken);
}

static uint32_t trace_take(struct trace *trace, uint8_t *data)
{
    uint64_t taken = atomic_load_explicit(&trace->taken, memory_order_relaxed);
    uint32_t size = (uint32_t)(atomic_load_explicit(&trace->put, memory_order_acquire) - taken);
    uint32_t offset = taken & (RING_SIZE - 1);
    uint32_t first = size < RING_SIZE - offset ? size : RING_SIZE - offset;

    memcpy(data, trace->bytes + offset, first);
    memcpy(data + first, trace->bytes, size - first);
    atomic_store_explicit(&trace->taken, taken + size, memory_order_release);
    return size;
}

/* --- the records --------------------------------------------------------------------------------------------------- */

void trace_doorbell(struct lane *lane, const struct queue *queue, bool is_shadow, uint32_t value)
{
    struct __attribute__((packed)) {
        uint16_t qid;
        uint8_t is_cq, is_shadow;
        uint32_t value;
    } body = {(uint16_t)queue->qid, is_cq(queue), is_shadow, value};

    put(lane, DOORBELL, &body, sizeof(body), NULL, 0);
}

void trace_fetch(struct lane *lane, const struct sq *sq, uint32_t slot, const struct nvme_read_write *command)
{
    uint16_t body[] = {(uint16_t)sq->queue.qid, (uint16_t)slot};

    put(lane, FETCH, body, sizeof(body), command, sizeof(*command));
}

void trace_data(struct lane *lane, const struct sq *sq, const struct nvme_read_write *command, bool to_host)
{
    const struct transfer *transfer = &lane->transfer;
    struct __attribute__((packed)) {
        uint16_t sqid, cid;
        uint32_t to_host, length, crc;
    } body = {(uint16_t)sq->queue.qid, command->cid, to_host, 0, checksum(transfer)};

    for (unsigned i = 0; i < transfer->count; i++)
        body.length += (uint32_t)transfer->pieces[i].iov_len;
    struct __attribute__((packed)) {
        uint16_t sqid, cid;
        uint32_t of_metadata; /* a boolean and padding; of SGLs only */
    } list = {body.sqid, body.cid, 0};
    uint32_t list_size = transfer->is_sgl ? sizeof(list) : sizeof(list) - sizeof(list.of_metadata);
    if (transfer->has_list)
        put(lane, transfer->is_sgl ? SGL : PRP, &list, list_size, transfer->runs,
            transfer->run_count * (uint32_t)sizeof(*transfer->runs));
    put(lane, DIGEST, &body, sizeof(body), NULL, 0);
}

void trace_completion(struct lane *lane, const struct cq *cq, uint32_t slot, uint64_t low, uint64_t high)
{
    struct __attribute__((packed)) {
        uint16_t cqid, slot;
        uint64_t low, high;
    } body = {(uint16_t)cq->queue.qid, (uint16_t)slot, low, high};

    put(lane, COMPLETION, &body, sizeof(body), NULL, 0);
}

void trace_interrupt(struct lane *lane, uint32_t vector)
{
    uint16_t body[] = {(uint16_t)vector, 0};

    put(lane, INTERRUPT, body, sizeof(body), NULL, 0);
}

/* --- main ---------------------------------------------------------------------------------------------------------- */

bool engine_trace(struct engine *engine, bool is_traced, uint64_t start)
{
    bool is_good = !is_traced || engine_can_trace();

    for (uint32_t i = 0; i < engine->lane_count && is_good; i++) {
        struct lane *lane = &engine->lanes[i];
        struct trace *trace = is_traced ? trace_new((uint8_t)(i + 1), start) : NULL;
        lane_enter(lane);
        free(lane->trace);
        lane->trace = trace;
        lane->transfer.wants_runs = is_traced;
        lane_leave(lane);
        is_good = trace || !is_traced;
    }
    return is_good;
}

uint32_t engine_take_trace(struct engine *engine, uint8_t *data)
{
    for (uint32_t i = 0; i < engine->lane_count; i++) {
        uint32_t size = engine->lanes[i].trace ? trace_take(engine->lanes[i].trace, data) : 0;
        if (size > 0)
            return size;
    }
    return 0;
}
