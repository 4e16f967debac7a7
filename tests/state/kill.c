/*
 * Kills the process (SIGKILL) at a chosen call with which SQLite changes a file: before it, or when it is half done.
 * LD_PRELOAD it; tests/state/victim.py arms it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>

static int calls, last, is_half;

void arm(int call, int half)
{
    calls = 0;
    last = call;
    is_half = half;
}

int armed_calls(void)
{
    return calls;
}

/* Whether this is the last call, of which a half is still to be done. */
static int is_last(void)
{
    if (++calls != last)
        return 0;
    if (!is_half)
        kill(getpid(), SIGKILL);
    return 1;
}

static ssize_t write_half(const char *name, int fd, const void *data, size_t size, off_t offset)
{
    ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, name);

    if (is_last()) {
        real(fd, data, size / 2, offset);
        kill(getpid(), SIGKILL);
    }
    return real(fd, data, size, offset);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset)
{
    return write_half("pwrite", fd, data, size, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset)
{
    return write_half("pwrite64", fd, data, size, offset);
}

static int ended(int result, int was_last)
{
    if (was_last)
        kill(getpid(), SIGKILL);
    return result;
}

int fsync(int fd)
{
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync"), was_last = is_last();

    return ended(real(fd), was_last);
}

int fdatasync(int fd)
{
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync"), was_last = is_last();

    return ended(real(fd), was_last);
}

int unlink(const char *path)
{
    int (*real)(const char *) = dlsym(RTLD_NEXT, "unlink"), was_last = is_last();

    return ended(real(path), was_last);
}
