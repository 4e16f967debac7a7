/* Whether an installed libvfio-user does what guests need of it, tried out as its client. library.py compiles and runs
 * this: argument 1 is the path for a socket. What is missing is one line on stdout, with exit status 1. */

#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/un.h>

#include "shim.h"

/* A guest with an IOMMU has tens of thousands: each page that the drive may touch is a region. */
enum { REGIONS = 32768, VERSION = 1, MAP = 2, UNMAP = 3, SET_IRQS = 8, READ_WRITE = 3, ERROR = 1 << 5 };
enum { VECTORS = 4, EVENTFD = 1 << 2, TRIGGER = 1 << 5 };
enum { DESCRIPTORS = 256 }; /* fewer than regions, with room for those that the library has for itself */

struct __attribute__((packed)) header {
    uint16_t id, command;
    uint32_t size, flags, error;
};

struct __attribute__((packed)) version {
    struct header header;
    uint16_t major, minor;
    char data[64];
};

struct __attribute__((packed)) map {
    struct header header;
    uint32_t argsz, flags;
    uint64_t offset, address, size;
};

struct __attribute__((packed)) unmap {
    struct header header;
    uint32_t argsz, flags;
    uint64_t address, size;
};

struct __attribute__((packed)) set_irqs {
    struct header header;
    uint32_t argsz, flags, index, start, count;
};

static void fail(const char *what)
{
    printf("%s\n", what);
    exit(1);
}

static vfu_dma_info_t newest; /* the last region */

static void added(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    newest = *info;
}

static unsigned int removals;

static void removed(vfu_ctx_t *ctx, vfu_dma_info_t *info)
{
    (void)ctx;
    (void)info;
    removals++;
}

static vfu_ctx_t *make_device(const char *path)
{
    vfu_ctx_t *ctx = vfu_create_ctx(VFU_TRANS_SOCK, path, LIBVFIO_USER_FLAG_ATTACH_NB, NULL, VFU_DEV_TYPE_PCI);

    if (ctx == NULL || vfu_pci_init(ctx, VFU_PCI_TYPE_EXPRESS, PCI_HEADER_TYPE_NORMAL, 0) != 0 ||
        vfu_setup_device_nr_irqs(ctx, VFU_DEV_MSIX_IRQ, VECTORS) != 0 ||
        nvmeemu_setup_dma(ctx, added, removed) != 0 || vfu_realize_ctx(ctx) != 0)
        fail("it makes no device");
    return ctx;
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int client = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

    snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
    if (client < 0 || connect(client, (struct sockaddr *)&address, sizeof(address)) != 0)
        fail("it does not listen");
    return client;
}

/* With the descriptor `fd`, if there is one: not -1. */
static bool send_message(int client, struct header *message, int fd)
{
    union {
        struct cmsghdr part;
        char space[CMSG_SPACE(sizeof(int))];
    } control = {.part = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct iovec whole = {message, message->size};
    struct msghdr header = {.msg_iov = &whole, .msg_iovlen = 1};

    memcpy(CMSG_DATA(&control.part), &fd, sizeof(fd));
    if (fd != -1) {
        header.msg_control = &control;
        header.msg_controllen = sizeof(control);
    }
    return sendmsg(client, &header, MSG_NOSIGNAL) == message->size;
}

/* The reply is there when the library returns. */
static bool succeeded(int client)
{
    char reply[4096];
    struct header header;

    if (recv(client, reply, sizeof(reply), MSG_DONTWAIT) < (ssize_t)sizeof(header))
        return false;
    memcpy(&header, reply, sizeof(header));
    return (header.flags & ERROR) == 0;
}

static bool asked(vfu_ctx_t *ctx, int client, struct header *message, int fd)
{
    return send_message(client, message, fd) && vfu_run_ctx(ctx) >= 0 && succeeded(client);
}

static void attach(vfu_ctx_t *ctx, int client)
{
    struct version version = {{1, VERSION, sizeof(version), 0, 0}, 0, 1, "{\"capabilities\":{\"max_msg_fds\":1}}"};

    if (!send_message(client, &version.header, -1) || vfu_attach_ctx(ctx) != 0 || !succeeded(client))
        fail("it does not agree on a version");
}

static void check_regions(vfu_ctx_t *ctx, int client, int memory, uint64_t page)
{
    static char text[128];

    for (uint32_t i = 0; i < REGIONS; i++) {
        struct map map = {{2, MAP, sizeof(map), 0, 0}, 32, READ_WRITE, 0, i * page, page};
        if (asked(ctx, client, &map.header, memory))
            continue;
        snprintf(text, sizeof(text), "it takes %u DMA regions, a guest with an IOMMU has %u and more", i, REGIONS);
        fail(text);
    }
}

static void check_unmap(vfu_ctx_t *ctx, int client, uint64_t page)
{
    struct unmap two = {{3, UNMAP, sizeof(two), 0, 0}, 24, 0, 0, 2 * page};
    struct unmap none = {{4, UNMAP, sizeof(none), 0, 0}, 24, 0, 0, page};

    if (!asked(ctx, client, &two.header, -1) || removals != 2 || !asked(ctx, client, &none.header, -1))
        fail("it takes back single DMA regions, not ranges with many or none (guests with an IOMMU)");
}

/* The second half of a page and the first half of the next: one page is too short a mapping. A refusal is fine. */
static void check_mapping(vfu_ctx_t *ctx, int client, int memory, uint64_t page)
{
    uint64_t half = page / 2;
    struct map map = {{5, MAP, sizeof(map), 0, 0}, 32, READ_WRITE, half, REGIONS * page + half, page};
    char *end;

    newest.vaddr = NULL;
    if (!asked(ctx, client, &map.header, memory) || newest.vaddr == NULL)
        return;
    end = (char *)newest.mapping.iov_base + newest.mapping.iov_len;
    if ((char *)newest.vaddr + page > end)
        fail("it maps too little of a file where a region does not begin with one of its blocks (huge pages)");
}

static void check_interrupts(vfu_ctx_t *ctx, int client)
{
    struct set_irqs none = {{6, SET_IRQS, sizeof(none), 0, 0}, 20, EVENTFD | TRIGGER, VFU_DEV_MSIX_IRQ, 1, 2};
    int route = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);

    for (uint32_t vector = 1; vector <= 2; vector++) {
        struct set_irqs one = {
            {7, SET_IRQS, sizeof(one), 0, 0}, 20, EVENTFD | TRIGGER, VFU_DEV_MSIX_IRQ, vector, 1};
        if (route < 0 || !asked(ctx, client, &one.header, route) || vfu_irq_trigger(ctx, vector) != 0)
            fail("it sends no interrupts");
    }
    if (!asked(ctx, client, &none.header, -1) || vfu_irq_trigger(ctx, 1) == 0 || vfu_irq_trigger(ctx, 2) == 0)
        fail("it keeps the routes of interrupts that a client takes away");
    close(route);
}

int main(int count, char **arguments)
{
    uint64_t page = sysconf(_SC_PAGESIZE);
    int memory = memfd_create("memory", MFD_CLOEXEC);
    struct rlimit files = {DESCRIPTORS, DESCRIPTORS};
    vfu_ctx_t *ctx;
    int client;

    if (count != 2 || memory < 0 || ftruncate(memory, 2 * page) != 0 || setrlimit(RLIMIT_NOFILE, &files) != 0)
        fail("the check cannot be made here");
    ctx = make_device(arguments[1]);
    client = connect_to(arguments[1]);
    attach(ctx, client);
    check_regions(ctx, client, memory, page);
    check_unmap(ctx, client, page);
    check_mapping(ctx, client, memory, page);
    check_interrupts(ctx, client);
    return 0;
}
