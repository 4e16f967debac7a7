/* What main does with queues, where others need it. */

#ifndef NVMEEMU_CONTROL_H
#define NVMEEMU_CONTROL_H

#include <stdint.h>

struct sq;

/* Nothing of it is under way; wait until the lane has told so, and does not touch it any more. */
void sq_leave_lane(struct sq *sq);
/* Main completes so many commands of this queue; with the lane's lock. */
void sq_settle(struct sq *sq, uint32_t commands);

#endif
