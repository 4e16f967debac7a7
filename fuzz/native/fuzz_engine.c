/* A libFuzzer target for the native engine: submission queue entries, lists of PRPs and SGLs, doorbells, memory that comes and goes,
   queues that are deleted, resets. A program is a byte for the page size, the first queues and whether doorbells are
   mapped, and instructions of 16 bytes; the host's books (host.c, rings.c) see that each command that was fetched is
   completed once, or handed to Python, and by nobody else.

   scripts/fuzz_engine.sh builds and runs it. */

#include <string.h>

#include "host.h"

#define WIDTH 16

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint16_t word(const uint8_t *args)
{
    return (uint16_t)(args[0] | args[1] << 8);
}

/* A page: mostly memory, sometimes none, read-only, of an odd size, at the very end, or the last of a region. */
static uint64_t page_of(uint8_t choice)
{
    if (choice < 0xD0)
        return 0x300000 + PAGE * (choice % 12);
    if (choice < 0xE0)
        return 0x501000; /* a region ends in it */
    static const uint64_t strange[] = {0x400000, 0x401000, -1ull * PAGE, -2ull * PAGE, 0x500000, 0x501000,
                                       0x30C000, 0x600000, 0,           0x2FF000,    0x200000, 0x202000};
    return strange[choice % (sizeof(strange) / sizeof(*strange))];
}

static uint64_t list_of(uint8_t page, uint8_t choice)
{
    static const uint16_t slots[] = {0, 1, 2, 255, 508, 509, 510, 511};
    uint16_t slot = choice < 0xC0 ? slots[choice % 8] : choice;
    return 0x200000 + PAGE * (page % 4u) + 8u * slot + (choice == 0xFF ? 4 : 0);
}

/* A data block, or a last segment in the memory of lists; mostly. What stands there, write_sgl has written. */
static void point_at_sgl(struct nvme_read_write *entry, const uint8_t *args)
{
    static const uint8_t kinds[] = {NVME_SGL_TYPE_DATA_BLOCK,   NVME_SGL_TYPE_LAST_SEGMENT, NVME_SGL_TYPE_LAST_SEGMENT,
                                    NVME_SGL_TYPE_LAST_SEGMENT, NVME_SGL_TYPE_SEGMENT,      NVME_SGL_TYPE_BIT_BUCKET};
    uint8_t kind = args[5] < 0xF0 ? kinds[args[5] % 6] : args[5];
    bool is_list = kind == NVME_SGL_TYPE_LAST_SEGMENT || kind == NVME_SGL_TYPE_SEGMENT;
    uint64_t length = is_list ? (args[6] % 20u) * 16 : args[6] * 512ull;

    entry->flags = 0x40;
    entry->prp1 = is_list ? list_of(args[7], args[8]) : page_of(args[4]) + args[8];
    entry->prp2 = length + (args[7] > 0xE0 ? args[7] & 15 : 0) + (args[4] == 0xFF ? 0xFFFF0000u : 0) +
                  ((uint64_t)kind << 60) + (args[7] == 0xFF ? 1ull << 56 : 0);
}

static void point_at(struct nvme_read_write *entry, const uint8_t *args)
{
    entry->prp1 = page_of(args[4]) + (args[5] & 1 ? 16u * args[6] : args[5] & 2 ? args[6] : 0);
    entry->prp2 = args[5] & 4 ? list_of(args[7], args[8]) : page_of(args[7]) + (args[8] > 0xF0 ? args[8] : 0);
}

static struct nvme_read_write entry_of(const uint8_t *args)
{
    static const uint8_t opcodes[] = {NVME_NVM_OPCODE_READ,         NVME_NVM_OPCODE_WRITE,
                                      NVME_NVM_OPCODE_READ,         NVME_NVM_OPCODE_FLUSH,
                                      NVME_NVM_OPCODE_READ,         NVME_NVM_OPCODE_WRITE,
                                      NVME_NVM_OPCODE_WRITE_ZEROES, NVME_NVM_OPCODE_DATASET_MANAGEMENT};
    struct nvme_read_write entry;
    uint64_t slba = args[9];

    memset(&entry, 0, sizeof(entry));
    entry.opcode = args[1] < 0xF0 ? opcodes[args[1] % 8] : args[2];
    entry.flags = args[1] == 0xEF ? args[2] : 0;
    entry.nsid = args[3] < 0xF0 ? args[3] % 8u : args[3] == 0xFF ? 0xFFFFFFFFu : args[3];
    (args[14] & 4 ? point_at_sgl : point_at)(&entry, args);
    entry.slba = args[10] & 0x80 ? ~slba : args[10] & 0x40 ? slba << 56 : slba;
    uint32_t nlb = args[11] % 160u; /* 0's based; the whole disk has 128 blocks */
    entry.cdw12 = nlb | (args[12] & 1 ? (uint32_t)args[13] << 24 : 0) | (args[12] & 2 ? 1u << 31 : 0);
    return entry;
}

static void write_list(struct host *host, const uint8_t *args)
{
    uint64_t place = list_of(args[1], args[2]), entry;

    for (unsigned i = 0; i < 16; i++, place += 8) {
        uint8_t choice = args[3 + i % 10];
        entry = args[13] & 1 && i == args[13] >> 4 ? list_of(choice, args[14]) : page_of(choice);
        entry += args[13] & 2 && i == args[13] >> 4 ? args[14] : 0;
        host_write(host, place, &entry, sizeof(entry));
    }
}

/* Descriptors: mostly data blocks, one of them of another kind. */
static void write_sgl(struct host *host, const uint8_t *args)
{
    uint64_t place = list_of(args[1], args[2]);

    for (unsigned i = 0; i < 16; i++, place += 16) {
        uint8_t choice = args[3 + i % 10];
        bool is_odd = i == args[13] >> 4;
        uint64_t words[2] = {page_of(choice) + (args[14] & 2 ? choice : 0), PAGE};
        words[1] = is_odd && args[13] & 1 ? args[14] : words[1];
        words[1] |= is_odd && args[13] & 2 ? (uint64_t)args[14] << 56 : 0;
        words[0] = is_odd && args[13] & 4 ? -(uint64_t)args[14] : words[0];
        host_write(host, place, words, sizeof(words));
    }
}

/* Of a Dataset Management, where its data is: mostly on the disk, the first one so long as a byte says. */
static void write_ranges(struct host *host, const struct nvme_read_write *entry, const uint8_t *args)
{
    if (entry->prp1 >= 0x3FF000 && entry->prp1 < 0x402000)
        return; /* read-only memory must stay as it is */
    for (unsigned i = 0; i < 16; i++) {
        struct nvme_dsm_range range = {args[i % 13], args[i % 13 + 1] % 16u, args[i % 13 + 2] % 112u};
        range.length |= i == 0 && args[13] & 1 ? (uint32_t)args[13] << 24 : 0;
        range.slba = args[13] & 2 ? ~range.slba : range.slba;
        host_write(host, entry->prp1 + i * sizeof(range), &range, sizeof(range));
    }
}

static void submit(struct host *host, unsigned queue, const uint8_t *args)
{
    struct nvme_read_write entry = entry_of(args);

    if (entry.opcode == NVME_NVM_OPCODE_DATASET_MANAGEMENT && args[14] & 2) {
        entry.slba = args[10] % 16u | (uint64_t)(args[10] >> 4) << 32;
        write_ranges(host, &entry, args);
    }
    host_submit(host, queue, &entry);
    if (args[14] & 1)
        host_ring_sq(host, queue, host->sqs[queue].tail);
}

static void use_shadows(struct host *host, unsigned queue, const uint8_t *args)
{
    struct host_sq *sq = &host->sqs[queue];
    struct host_cq *cq = &host->cqs[queue];
    /* Or a place where there is no memory. */
    uint64_t tail = args[2] == 0xFF ? 0x600000 : host_shadow(queue, false), head = host_shadow(queue, true);

    if (!host->places[QUEUE_MEMORY].memory)
        return; /* what it says must be true */
    if (sq->sq) {
        uint32_t value = queue_host((struct queue *)sq->sq);
        host_write(host, host_shadow(queue, false), &value, sizeof(value));
        queue_set_shadow((struct queue *)sq->sq, tail, args[2] == 0xFE ? 0x600000 : tail + 8);
        sq->shadow = value;
        sq->has_shadow = true;
    }
    if (cq->cq) {
        host_write(host, head, &cq->head, sizeof(cq->head));
        queue_set_shadow((struct queue *)cq->cq, head, head + 8);
        cq->has_shadow = true;
    }
}

/* Doorbells by their numbers: of queues, of main's, of nobody's, and around the page's end. */
static void use_doorbells(struct host *host, const uint8_t *args)
{
    uint32_t number = args[1] < 0xE0 ? args[1] % 8u : DOORBELLS - 8 + args[2] % 16u;
    uint32_t value = args[3] & 0x80 ? word(args + 4) * 0x10001u : args[4] % 16u;

    switch (args[3] % 8) {
    case 0:
        host_watch(host, args[4] & 1);
        break;
    case 1:
        host_forget(host, number);
        break;
    case 2:
        engine_take_doorbells(host->engine, args[4] & 1);
        break;
    case 3:
        host_ring(host, number, value, true);
        break;
    default:
        host_ring(host, number, value, false);
        break;
    }
}

static void change_rules(struct host *host, unsigned queue, const uint8_t *args)
{
    switch (args[1] % 7) {
    case 0:
        host_pause(host, args[2] & 1);
        break;
    case 1:
        engine_hold(host->engine, args[2] & 1);
        break;
    case 2:
        if (host->sqs[queue].sq)
            engine_hold_sq(host->sqs[queue].sq, args[2] & 1);
        break;
    case 3:
        engine_set_coalescing(host->engine, args[2] & 1 ? 1000 : 0, args[3] % 4u);
        engine_coalesce_vector(host->engine, 0);
        break;
    case 4:
        engine_signal_all(host->engine);
        break;
    case 5:
        if (host->cqs[queue].cq)
            engine_look(host->cqs[queue].cq);
        break;
    case 6:
        engine_trace(host->engine, args[2] & 1, 0);
        break;
    }
}

static void change_queues(struct host *host, unsigned queue, const uint8_t *args)
{
    if (args[1] % 8 == 0) {
        host_reset(host);
    } else {
        unsigned other = 1 - queue;
        host_remove_sq(host, queue);
        if (args[1] & 1 && host->cqs[queue].cq && !host->sqs[queue].sq &&
            !(host->sqs[other].sq && host->sqs[other].cq == queue)) {
            host_consume(host, queue, MAX_ENTRIES);
            engine_remove_cq(host->engine, host->cqs[queue].cq);
            host->cqs[queue].cq = NULL;
        }
    }
    host_add_queues(host, queue, args[2] % (MAX_ENTRIES - 2) + 2, args[3] % (MAX_ENTRIES - 2) + 2,
                    args[4] & 1 ? 0 : queue);
}

/* With any value; what it makes the engine fetch again is counted. */
static void ring(struct host *host, unsigned queue, const uint8_t *args)
{
    if (args[0] & 0x20)
        use_doorbells(host, args);
    else
        host_ring_sq(host, queue, word(args + 1) % 16);
}

static void consume(struct host *host, unsigned queue, const uint8_t *args)
{
    host_consume(host, queue, args[1] % 8);
    if (host->cqs[queue].cq && args[1] == 0xFF)
        host_ring(host, doorbell(queue, true), MAX_ENTRIES + args[2], args[3] & 1); /* no queue is so long */
}

static void complete_some(struct host *host, const uint8_t *args)
{
    for (unsigned i = 0; i <= args[1] % 4u; i++)
        host_complete(host);
}

static void write_pointers(struct host *host, const uint8_t *args)
{
    if (args[15] & 1)
        write_sgl(host, args);
    else
        write_list(host, args);
}

static void run(struct host *host, const uint8_t *args)
{
    unsigned queue = args[0] >> 4 & 1;

    switch (args[0] & 15) {
    default:
        submit(host, queue, args);
        break;
    case 6:
    case 7:
    case 8:
        write_pointers(host, args);
        break;
    case 9:
        ring(host, queue, args);
        break;
    case 10:
        consume(host, queue, args);
        break;
    case 11:
        complete_some(host, args);
        break;
    case 12:
        (args[2] & 1 ? host_map : host_unmap)(host, args[1] % REGIONS);
        break;
    case 13:
        use_shadows(host, queue, args);
        break;
    case 14:
        change_rules(host, queue, args);
        break;
    case 15:
        change_queues(host, queue, args);
        break;
    }
    host_sync(host);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct host hosts[2]; /* doorbells that are mapped stay it */

    if (size < 1 + WIDTH)
        return -1;
    struct host *host = &hosts[data[0] >> 4 & 1];
    if (!host->engine)
        host_start(host, host == &hosts[1]);
    host_begin(host, data[0] & 1 ? 2 * PAGE : PAGE);
    host_add_queues(host, 0, (data[0] >> 1 & 7) + 2, 4, 0);
    host_add_queues(host, 1, 4, 3, data[0] >> 7 & 1 ? 0 : 1);
    for (size_t at = 1; at + WIDTH <= size; at += WIDTH)
        run(host, data + at);
    host_end(host);
    return 0;
}
