/* A list behind a lock that is held for nanoseconds. It is short: only commands that wait for the disk stay in it. */

#define _GNU_SOURCE
#include <sched.h>
#include <stddef.h>
#include <time.h>

#include "ranges.h"

#define TURNS 100 /* before the thread that has the lock gets this CPU */
#define FIRST_NAP 10000 /* nanoseconds */
#define LONGEST_NAP 1000000

static void lock(struct ranges *ranges)
{
    for (int turns = 0; __atomic_exchange_n(&ranges->is_locked, 1, __ATOMIC_ACQUIRE) != 0; turns++)
        if (turns >= TURNS)
            sched_yield();
}

static void unlock(struct ranges *ranges)
{
    __atomic_store_n(&ranges->is_locked, 0, __ATOMIC_RELEASE);
}

/* With the lock. One of those from `end` back to the first is in the way. */
static bool is_barred(const struct range *end, const struct range *range)
{
    for (const struct range *other = end; other; other = other->before)
        if (other->start < range->end && range->start < other->end && (other->is_write || range->is_write))
            return true;
    return false;
}

/* With the lock. */
static void add(struct ranges *ranges, struct range *range)
{
    range->of = ranges;
    range->next = NULL;
    range->before = ranges->last;
    *(ranges->last ? &ranges->last->next : &ranges->first) = range;
    ranges->last = range;
}

/* With the lock. The neighbours that `range` has get others in its place: `before` for the next one, `next` for the one
 * before. */
static void replace(struct ranges *ranges, const struct range *range, struct range *before, struct range *next)
{
    *(range->before ? &range->before->next : &ranges->first) = next;
    *(range->next ? &range->next->before : &ranges->last) = before;
}

bool range_try(struct ranges *ranges, struct range *range, uint64_t start, uint64_t size, bool is_write)
{
    if (!ranges)
        return true;
    range->start = start;
    range->end = start + size;
    range->is_write = is_write;
    lock(ranges);
    bool is_free = !is_barred(ranges->last, range);
    if (is_free)
        add(ranges, range);
    unlock(ranges);
    return is_free;
}

/* Who waits has a place already, before those that come later: so nobody waits for ever. */
void range_enter(struct ranges *ranges, struct range *range, uint64_t start, uint64_t size, bool is_write)
{
    struct timespec nap = {0, FIRST_NAP};

    *range = (struct range){.start = start, .end = start + size, .is_write = is_write};
    lock(ranges);
    add(ranges, range);
    while (is_barred(range->before, range)) {
        unlock(ranges);
        nanosleep(&nap, NULL);
        nap.tv_nsec = nap.tv_nsec < LONGEST_NAP ? 2 * nap.tv_nsec : LONGEST_NAP;
        lock(ranges);
    }
    unlock(ranges);
}

void range_leave(struct range *range)
{
    struct ranges *ranges = range->of;

    if (!ranges)
        return;
    lock(ranges);
    replace(ranges, range, range->before, range->next);
    unlock(ranges);
    range->of = NULL;
}

void range_move(struct range *range, struct range *to)
{
    struct ranges *ranges = range->of;

    *to = (struct range){0};
    if (!ranges)
        return;
    lock(ranges);
    *to = *range;
    replace(ranges, range, to, to);
    unlock(ranges);
    range->of = NULL;
}
