/* What can be done with a command at once, with the lane's lock. */

#ifndef NVMEEMU_COMMAND_H
#define NVMEEMU_COMMAND_H

#include <stdbool.h>
#include <stdint.h>

#include "nvme_spec.h"
#include "op.h"

struct disk;
struct lane;
struct sq;

/* The bits of a field of a command, in its dword. */
#define CDW_BITS(record, field, dword)                                                                                 \
    (((1u << NVME_##record##_##field##_WIDTH) - 1) << (NVME_##record##_##field##_BIT - 32 * (dword)))
#define READ_WRITE_FUA CDW_BITS(READ_WRITE, FUA, 12)
#define READ_WRITE_LR CDW_BITS(READ_WRITE, LR, 12) /* Limited Retry, which changes nothing */

enum verdict command_run(struct lane *lane, struct sq *sq, const struct nvme_read_write *command);
/* Where its data lies: lane->transfer. False: Python has to say what is wrong. */
bool command_walk(struct lane *lane, const struct nvme_read_write *command, uint64_t length, bool writable);
/* After the verdict WAIT: until its disk has room. False: no memory. */
bool command_wait(struct lane *lane, struct sq *sq, const struct nvme_read_write *command);
/* A command that waits until there is room has its turn. WAIT, PUNT: it cannot begin yet. */
enum verdict op_resume(struct lane *lane, const struct op *op);
/* It has succeeded. */
/* Without companion: the data alone. */
enum verdict disk_read(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                       const struct disk *disk, uint64_t offset, uint64_t length);
enum verdict disk_write(struct lane *lane, struct sq *sq, const struct nvme_read_write *command,
                        const struct disk *disk, uint64_t offset, uint64_t length);
void count_command(struct lane *lane, uint8_t opcode, uint64_t length);
/* A write, or zeroes, have to be on the medium before they are complete. */
bool has_to_last(const struct disk *disk, const struct nvme_read_write *command);
bool disk_has(const struct disk *disk, uint64_t slba, uint64_t blocks);

#endif
