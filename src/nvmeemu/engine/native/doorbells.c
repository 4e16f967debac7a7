/* Mapped doorbells: a page that the client writes, and nobody tells us. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "doorbells.h"
#include "engine.h"
#include "interface.h"
#include "lane.h"
#include "nvme_spec.h"
#include "queue.h"

#define BAR_SIZE NVME_BAR0_LEAST /* the file is like BAR0, of which only the doorbells are used */

_Static_assert(NVME_DOORBELLS + NVME_PAGE_MIN <= BAR_SIZE, "the page of doorbells lies in the file");
#define ALL_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) /* a client that shortened it would kill us */

int engine_map_doorbells(struct engine *engine)
{
    int fd = memfd_create("doorbells", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0)
        return -1;
    void *page = MAP_FAILED;
    if (ftruncate(fd, BAR_SIZE) == 0 && fcntl(fd, F_ADD_SEALS, ALL_SEALS) == 0)
        page = mmap(NULL, NVME_PAGE_MIN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, NVME_DOORBELLS);
    if (page == MAP_FAILED) {
        close(fd);
        return -1;
    }
    memset(page, 0xff, NVME_PAGE_MIN); /* NOT_RUNG */
    engine_pause(engine); /* lanes look whether there is a page */
    engine->doorbells = page;
    engine_resume(engine);
    engine->doorbells_fd = fd;
    return fd;
}

void doorbells_free(struct engine *engine)
{
    if (!engine->doorbells)
        return;
    munmap(engine->doorbells, NVME_PAGE_MIN);
    close(engine->doorbells_fd);
}

bool doorbell_is_rung(struct engine *engine, uint32_t number)
{
    return engine->doorbells && number < MAX_DOORBELLS &&
           atomic_load_explicit(&engine->doorbells[number], memory_order_acquire) != NOT_RUNG;
}

uint32_t doorbell_take(struct engine *engine, uint32_t number)
{
    /* Looking is cheap as long as nobody writes; taking is not. */
    return doorbell_is_rung(engine, number) ? atomic_exchange(&engine->doorbells[number], NOT_RUNG) : NOT_RUNG;
}

static bool is_mains(struct engine *engine, uint32_t number)
{
    return !atomic_load_explicit(&engine->owned[number], memory_order_relaxed);
}

bool doorbells_are_rung(struct engine *engine, uint32_t end)
{
    for (uint32_t i = 0; i < end; i++)
        if (is_mains(engine, i) && doorbell_is_rung(engine, i))
            return true;
    return false;
}

void doorbell_own(struct engine *engine, uint32_t number, struct queue *queue)
{
    if (number >= MAX_DOORBELLS)
        return;
    engine->by_doorbell[number] = queue;
    atomic_store(&engine->owned[number], queue != NULL);
}

/* --- main: doorbells of its own queues, and of none ------------------------------------------------------------------ */

void engine_watch(struct engine *engine, bool is_watched)
{
    if (!engine->doorbells)
        return;
    lane_enter(&engine->lanes[0]);
    engine->watched = is_watched ? 2 : 0;
    lane_leave(&engine->lanes[0]);
    memset(engine->doorbells, 0xff, NVME_PAGE_MIN);
    lane_wake(&engine->lanes[0]);
}

void engine_forget_doorbell(struct engine *engine, uint32_t number)
{
    if (!engine->doorbells)
        return;
    doorbell_take(engine, number);
    lane_enter(&engine->lanes[0]);
    if (engine->watched <= number && number < MAX_DOORBELLS)
        engine->watched = number + 1;
    lane_leave(&engine->lanes[0]);
}

bool doorbells_next(struct engine *engine, struct event *event)
{
    for (uint32_t i = 0; engine->watched && i < MAX_DOORBELLS; i++) {
        uint32_t value = is_mains(engine, i) ? doorbell_take(engine, i) : NOT_RUNG;
        if (value != NOT_RUNG) {
            *event = (struct event){.kind = EVENT_RUNG, .id = i, .value = value};
            return true;
        }
    }
    return false;
}

void engine_take_doorbells(struct engine *engine, bool is_wanted)
{
    engine->takes_doorbells = is_wanted;
}

bool engine_ring(void *context, uint32_t number, uint32_t value)
{
    struct engine *engine = context;
    struct queue *queue = engine->takes_doorbells && number < MAX_DOORBELLS ? engine->by_doorbell[number] : NULL;

    return queue && queue_ring(queue, value);
}
