/* What main does with queues, where others need it. */

#ifndef NVMEEMU_CONTROL_H
#define NVMEEMU_CONTROL_H

#include <stdint.h>

struct sq;

/* Nothing of it is under way; wait until the lane has told so, and does not touch it any more. */
void sq_leave_lane(struct sq *sq);
/* Main has completed so many of its commands, or never will; UINT32_MAX: all. With the lane's lock. */
void sq_forget_owed(struct sq *sq, uint32_t commands);

#endif
