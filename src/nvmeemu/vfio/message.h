/* A look at the next message on a vfio-user socket before libvfio-user takes it, because the library waits for the rest
 * of a half message, loses the file descriptors of a torn one, and trusts what is in some. messages.py judges. */

#include <errno.h>
#include <linux/sockios.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define NVMEEMU_MOST_FDS 253         /* SCM_MAX_FD: the kernel sends no more with one message */
#define NVMEEMU_LONGEST (64 * 1024)  /* bytes; no access to our regions needs more, and it fits in a socket's buffer */

enum nvmeemu_look {
    NVMEEMU_NOTHING,  /* no message */
    NVMEEMU_WHOLE,    /* the library may take it; or it is the end of the connection */
    NVMEEMU_CHECK,    /* the same if its contents, now in struct nvmeemu_message, are fit for it */
    NVMEEMU_PARTIAL,  /* the rest has not come yet */
    NVMEEMU_CHOKED,   /* whole, but the client has yet to take so many replies that another one would have to wait */
    NVMEEMU_TORN,     /* the rest will never come */
    NVMEEMU_NONSENSE, /* not the header of a command */
};

/* False: somebody else has to look at it. */
typedef bool nvmeemu_ring_t(void *engine, uint32_t doorbell, uint32_t value);

struct nvmeemu_message {
    uint16_t id, command;
    uint32_t size, flags, error;
    uint8_t body[32];
    /* What came with it: */
    int64_t file_size;     /* of its first descriptor, if that is of a regular file, else -1 */
    uint64_t file_device, file_inode;
    bool descriptors_lost; /* this process cannot have as many */
};

/* Closes what peeking has duplicated. */
static void nvmeemu_look_at_descriptors(struct msghdr *header, struct nvmeemu_message *message)
{
    message->file_size = -1;
    message->descriptors_lost = (header->msg_flags & MSG_CTRUNC) != 0;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part != NULL; part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            struct stat status;
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof(int), sizeof(int));
            if (i == 0 && fstat(fd, &status) == 0 && S_ISREG(status.st_mode))
                message->file_size = status.st_size, message->file_device = status.st_dev,
                message->file_inode = status.st_ino;
            close(fd);
        }
    }
}

/* VFIO_USER_REGION_WRITE with four bytes of data. */
struct __attribute__((packed)) nvmeemu_write {
    uint16_t id, command;
    uint32_t size, flags, error;
    uint64_t offset;
    uint32_t region, count, value;
};

/* It is a write of a doorbell, whose number is told, and asks for no reply. */
static bool nvmeemu_is_doorbell(const struct nvmeemu_write *write, uint32_t *number)
{
    enum { REGION_WRITE = 10, NO_REPLY = 1 << 4, BAR0 = 0, DOORBELLS = 0x1000, WIDTH = 4 };
    uint64_t place = write->offset - DOORBELLS;

    *number = (uint32_t)(place / WIDTH);
    return write->command == REGION_WRITE && write->flags == NO_REPLY && write->size == sizeof(*write) &&
           write->region == BAR0 && write->count == WIDTH && place < DOORBELLS && place % WIDTH == 0;
}

/* Takes the posted writes of doorbells at the beginning of what has come, as many as `ring` accepts: they need neither the
 * library nor Python. How many. */
static int nvmeemu_take_doorbells(int fd, nvmeemu_ring_t *ring, void *engine)
{
    enum { MOST = 64 };
    struct nvmeemu_write found[MOST];
    ssize_t there = recv(fd, found, sizeof(found), MSG_PEEK | MSG_DONTWAIT);
    int whole = there < 0 ? 0 : (int)(there / sizeof(found[0])), taken = 0;
    uint32_t number;

    while (taken < whole && nvmeemu_is_doorbell(&found[taken], &number) && ring(engine, number, found[taken].value))
        taken++;
    for (size_t left = taken * sizeof(found[0]); left > 0;) {
        ssize_t gone = recv(fd, found, left, MSG_DONTWAIT);
        if (gone <= 0)
            break; /* it was there */
        left -= gone;
    }
    return taken;
}

/* The socket of a client takes nothing more for now: what it has not read yet fills the buffer. */
static bool nvmeemu_is_choked(int fd)
{
    int unread = 0, room = 0;
    socklen_t size = sizeof(room);

    return ioctl(fd, SIOCOUTQ, &unread) == 0 && unread > 0 &&
           getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, &size) == 0 && unread >= room;
}

/* All of it has come; `there` bytes of it were seen. */
static bool nvmeemu_is_whole(int fd, const struct nvmeemu_message *message, ssize_t there)
{
    int waiting = 0;

    return there >= message->size || (ioctl(fd, FIONREAD, &waiting) == 0 && (uint32_t)waiting >= message->size);
}

/* What to do with a message that is whole. */
static int nvmeemu_judge_whole(int fd, const struct nvmeemu_message *message)
{
    enum { NO_REPLY = 1 << 4, DMA_MAP = 2, DMA_UNMAP = 3, SET_IRQS = 8 };

    if (!(message->flags & NO_REPLY) && nvmeemu_is_choked(fd))
        return NVMEEMU_CHOKED;
    switch (message->command) {
    case DMA_MAP:
    case DMA_UNMAP:
    case SET_IRQS:
        return NVMEEMU_CHECK;
    default:
        return NVMEEMU_WHOLE;
    }
}

static int nvmeemu_look(int fd, struct nvmeemu_message *message)
{
    enum { HEADER = 16, COMMAND = 0, TYPE = 0xf };
    union {
        struct cmsghdr aligned;
        char space[CMSG_SPACE(NVMEEMU_MOST_FDS * sizeof(int))];
    } control;
    struct iovec start = {message, HEADER + sizeof(message->body)};
    struct msghdr header = {
        .msg_iov = &start, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
    struct pollfd end = {.fd = fd, .events = POLLRDHUP};
    ssize_t there = recvmsg(fd, &header, MSG_PEEK | MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

    if (there <= 0)
        return there < 0 && errno == EAGAIN ? NVMEEMU_NOTHING : NVMEEMU_WHOLE;
    nvmeemu_look_at_descriptors(&header, message);
    if (there >= HEADER) {
        if ((message->flags & TYPE) != COMMAND || message->size < HEADER || message->size > NVMEEMU_LONGEST)
            return NVMEEMU_NONSENSE;
        if (nvmeemu_is_whole(fd, message, there))
            return nvmeemu_judge_whole(fd, message);
    }
    return poll(&end, 1, 0) > 0 ? NVMEEMU_TORN : NVMEEMU_PARTIAL;
}
