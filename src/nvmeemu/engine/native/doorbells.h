/* Mapped doorbells, and whose doorbell it is. */

#ifndef NVMEEMU_DOORBELLS_H
#define NVMEEMU_DOORBELLS_H

#include <stdbool.h>
#include <stdint.h>

#include "nvme_spec.h"

#define MAX_DOORBELLS (NVME_PAGE_MIN / sizeof(uint32_t)) /* of the page that a client may map */
#define NOT_RUNG UINT32_MAX

struct engine;
struct event;
struct queue;

void doorbells_free(struct engine *engine);
/* What the host has written to a mapped doorbell since the last call, or NOT_RUNG. */
uint32_t doorbell_take(struct engine *engine, uint32_t number);
bool doorbell_is_rung(struct engine *engine, uint32_t number);
void doorbell_own(struct engine *engine, uint32_t number, struct queue *queue);
/* One below `end` that is not of the engine's queues. */
bool doorbells_are_rung(struct engine *engine, uint32_t end);
bool doorbells_next(struct engine *engine, struct event *event);

#endif
