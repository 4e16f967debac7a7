/* The load of a disk: how many commands, with how many bytes, are at it. All functions need the lane's lock. */

#ifndef NVMEEMU_LOAD_H
#define NVMEEMU_LOAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "op.h"

struct engine;
struct lane;

struct part {
    uint32_t ops, bytes;
    uint32_t used; /* ops, and commands that wait */
    struct op_list waiting; /* the lane's, under its lock */
};

struct load {
    pthread_mutex_t lock;
    uint32_t ops, bytes; /* of all lanes */
    uint32_t lanes; /* that use it */
    bool has_waited; /* a command has had to wait */
    bool is_gone; /* its disk is no namespace any more */
    struct part of_lane[];
};

struct load *load_new(uint32_t lanes);
/* One command more, with so many bytes. False: it has to wait. */
bool load_take(struct lane *lane, struct load *load, uint32_t size);
void load_give(struct lane *lane, struct load *load, uint32_t size);
void load_wait(struct lane *lane, uint32_t nsid, struct op *op);
/* A command that waits may begin. */
bool load_has_ready(struct lane *lane);
/* Begin those that may. False: there were none. */
bool load_resume(struct lane *lane);
/* Nothing of the lane's waits any more. */
void load_drop(struct lane *lane);
/* The namespace has another disk, or none; with all locks. */
void load_replace(struct engine *engine, uint32_t nsid, struct load *load);
/* One for each namespace that there can be. */
bool loads_new(struct engine *engine, uint32_t lanes);
void loads_free(struct engine *engine);

#endif
