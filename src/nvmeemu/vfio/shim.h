/* What the cffi module includes: libvfio-user, and the few calls that its versions spell differently. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>

#include "libvfio-user.h"
#ifdef NVMEEMU_OWN_LIBRARY /* compiled together with us: its private parts are known */
#include "private.h"
#endif

#include "message.h"

/* A guest behind an IOMMU maps its memory in pieces of 4 KiB, each a region. */
#define NVMEEMU_DMA_REGIONS 65536

static int nvmeemu_setup_dma(vfu_ctx_t *ctx, vfu_dma_register_cb_t *added, vfu_dma_unregister_cb_t *removed)
{
#ifdef LIBVFIO_USER_MAX_DMA_REGIONS /* newer: the limit is an argument; older: 0005-regions.patch raises the constant */
    return vfu_setup_device_dma(ctx, NVMEEMU_DMA_REGIONS, added, removed);
#else
    return vfu_setup_device_dma(ctx, added, removed);
#endif
}

/* The client may map `shared` of the region, which lies at the same place of the file; fd -1: nothing. */
static int nvmeemu_setup_region(vfu_ctx_t *ctx, int region, size_t size, vfu_region_access_cb_t *callback, int flags,
                                int fd, struct iovec shared)
{
    return vfu_setup_region(ctx, region, size, callback, flags, fd < 0 ? NULL : &shared, fd >= 0, fd, 0);
}

/* Guest memory is written and then read; nothing in Python keeps the processor from doing it the other way round. */
static void nvmeemu_barrier(void)
{
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Where MSI-X message `vector` goes; -1 if nowhere, or if this library does not let us know. */
static int nvmeemu_interrupt_fd(vfu_ctx_t *ctx, uint32_t vector)
{
#ifdef NVMEEMU_OWN_LIBRARY
    return ctx->irqs != NULL && vector < ctx->irqs->max_ivs ? ctx->irqs->efds[vector] : -1;
#else
    (void)ctx;
    (void)vector;
    return -1;
#endif
}
