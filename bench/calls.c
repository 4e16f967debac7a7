/* What commands come to in the end: the system calls that do the same to a file. */

#define _GNU_SOURCE
#include "polled.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096
#define BIT(field) (1u << (NVME_READ_WRITE_##field##_BIT - 384))

static uint64_t now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static bool call(int fd, const struct load *load, uint32_t opcode, void *data, uint64_t place)
{
    off_t offset = (off_t)(place * PAGE), length = (off_t)load->pages * PAGE;
    struct iovec piece = {data, (size_t)length};
    bool is_fua = opcode == load->opcode && (load->cdw12 & BIT(FUA));

    switch (opcode) {
    case NVME_NVM_OPCODE_WRITE:
        return pwritev2(fd, &piece, 1, offset, is_fua ? RWF_DSYNC : 0) == length;
    case NVME_NVM_OPCODE_FLUSH:
        return fdatasync(fd) == 0;
    case NVME_NVM_OPCODE_WRITE_ZEROES:
        if (!(load->cdw12 & BIT(DEAC)))
            return fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length) == 0;
        /* fall through */
    case NVME_NVM_OPCODE_DATASET_MANAGEMENT:
        return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) == 0;
    default:
        return false;
    }
}

int run_calls(int fd, struct load *load)
{
    static uint8_t data[64 * PAGE];
    uint64_t start = now(), time = start;

    if (load->pages > sizeof(data) / PAGE)
        return EINVAL;
    for (uint64_t number = 0; load->commands ? number < load->commands : time - start < load->time; number++) {
        uint64_t place = next_place(load), before = time;
        uint32_t opcode = is_between(load, number) ? NVME_NVM_OPCODE_WRITE : load->opcode;
        memcpy(data, &place, sizeof(place));
        if (!call(fd, load, opcode, data, place))
            return errno ? errno : EIO;
        time = now();
        if (number < load->room)
            load->samples[number] = (uint32_t)(time - before);
        load->done++;
    }
    load->elapsed = time - start;
    return 0;
}
