/* What of a disk is being read and written, so that nobody reads half of a write. It is for the engine and for Python,
   which both use a disk. */

#ifndef NVMEEMU_RANGES_H
#define NVMEEMU_RANGES_H

#include <stdbool.h>
#include <stdint.h>

/* Of one disk; all zeros in the beginning. */
struct ranges {
    struct range *first, *last; /* in the order in which they have come */
    uint32_t is_locked;
};

/* Bytes that a command reads or writes. */
struct range {
    struct ranges *of; /* NULL: it is not held */
    struct range *next, *before;
    uint64_t start, end;
    bool is_write;
};

/* Hold it until range_leave. False: somebody else writes there, or reads what is to be written. Without ranges (NULL)
   nothing is held. */
bool range_try(struct ranges *ranges, struct range *range, uint64_t start, uint64_t size, bool is_write);
/* The same, and wait for those that were there before: for threads that may wait. */
void range_enter(struct ranges *ranges, struct range *range, uint64_t start, uint64_t size, bool is_write);
/* No effect unless it is held. */
void range_leave(struct range *range);
/* `to` holds from now on what `range` has held. */
void range_move(struct range *range, struct range *to);

#endif
