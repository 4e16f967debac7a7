/* Writes that are under way, kept beside the disk: if the process is killed in the middle of one, the next start does
   it again. The journal is a file that is mapped into memory; what was put into it survives the process.

   It is for the engine and for Python, which both write to a disk. */

#ifndef NVMEEMU_JOURNAL_H
#define NVMEEMU_JOURNAL_H

#include <stdbool.h>
#include <stdint.h>

#define JOURNAL_HEAD 4096 /* bytes before the data of each slot, and before the first slot */

/* The slots of a journal: `unit` bytes of data each, and behind them `metadata` bytes. */
struct journal {
    uint8_t *slots;
    uint32_t count, unit, metadata;
};

enum slot_state { SLOT_FREE, SLOT_TAKEN, SLOT_WHOLE };

struct slot {
    uint32_t state;
    uint32_t size, metadata_size; /* bytes */
    uint64_t offset; /* of the write, in bytes */
};

/* A write needs a slot: the kernel may end it between two pages when the process is killed, and its metadata are another
   write. */
bool journal_needs(const struct journal *journal, uint64_t offset, uint64_t size, uint64_t metadata_size);
/* Keep a write. NULL: there is no room for it now, or it is too large. */
struct slot *journal_keep(const struct journal *journal, uint64_t offset, const uint8_t *data, uint32_t size,
                          const uint8_t *metadata, uint32_t metadata_size);
/* The write is done. NULL: no effect. */
void journal_release(struct slot *slot);
struct slot *journal_slot(const struct journal *journal, uint32_t number);
uint8_t *slot_data(struct slot *slot);
/* No write is under way. */
bool journal_is_empty(const struct journal *journal);

#endif
