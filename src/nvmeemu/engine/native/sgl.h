/* Scatter Gather Lists: where a command's data lies in guest memory. Base 1.4, 4.4. */

#ifndef NVMEEMU_SGL_H
#define NVMEEMU_SGL_H

#include <stdbool.h>
#include <stdint.h>

struct guest;
struct nvme_read_write;
struct transfer;

/* The pieces of guest memory that a data block in the command describes, or a last segment of data blocks: that is what
   drivers send. False: Python has to do it, or to say what is wrong. */
bool sgl_walk(struct transfer *transfer, struct guest *guest, const struct nvme_read_write *command, uint64_t length,
              bool writable);

#endif
