/* What a lane does, as records; only while the lane has a trace, with its lock. */

#ifndef NVMEEMU_TRACE_H
#define NVMEEMU_TRACE_H

#include <stdbool.h>
#include <stdint.h>

struct cq;
struct lane;
struct nvme_read_write;
struct queue;
struct sq;
struct trace;

bool trace_is_empty(const struct trace *trace);
void trace_doorbell(struct lane *lane, const struct queue *queue, bool is_shadow, uint32_t value);
void trace_fetch(struct lane *lane, const struct sq *sq, uint32_t slot, const struct nvme_read_write *command);
/* The data of a command has moved; lane->transfer says where. */
void trace_data(struct lane *lane, const struct sq *sq, const struct nvme_read_write *command, bool to_host);
void trace_completion(struct lane *lane, const struct cq *cq, uint32_t slot, uint64_t low, uint64_t high);
void trace_interrupt(struct lane *lane, uint32_t vector);

#endif
