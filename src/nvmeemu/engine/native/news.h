/* Towards main: commands that are Python's, and that there is something to tell. */

#ifndef NVMEEMU_NEWS_H
#define NVMEEMU_NEWS_H

#include <stdbool.h>

#include "nvme_spec.h"

struct engine;
struct sq;

/* The fetched commands that main has to take. */
bool punts_new(struct engine *engine);
void punts_free(struct engine *engine);
/* Main will not take those that there are. */
void punts_drop(struct engine *engine);

/* One more; with the lane's lock. False: main has enough, and more than MAX_PUNTS was not asked for (`always`). */
bool engine_punt(struct engine *engine, struct sq *sq, const struct nvme_read_write *command, bool always);
void engine_notify(struct engine *engine);

#endif
