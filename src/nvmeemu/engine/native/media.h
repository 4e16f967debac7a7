/* Commands that transfer no blocks; with the lane's lock. */

#ifndef NVMEEMU_MEDIA_H
#define NVMEEMU_MEDIA_H

#include "nvme_spec.h"
#include "op.h"

struct lane;
struct sq;

enum verdict flush_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command);
enum verdict zeroes_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command);
enum verdict dataset_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command);

#endif
