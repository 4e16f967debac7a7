/* Protection information: guards and tags of blocks. NVM 1.0, 5.2.

   The three CRCs come from libisal where it has them; CRC-64 of NVM Express came with libisal 2.31. Otherwise they are
   made with tables of our own. All fields are big endian. */

#include <endian.h>
#include <string.h>

#include "protection.h"

#ifdef HAVE_LIBISAL
#include <isa-l/crc.h>
#include <isa-l/crc64.h>
#include <isa-l.h>
#if ISAL_MAJOR_VERSION > 2 || (ISAL_MAJOR_VERSION == 2 && ISAL_MINOR_VERSION >= 31)
#define HAVE_ISAL_CRC64
#endif
#endif

#define ESCAPE 0xFFFF /* an application tag that turns the checks off */
#define LONGEST 16    /* bytes of protection information */

#ifndef HAVE_ISAL_CRC64
#define AT_ONCE 8 /* bytes that a step of `reflected` takes */

/* Of a CRC whose bits are reflected: [n][byte] is what a byte adds that n others follow. */
static void make_reflected(uint64_t table[AT_ONCE][256], uint64_t polynomial)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        uint64_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 1 ? crc >> 1 ^ polynomial : crc >> 1;
        table[0][byte] = crc;
    }
    for (unsigned n = 1; n < AT_ONCE; n++)
        for (unsigned byte = 0; byte < 256; byte++)
            table[n][byte] = table[n - 1][byte] >> 8 ^ table[0][table[n - 1][byte] & 0xFF];
}

/* Eight bytes are looked up independently of each other: one at a time takes five times as long. */
static uint64_t reflected(const uint64_t table[AT_ONCE][256], uint64_t crc, const uint8_t *data, size_t size)
{
    for (; size >= AT_ONCE; size -= AT_ONCE, data += AT_ONCE) {
        uint64_t word;
        memcpy(&word, data, sizeof word);
        word = le64toh(word) ^ crc;
        crc = 0;
        for (unsigned n = 0; n < AT_ONCE; n++)
            crc ^= table[AT_ONCE - 1 - n][word >> 8 * n & 0xFF];
    }
    for (; size > 0; size--)
        crc = table[0][(crc ^ *data++) & 0xFF] ^ crc >> 8;
    return crc;
}
#endif

__extension__ typedef unsigned __int128 space; /* storage and reference tag together: 80 bits at most */

#ifdef HAVE_LIBISAL

static uint64_t crc16(uint64_t crc, const uint8_t *data, size_t size)
{
    return crc16_t10dif((uint16_t)crc, data, size);
}

static uint64_t crc32(uint64_t crc, const uint8_t *data, size_t size)
{
    return crc32_iscsi((unsigned char *)(uintptr_t)data, (int)size, (unsigned)crc);
}

#else

static uint64_t table16[256], table32[AT_ONCE][256];

__attribute__((constructor)) static void make_tables(void)
{
    for (unsigned i = 0; i < 256; i++) {
        uint64_t crc = (uint64_t)i << 8;
        for (int bit = 0; bit < 8; bit++)
            crc = crc & 0x8000 ? (crc << 1 ^ 0x8BB7) & 0xFFFF : crc << 1;
        table16[i] = crc;
    }
    make_reflected(table32, 0x82F63B78);
}

static uint64_t crc16(uint64_t crc, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i < size; i++)
        crc = (table16[(crc >> 8 ^ data[i]) & 0xFF] ^ crc << 8) & 0xFFFF;
    return crc;
}

static uint64_t crc32(uint64_t crc, const uint8_t *data, size_t size)
{
    return reflected(table32, crc, data, size);
}

#endif

#ifdef HAVE_ISAL_CRC64

static uint64_t crc64(uint64_t crc, const uint8_t *data, size_t size)
{
    return ~crc64_rocksoft_refl(~crc, data, size);
}

#else

static uint64_t table64[AT_ONCE][256];

__attribute__((constructor)) static void make_table64(void)
{
    make_reflected(table64, 0x9A6C9329AC4BC9B5);
}

static uint64_t crc64(uint64_t crc, const uint8_t *data, size_t size)
{
    return reflected(table64, crc, data, size);
}

#endif

struct guard {
    uint64_t (*update)(uint64_t crc, const uint8_t *data, size_t size);
    uint64_t all; /* all bits: what the register begins with and the result is inverted by, except with CRC-16 */
    unsigned size, total, width; /* bytes of the guard and of all; bits of storage and reference tag */
    bool is_inverted;
};

static const struct guard GUARDS[] = {
    [PI_CRC16] = {crc16, 0xFFFF, 2, 8, 32, false},
    [PI_CRC32] = {crc32, 0xFFFFFFFF, 4, 16, 80, true},
    [PI_CRC64] = {crc64, UINT64_MAX, 8, 16, 48, true},
};

uint64_t pi_crc(uint32_t guard, const uint8_t *data, size_t size)
{
    const struct guard *of = &GUARDS[guard];
    uint64_t begins = of->is_inverted ? of->all : 0;

    return (of->update(begins, data, size) ^ begins) & of->all;
}

static uint64_t guard_of(const struct pi_format *format, const struct guard *guard, const uint8_t *data,
                         const uint8_t *metadata)
{
    uint64_t begins = guard->is_inverted ? guard->all : 0, crc = guard->update(begins, data, format->data_size);

    if (!format->is_first && format->metadata_size > guard->total)
        crc = guard->update(crc, metadata, format->metadata_size - guard->total);
    return (crc ^ begins) & guard->all;
}

static void put(uint8_t *at, space value, unsigned size)
{
    for (unsigned i = size; i-- > 0; value >>= 8)
        at[i] = (uint8_t)value;
}

static space get(const uint8_t *at, unsigned size)
{
    space value = 0;

    for (unsigned i = 0; i < size; i++)
        value = value << 8 | at[i];
    return value;
}

static space ones(unsigned bits)
{
    return ((space)1 << bits) - 1;
}

/* Where the protection information lies in a block's metadata. */
static size_t place(const struct pi_format *format, const struct guard *guard)
{
    return format->is_first ? 0 : format->metadata_size - guard->total;
}

/* The reference tag of a block: it goes up by 1 from the first one, and wraps in its width. */
static space reference_of(const struct pi_format *format, const struct pi_tags *tags, uint64_t block, unsigned bits)
{
    return ((space)tags->reference + (format->type == 3 ? 0 : block)) & ones(bits);
}

void pi_generate(const struct pi_format *format, const struct pi_blocks *blocks, const struct pi_tags *tags)
{
    const struct guard *guard = &GUARDS[format->guard];
    unsigned bits = guard->width - format->storage_tag_size; /* of the reference tag */
    space storage = (space)tags->storage << bits; /* what it has too much does not get into the field */

    for (uint64_t i = 0; i < blocks->count; i++) {
        uint8_t *metadata = blocks->metadata + i * blocks->metadata_stride, *at = metadata + place(format, guard);
        put(at, guard_of(format, guard, blocks->data + i * blocks->data_stride, metadata), guard->size);
        put(at + guard->size, tags->application, 2);
        put(at + guard->size + 2, storage | reference_of(format, tags, i, bits), guard->width / 8);
    }
}

/* What a block fails of the checks, or 0. */
static uint32_t failure_of(const struct pi_format *format, const struct guard *guard, const uint8_t *data,
                           const uint8_t *metadata, const struct pi_tags *tags, uint64_t block, uint32_t checks)
{
    const uint8_t *at = metadata + place(format, guard);
    unsigned bits = guard->width - format->storage_tag_size;
    uint16_t application = (uint16_t)get(at + guard->size, 2);
    space tag = get(at + guard->size + 2, guard->width / 8);

    if (application == ESCAPE && (format->type != 3 || tag == ones(guard->width)))
        return 0;
    if (checks & PI_CHECK_GUARD && get(at, guard->size) != guard_of(format, guard, data, metadata))
        return PI_CHECK_GUARD;
    if (checks & PI_CHECK_APPLICATION && (application ^ tags->application) & tags->application_mask)
        return PI_CHECK_APPLICATION;
    if (checks & PI_CHECK_STORAGE &&
        ((tag >> bits) ^ tags->storage) & tags->storage_mask & ones(format->storage_tag_size))
        return PI_CHECK_STORAGE;
    if (checks & PI_CHECK_REFERENCE && (tag & ones(bits)) != reference_of(format, tags, block, bits))
        return PI_CHECK_REFERENCE;
    return 0;
}

uint64_t pi_check(const struct pi_format *format, const struct pi_blocks *blocks, const struct pi_tags *tags,
                  uint32_t checks, uint32_t *failed)
{
    const struct guard *guard = &GUARDS[format->guard];

    for (uint64_t i = 0; i < blocks->count; i++) {
        *failed = failure_of(format, guard, blocks->data + i * blocks->data_stride,
                             blocks->metadata + i * blocks->metadata_stride, tags, i, checks);
        if (*failed)
            return i;
    }
    return blocks->count;
}

void pi_copy(uint8_t *to, uint64_t to_stride, const uint8_t *from, uint64_t from_stride, uint64_t size, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        memcpy(to + i * to_stride, from + i * from_stride, size);
}
