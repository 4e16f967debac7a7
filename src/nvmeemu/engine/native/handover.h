/* The hand-over of a lane between its two threads.

   One thread drives the lane: it has the lane's lock, but for sleeping, giving way to main and writing. The other one
   stands by, to take the lane over while the first one is kept by a slow disk. A thread that comes back after that
   stands by in its turn: the two are alike.

   The states, and who goes from one to the next:

                          a thread stands by                  begins a system call
             +-------+  (2nd thread made: driver)  +----------+  (driver)     +---------+
       ----> | ALONE | --------------------------> | ATTENDED | ------------> | WRITING |
             +-------+  (back late: that thread)   +----------+ <------------ +---------+
                 ^                                               ends in time      |
                 |                                               (driver)          |
                 +-----------------------------------------------------------------+
                              takes long: taken over (the one that stands by)

   ALONE     The driver has the lane to itself. The other thread was not made yet, or has not come back. The driver begins
             no system call that may take long: io_uring does those.
   ATTENDED  The other thread sleeps; it looks at nothing but this structure.
   WRITING   The driver is in a system call, without the lock. Main may have the lock meanwhile. The other thread looks now
             and then how long it takes.

   What guards them. To WRITING and from it the state changes with the lane's lock only, so whoever has the lock knows
   whether the driver is still the driver: `shift` counts the times that the lane was taken over, and a driver that finds
   another number than it left has lost the lane. Its command's result then goes to `late`, with the lock, and the new
   driver finishes that. From ALONE to ATTENDED nothing else may happen: the driver waits for it, and so needs no lock.
   Who stands by sleeps on `eventfd`. It says so in `is_asleep` before it looks at `begun` for the last time; the driver
   changes `begun` before it looks at `is_asleep`; all of that is sequentially consistent, so one of them sees the other. */

#ifndef NVMEEMU_HANDOVER_H
#define NVMEEMU_HANDOVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "op.h"

struct lane;

enum handover_state { ALONE, ATTENDED, WRITING };

struct handover {
    _Atomic enum handover_state state;
    pthread_t first, second;
    bool has_first, has_second; /* the threads were made */
    uint32_t shift; /* with the lock */
    _Atomic bool is_asleep; /* who stands by */
    int eventfd; /* wakes it */
    _Atomic uint64_t begun; /* monotonic_time() of the last system call */
    uint32_t nsid; /* the disk of that, and whether it waits for the medium; with the lock */
    bool waits;
    struct op_list todo; /* for handover_write; with the lock */
    struct op_list late; /* what has come back after the lane was taken over; with the lock */
};

/* Make the first thread. False: errno says why. */
bool handover_start(struct lane *lane);
/* After lane->stop; there is a first thread. False: one waits for a disk that does not answer. */
bool handover_stop(struct lane *lane);
void handover_free(struct lane *lane);

/* For the driver, with the lock. */

/* Work for handover_write: buffered writes of file systems that cannot be asked not to wait. They hardly ever do, and the
   lane is much cheaper than a thread of the ring's. So it writes them itself, without its lock, until one takes long. What
   waits for the medium (syncs, for one) it does itself only as long as nothing else is there to be done. */
void handover_add(struct lane *lane, struct op *op);
/* False: by then the other thread has taken the lane over, and with it the lock. */
bool handover_write(struct lane *lane);
/* Finish what has come back late. False: nothing has. */
bool handover_finish_late(struct lane *lane);
bool handover_has_late(const struct lane *lane);

#endif
