/* A slot counts only once all of it is there. A kill stops a thread between two instructions, and what it has stored
   before lies in the page cache. So nothing but the order of the stores matters. */

#include <stddef.h>
#include <string.h>

#include "journal.h"

#define WRITTEN_AT_ONCE 4096 /* bytes: what lies in one page is copied without a look at signals */

_Static_assert(sizeof(struct slot) <= JOURNAL_HEAD, "the head of a slot");

struct slot *journal_slot(const struct journal *journal, uint32_t number)
{
    uint64_t stride = JOURNAL_HEAD + (uint64_t)journal->unit + journal->metadata;

    return (struct slot *)(void *)(journal->slots + number * stride);
}

uint8_t *slot_data(struct slot *slot)
{
    return (uint8_t *)slot + JOURNAL_HEAD;
}

bool journal_needs(const struct journal *journal, uint64_t offset, uint64_t size, uint64_t metadata_size)
{
    bool may_be_cut = offset % WRITTEN_AT_ONCE + size > WRITTEN_AT_ONCE || metadata_size > 0;

    return journal && size <= journal->unit && may_be_cut;
}

static struct slot *take(const struct journal *journal)
{
    for (uint32_t i = 0; i < journal->count; i++) {
        struct slot *slot = journal_slot(journal, i);
        uint32_t state = SLOT_FREE;
        if (__atomic_load_n(&slot->state, __ATOMIC_RELAXED) == SLOT_FREE &&
            __atomic_compare_exchange_n(&slot->state, &state, SLOT_TAKEN, false, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
            return slot;
    }
    return NULL;
}

struct slot *journal_keep(const struct journal *journal, uint64_t offset, const uint8_t *data, uint32_t size,
                          const uint8_t *metadata, uint32_t metadata_size)
{
    struct slot *slot = size <= journal->unit && metadata_size <= journal->metadata ? take(journal) : NULL;

    if (!slot)
        return NULL;
    slot->size = size;
    slot->metadata_size = metadata_size;
    slot->offset = offset;
    memcpy(slot_data(slot), data, size);
    if (metadata_size > 0)
        memcpy(slot_data(slot) + journal->unit, metadata, metadata_size);
    __atomic_store_n(&slot->state, SLOT_WHOLE, __ATOMIC_RELEASE);
    return slot;
}

void journal_release(struct slot *slot)
{
    if (slot)
        __atomic_store_n(&slot->state, SLOT_FREE, __ATOMIC_RELEASE);
}

bool journal_is_empty(const struct journal *journal)
{
    for (uint32_t i = 0; i < journal->count; i++)
        if (__atomic_load_n(&journal_slot(journal, i)->state, __ATOMIC_RELAXED) != SLOT_FREE)
            return false;
    return true;
}
