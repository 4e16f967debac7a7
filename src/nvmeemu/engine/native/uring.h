/* Waiting for many disks at once. False: it cannot be done here. */

#ifndef NVMEEMU_URING_H
#define NVMEEMU_URING_H

#include <stdbool.h>

struct op;
struct ring;
struct ring *ring_open(int eventfd);
void ring_close(struct ring *ring);
bool ring_start(struct ring *ring, struct op *op);
bool ring_submit(struct ring *ring);
struct op *ring_reap(struct ring *ring, long *result);

#endif
