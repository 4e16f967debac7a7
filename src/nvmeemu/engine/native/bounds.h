/* How much there may be at the most. */

#ifndef NVMEEMU_BOUNDS_H
#define NVMEEMU_BOUNDS_H

#define BURST 32 /* commands that one queue may run before the next has its turn */
#define MAX_NSID 64
#define MAX_VECTORS 128
#define MAX_PUNTS 256 /* fetched commands that may wait for main before lanes stop fetching */
#define MAX_OPS 256 /* commands that one disk may have at once */
#define MAX_WAITING 1024 /* of a queue, fetched, until a disk has room: a host may take no notice of its depth */
#define MAX_REPORTS (MAX_PUNTS + (MAX_NSID + 1) * MAX_OPS) /* commands that may wait for main at the most */

#endif
