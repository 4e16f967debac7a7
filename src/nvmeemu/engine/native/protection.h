/* Protection information: guards and tags of blocks. NVM 1.0, 5.2. For the engine, and by cffi for
   subsystem/protection.py. */

#ifndef NVMEEMU_PROTECTION_H
#define NVMEEMU_PROTECTION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum pi_guard {
    PI_CRC16 = 0, /* T10-DIF: 8 bytes of protection information, 32 bits for storage and reference tag */
    PI_CRC32 = 1, /* CRC-32C: 16 bytes, 80 bits */
    PI_CRC64 = 2  /* NVM Express: 16 bytes, 48 bits */
};

/* What is checked, of each block. */
enum pi_check { PI_CHECK_GUARD = 1, PI_CHECK_APPLICATION = 2, PI_CHECK_REFERENCE = 4, PI_CHECK_STORAGE = 8 };

struct pi_format {
    uint32_t data_size, metadata_size; /* bytes of a block; the metadata has room for the protection information */
    uint32_t guard;                    /* enum pi_guard */
    uint32_t type;                     /* 1, 2 or 3 */
    uint32_t storage_tag_size;         /* bits, as the guard allows */
    bool is_first;                     /* in the metadata; otherwise it is last, and the guard covers what is before it */
};

/* The tags of the first block. The reference tag goes up by 1 with each block, except with type 3. A bit that is set in
   a mask is compared. */
struct pi_tags {
    uint64_t reference, storage, storage_mask;
    uint16_t application, application_mask;
};

/* Blocks in memory. Those of the data, and their metadata, begin so many bytes after each other. */
struct pi_blocks {
    uint8_t *data, *metadata;
    uint64_t data_stride, metadata_stride, count;
};

/* The CRC of a message as it is stored, as a number. */
uint64_t pi_crc(uint32_t guard, const uint8_t *data, size_t size);
/* Write the protection information of all blocks. */
void pi_generate(const struct pi_format *format, const struct pi_blocks *blocks, const struct pi_tags *tags);
/* The number of the first block that fails, and in `failed` what (one of enum pi_check); the count if none does. */
uint64_t pi_check(const struct pi_format *format, const struct pi_blocks *blocks, const struct pi_tags *tags,
                  uint32_t checks, uint32_t *failed);
/* Copy pieces of `size` bytes that begin so many bytes after each other. */
void pi_copy(uint8_t *to, uint64_t to_stride, const uint8_t *from, uint64_t from_stride, uint64_t size, uint64_t count);

#endif
