/* Guest memory: the map from guest addresses to memory of ours. */

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "memory.h"

/* The number of regions that begin at or below iova. */
static size_t regions_up_to(const struct memory *memory, uint64_t iova)
{
    size_t low = 0, high = memory->count;

    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (memory->regions[middle].iova <= iova)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

bool memory_add(struct memory *memory, struct region region)
{
    size_t index = regions_up_to(memory, region.iova);

    if (region.size == 0 || region.iova + (region.size - 1) < region.iova) {
        errno = EINVAL;
        return false;
    }
    if (index > 0 && memory->regions[index - 1].iova == region.iova) { /* the same region again */
        memory->regions[index - 1] = region;
        return true;
    }
    if (memory->count == memory->room) {
        size_t room = memory->room ? memory->room * 2 : 16;
        struct region *regions = realloc(memory->regions, room * sizeof(*regions));
        if (!regions)
            return false;
        memory->regions = regions;
        memory->room = room;
    }
    memmove(&memory->regions[index + 1], &memory->regions[index], (memory->count - index) * sizeof(region));
    memory->regions[index] = region;
    memory->count++;
    return true;
}

bool memory_remove(struct memory *memory, uint64_t iova)
{
    size_t index = regions_up_to(memory, iova);

    if (index == 0 || memory->regions[index - 1].iova != iova)
        return false;
    memory->count--;
    memmove(&memory->regions[index - 1], &memory->regions[index], (memory->count + 1 - index) * sizeof(struct region));
    return true;
}

uint8_t *guest_at(struct guest *guest, uint64_t iova, uint64_t *size, bool writable)
{
    const struct region *region = guest->hit;

    if (!region || iova - region->iova >= region->size) {
        size_t index = regions_up_to(guest->memory, iova);
        if (index == 0)
            return NULL;
        region = &guest->memory->regions[index - 1];
        if (iova - region->iova >= region->size)
            return NULL;
        guest->hit = region;
    }
    if (writable && !region->writable)
        return NULL;
    uint64_t there = region->size - (iova - region->iova);
    if (*size > there)
        *size = there;
    return region->memory + (iova - region->iova);
}

uint8_t *guest_whole(struct guest *guest, uint64_t iova, uint64_t size)
{
    uint64_t there = size;
    uint8_t *at = guest_at(guest, iova, &there, true);

    return there == size ? at : NULL;
}
