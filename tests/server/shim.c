/*
 * Stands between the server and one file, the disk: holds calls back, makes them fail, and writes down what a power
 * cut could not take away. LD_PRELOAD it; tests/server/shim.py says what it does and drives it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum op { READ, WRITE, SYNC, PUNCH, OPS };
enum { HALFWAY = 2 };
enum event { WROTE, WROTE_DURABLY, SYNC_BEGAN, SYNC_DONE, PUNCHED };

struct control { /* shared with the test */
    _Atomic uint32_t hold[OPS];  /* calls wait while this is not 0 */
    _Atomic uint32_t error[OPS]; /* calls fail with this errno */
    _Atomic uint32_t held[OPS];  /* how many wait */
    _Atomic uint32_t calls[OPS]; /* how many have come */
    _Atomic uint32_t cut[OPS];   /* calls do only the first half; HALFWAY: writes are held there, and go on */
    _Atomic uint32_t once[OPS];  /* only the next call fails */
};

struct record {
    uint32_t event, thread;
    uint64_t offset, length;
};

static struct control *control;
static const char *disk;
static int trace = -1;

static ssize_t (*real_preadv)(int, const struct iovec *, int, off_t, int);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t, int);
static int (*real_fdatasync)(int);
static int (*real_fallocate)(int, int, off_t, off_t);

__attribute__((constructor)) static void set_up(void)
{
    const char *name = getenv("SHIM_CONTROL");
    int fd = name ? open(name, O_RDWR | O_CLOEXEC) : -1;

    real_preadv = dlsym(RTLD_NEXT, "preadv64v2");
    real_pwritev = dlsym(RTLD_NEXT, "pwritev64v2");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_fallocate = dlsym(RTLD_NEXT, "fallocate64");
    if (fd < 0)
        return;
    control = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (control == MAP_FAILED)
        abort();
    disk = getenv("SHIM_DISK");
    name = getenv("SHIM_TRACE");
    if (name)
        trace = open(name, O_WRONLY | O_APPEND | O_CLOEXEC);
}

static int is_disk(int fd)
{
    struct stat open_file, named;

    return control && !fstat(fd, &open_file) && !stat(disk, &named) && open_file.st_dev == named.st_dev &&
           open_file.st_ino == named.st_ino;
}

/* The errno that a call is to fail with, or 0. */
static int failure(enum op op)
{
    return (int)(control->once[op] ? atomic_exchange(&control->error[op], 0) : control->error[op]);
}

static uint32_t held_ops(void)
{
    uint32_t ops = 0;

    for (enum op op = 0; op < OPS; op++)
        ops |= (uint32_t)(control->hold[op] != 0) << op;
    return ops;
}

/* Hundreds of threads may wait: one of them looks for all, or they would keep the machine busy. */
static void wait_for(enum op op)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static pthread_cond_t change = PTHREAD_COND_INITIALIZER;
    static int somebody_looks;
    const struct timespec moment = {0, 500000};

    pthread_mutex_lock(&lock);
    while (control->hold[op]) {
        uint32_t ops = held_ops();
        if (somebody_looks) {
            pthread_cond_wait(&change, &lock);
            continue;
        }
        somebody_looks = 1;
        while (control->hold[op] && held_ops() == ops) {
            pthread_mutex_unlock(&lock);
            nanosleep(&moment, NULL);
            pthread_mutex_lock(&lock);
        }
        somebody_looks = 0;
        pthread_cond_broadcast(&change);
    }
    pthread_mutex_unlock(&lock);
}

/* Wait where the test says so; then fail (-1) if it says so. */
static int pass(enum op op)
{
    int error;

    control->calls[op]++;
    control->held[op]++;
    if (control->hold[op])
        wait_for(op);
    control->held[op]--;
    error = failure(op);
    if (error)
        errno = error;
    return error ? -1 : 0;
}

/* Wait until the test lets calls go on. */
static void hold_here(enum op op)
{
    control->hold[op] = 1;
    control->held[op]++;
    wait_for(op);
    control->held[op]--;
}

/* One write: records of several threads do not mix. */
static void note(enum event event, off_t offset, size_t length, const struct iovec *iov, int count)
{
    struct record record = {event, (uint32_t)gettid(), (uint64_t)offset, length};
    char *buffer;
    size_t size = sizeof record;

    if (trace < 0)
        return;
    buffer = malloc(sizeof record + (iov ? length : 0));
    memcpy(buffer, &record, sizeof record);
    for (int i = 0; i < count && size - sizeof record < length; i++) {
        size_t room = length - (size - sizeof record);
        size_t piece = iov[i].iov_len < room ? iov[i].iov_len : room;

        memcpy(buffer + size, iov[i].iov_base, piece);
        size += piece;
    }
    if (write(trace, buffer, size) != (ssize_t)size)
        abort();
    free(buffer);
}

/* What a call is to do of its work: all of it, or, cut, the first half of its first piece. */
static int pieces(enum op op, const struct iovec *iov, int count, struct iovec *first)
{
    *first = iov[0];
    if (!control->cut[op] || first->iov_len <= 512)
        return count;
    first->iov_len /= 2;
    return 0;
}

ssize_t preadv64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    struct iovec first;

    if (is_disk(fd)) {
        if ((flags & RWF_NOWAIT) && (control->hold[READ] || control->error[READ] || control->cut[READ])) {
            errno = EAGAIN; /* as with data that is not in the page cache */
            return -1;
        }
        if (pass(READ))
            return -1;
        if (pieces(READ, iov, count, &first) == 0)
            return real_preadv(fd, &first, 1, offset, flags);
    }
    return real_preadv(fd, iov, count, offset, flags);
}

/* A write with these flags fails; errno says why. */
static int refused(int flags)
{
    int lost = 0;

    if (flags & RWF_NOWAIT)
        lost = getenv("SHIM_WRITES_WAIT") ? EOPNOTSUPP : EAGAIN; /* as on ext4 */
    else if (flags & RWF_DSYNC)
        lost = failure(SYNC); /* written, and lost on its way to the medium */
    if (lost)
        errno = lost;
    return lost;
}

ssize_t pwritev64v2(int fd, const struct iovec *iov, int count, off_t offset, int flags)
{
    struct iovec first;
    ssize_t done;
    int ours = is_disk(fd);

    if (ours && (refused(flags) || pass(WRITE)))
        return -1;
    if (ours && pieces(WRITE, iov, count, &first) == 0) {
        if (control->cut[WRITE] == HALFWAY && real_pwritev(fd, &first, 1, offset, flags) == (ssize_t)first.iov_len)
            hold_here(WRITE);
        else if (control->cut[WRITE] != HALFWAY) {
            iov = &first;
            count = 1;
        }
    }
    done = real_pwritev(fd, iov, count, offset, flags);
    if (ours && done > 0)
        note(flags & RWF_DSYNC ? WROTE_DURABLY : WROTE, offset, (size_t)done, iov, count);
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset)
{
    struct iovec piece = {(void *)(uintptr_t)data, size};

    return pwritev64v2(fd, &piece, 1, offset, 0);
}

int fdatasync(int fd)
{
    int ours = is_disk(fd), result;

    if (ours && pass(SYNC))
        return -1;
    if (ours)
        note(SYNC_BEGAN, 0, 0, NULL, 0);
    result = real_fdatasync(fd);
    if (ours && result == 0)
        note(SYNC_DONE, 0, 0, NULL, 0);
    return result;
}

int fsync(int fd)
{
    return is_disk(fd) ? fdatasync(fd) : ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fallocate64(int fd, int mode, off_t offset, off_t length)
{
    int ours = is_disk(fd), result;

    if (ours && pass(PUNCH))
        return -1;
    result = real_fallocate(fd, mode, offset, length);
    if (ours && result == 0)
        note(PUNCHED, offset, (size_t)length, NULL, 0);
    return result;
}

int fallocate(int fd, int mode, off_t offset, off_t length)
{
    return fallocate64(fd, mode, offset, length);
}
