/* Towards main: commands that are Python's, and that there is something to tell. */

#ifndef NVMEEMU_NEWS_H
#define NVMEEMU_NEWS_H

#include <stdbool.h>

#include "nvme_spec.h"

struct engine;
struct sq;

/* The fetched commands that were handed to main and that it has not taken yet. False: no memory. */
bool punts_new(struct engine *engine);
void punts_free(struct engine *engine);
/* Forget them: a reset. */
void punts_drop(struct engine *engine);

/* Hand one more to main; with the lane's lock. False: there are MAX_PUNTS already. With `always` more than that may wait:
   what has come back from a disk cannot stay in the queue. `is_behind_first`: the command before it was the first one of a
   fused operation. */
bool engine_punt(struct engine *engine, struct sq *sq, const struct nvme_read_write *command, bool always,
                 bool is_behind_first);
/* There is something to tell: make the engine's descriptor readable. */
void engine_notify(struct engine *engine);

#endif
