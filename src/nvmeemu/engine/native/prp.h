/* Where the data of a command lies in guest memory. */

#ifndef NVMEEMU_PRP_H
#define NVMEEMU_PRP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

#define MAX_PIECES 1024 /* IOV_MAX: what one system call takes */

struct guest;

/* As records of docs/trace-format.md have it. */
struct __attribute__((packed)) run {
    uint64_t iova;
    uint32_t size;
};

struct transfer {
    unsigned count;
    struct iovec pieces[MAX_PIECES];
    bool has_list; /* of PRPs, or of SGL descriptors */
    bool is_sgl;
    bool wants_runs; /* for the trace: the same as addresses of the guest's, neighbours taken together */
    unsigned run_count;
    struct run runs[MAX_PIECES];
};

/* The pieces of guest memory that PRP1 and PRP2 describe. False: Python has to say what is wrong. */
bool prp_walk(struct transfer *transfer, struct guest *guest, uint64_t prp1, uint64_t prp2, uint64_t length,
              uint64_t page_size, bool writable);
/* Add a range of guest memory, which may span several regions. It is not empty. */
bool transfer_add(struct transfer *transfer, struct guest *guest, uint64_t iova, uint64_t size, bool writable);
void transfer_scatter(const struct transfer *transfer, const uint8_t *data);
void transfer_gather(const struct transfer *transfer, uint8_t *data);

#endif
