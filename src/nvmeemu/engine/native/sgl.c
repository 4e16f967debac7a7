/* Scatter Gather Lists: where a command's data lies in guest memory. Base 1.4, 4.4.

   The rules are those of sgl.py, which also knows all other kinds of descriptors and lists. */

#include <string.h>

#include "memory.h"
#include "nvme_spec.h"
#include "prp.h"
#include "sgl.h"

#define WORD sizeof(uint64_t)

/* One descriptor of a segment, read once. */
static bool descriptor_at(struct guest *guest, uint64_t iova, struct nvme_sgl_descriptor *descriptor)
{
    uint64_t there = sizeof(*descriptor), words[sizeof(*descriptor) / WORD];
    const uint64_t *at = (const uint64_t *)(const void *)guest_at(guest, iova, &there, false);

    if (!at || there != sizeof(*descriptor))
        return false;
    words[0] = __atomic_load_n(at, __ATOMIC_RELAXED);
    words[1] = __atomic_load_n(at + 1, __ATOMIC_RELAXED);
    memcpy(descriptor, words, sizeof(words));
    return true;
}

static bool is_at_address(const struct nvme_sgl_descriptor *descriptor, uint64_t kind)
{
    return nvme_sgl_descriptor_kind(descriptor) == kind && nvme_sgl_descriptor_subtype(descriptor) == 0;
}

/* Of a last segment. What is longer than the data is not used. */
static bool walk_segment(struct transfer *transfer, struct guest *guest, const struct nvme_sgl_descriptor *segment,
                         uint64_t left, bool writable)
{
    uint64_t iova = segment->address, count = segment->length / sizeof(*segment);

    if (iova & (WORD - 1) || segment->length % sizeof(*segment) || iova + segment->length < iova)
        return false;
    for (uint64_t i = 0; i < count && i < MAX_PIECES; i++, iova += sizeof(*segment)) {
        struct nvme_sgl_descriptor block;
        if (!descriptor_at(guest, iova, &block) || !is_at_address(&block, NVME_SGL_TYPE_DATA_BLOCK))
            return false;
        uint64_t size = block.length < left ? block.length : left;
        if (size > 0 && !transfer_add(transfer, guest, block.address, size, writable))
            return false;
        left -= size;
        if (left == 0)
            return block.address + (block.length - 1) >= block.address;
    }
    return false;
}

bool sgl_walk(struct transfer *transfer, struct guest *guest, const struct nvme_read_write *command, uint64_t length,
              bool writable)
{
    struct nvme_sgl_descriptor first;

    memcpy(&first, &command->prp1, sizeof(first)); /* SGL1 has the place of both PRPs */
    transfer->count = transfer->run_count = 0;
    transfer->is_sgl = true;
    transfer->has_list = is_at_address(&first, NVME_SGL_TYPE_LAST_SEGMENT);
    if (transfer->has_list)
        return walk_segment(transfer, guest, &first, length, writable);
    return is_at_address(&first, NVME_SGL_TYPE_DATA_BLOCK) && first.length >= length &&
           first.address + (first.length - 1) >= first.address &&
           transfer_add(transfer, guest, first.address, length, writable);
}
