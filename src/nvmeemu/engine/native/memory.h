/* Guest memory: the map from guest addresses to memory of ours. */

#ifndef NVMEEMU_MEMORY_H
#define NVMEEMU_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

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

#endif
