/* Reads and writes of disks with a companion; with the lane's lock. */

#ifndef NVMEEMU_PAIRED_H
#define NVMEEMU_PAIRED_H

#include "nvme_spec.h"
#include "op.h"

struct disk;
struct lane;
struct sq;

/* The disk is there, and has these blocks. */
enum verdict paired_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                        const struct disk *disk);
/* A read has been done by the disk: give it to the host. False: Python has to do it. */
bool paired_deliver(struct lane *lane, const struct op *op);

#endif
