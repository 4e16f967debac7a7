/* Physical Region Pages: where a command's data lies in guest memory. Base 1.4, 4.3.

   The rules are those of prp.py, which says what is wrong where this walk only says no. */

#include <string.h>

#include "memory.h"
#include "prp.h"

#define PRP_SIZE 8

static void add_run(struct transfer *transfer, uint64_t iova, uint64_t size)
{
    struct run *last = transfer->run_count ? &transfer->runs[transfer->run_count - 1] : NULL;

    if (last && last->iova + last->size == iova)
        last->size += (uint32_t)size;
    else if (transfer->run_count < MAX_PIECES)
        transfer->runs[transfer->run_count++] = (struct run){iova, (uint32_t)size};
}

bool transfer_add(struct transfer *transfer, struct guest *guest, uint64_t iova, uint64_t size, bool writable)
{
    if (iova + (size - 1) < iova)
        return false;
    if (transfer->wants_runs)
        add_run(transfer, iova, size);
    while (size > 0) {
        uint64_t there = size;
        uint8_t *at = guest_at(guest, iova, &there, writable);
        struct iovec *last = transfer->count ? &transfer->pieces[transfer->count - 1] : NULL;
        if (!at)
            return false;
        if (last && (uint8_t *)last->iov_base + last->iov_len == at) {
            last->iov_len += there;
        } else {
            if (transfer->count == MAX_PIECES)
                return false;
            transfer->pieces[transfer->count++] = (struct iovec){at, there};
        }
        iova += there;
        size -= there;
    }
    return true;
}

/* One entry of a list, read once. */
static bool entry_at(struct guest *guest, uint64_t iova, uint64_t *entry)
{
    uint64_t there = PRP_SIZE;
    uint8_t *at = guest_at(guest, iova, &there, false);

    if (!at || there != PRP_SIZE)
        return false;
    *entry = __atomic_load_n((const uint64_t *)(const void *)at, __ATOMIC_RELAXED);
    return true;
}

/* A list may start anywhere in a page. The last entry of the page points to more of them, but only if more than one
   page of data is still to come. */
static bool walk_list(struct transfer *transfer, struct guest *guest, uint64_t pointer, uint64_t left,
                      uint64_t page_size, bool writable)
{
    if (pointer & (PRP_SIZE - 1))
        return false;
    while (left > 0) {
        uint64_t entry, size = left < page_size ? left : page_size;
        bool is_last_slot = (pointer & (page_size - 1)) == page_size - PRP_SIZE;
        if (!entry_at(guest, pointer, &entry) || entry & (page_size - 1))
            return false;
        if (is_last_slot && left > page_size) {
            pointer = entry;
            continue;
        }
        if (!transfer_add(transfer, guest, entry, size, writable))
            return false;
        left -= size;
        pointer += PRP_SIZE;
    }
    return true;
}

bool prp_walk(struct transfer *transfer, struct guest *guest, uint64_t prp1, uint64_t prp2, uint64_t length,
              uint64_t page_size, bool writable)
{
    uint64_t first = page_size - (prp1 & (page_size - 1));

    transfer->count = transfer->run_count = 0;
    transfer->is_sgl = false;
    transfer->has_list = length > first && length - first > page_size;
    if (prp1 & 3)
        return false;
    if (length <= first)
        return transfer_add(transfer, guest, prp1, length, writable);
    if (!transfer_add(transfer, guest, prp1, first, writable))
        return false;
    if (transfer->has_list)
        return walk_list(transfer, guest, prp2, length - first, page_size, writable);
    return !(prp2 & (page_size - 1)) && transfer_add(transfer, guest, prp2, length - first, writable);
}

void transfer_scatter(const struct transfer *transfer, const uint8_t *data)
{
    for (unsigned i = 0; i < transfer->count; i++) {
        memcpy(transfer->pieces[i].iov_base, data, transfer->pieces[i].iov_len);
        data += transfer->pieces[i].iov_len;
    }
}

void transfer_gather(const struct transfer *transfer, uint8_t *data)
{
    for (unsigned i = 0; i < transfer->count; i++) {
        memcpy(data, transfer->pieces[i].iov_base, transfer->pieces[i].iov_len);
        data += transfer->pieces[i].iov_len;
    }
}
