/*
 * Report a wrong time to one process: a preloaded replacement of the C library's clocks.
 *
 * DTIMER_TEST_CLOCK names a small file with the error of the clocks. The file is mapped into
 * memory, so that tests/clocks.py can change the error while the process runs:
 *
 *   offset   ns added to the wall clock
 *   rate     ns a second by which every clock runs slow; negative for fast
 *   anchor   ns of the monotonic clock at which the rate began
 *
 * The kernel times waits, so they keep their true length. The clocks are read from the kernel
 * directly, because the process may call these functions before the C library is ready.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { OFFSET, RATE, ANCHOR, FIELDS };

static volatile int64_t *off;

__attribute__((constructor)) static void open_file(void) {
    const char *path = getenv("DTIMER_TEST_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *at = mmap(NULL, FIELDS * sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) off = at;
    close(file);
}

static int64_t kernel(clockid_t clock, int *status) {
    struct timespec t = {0, 0};
    *status = (int)syscall(SYS_clock_gettime, clock, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int64_t now(clockid_t clock, int *status) {
    int64_t ns = kernel(clock, status);
    if (*status || !off) return ns;
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_REALTIME_COARSE:
        ns += off[OFFSET];
        break;
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_MONOTONIC_COARSE:
    case CLOCK_BOOTTIME:
        break;
    default: /* CPU times, for example */
        return ns;
    }
    if (off[RATE]) {
        int ignored;
        double passed = (double)(kernel(CLOCK_MONOTONIC, &ignored) - off[ANCHOR]);
        ns -= (int64_t)(passed * ((double)off[RATE] / 1e9));
    }
    return ns;
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    int status;
    int64_t ns = now(clock, &status);
    t->tv_sec = ns / 1000000000LL;
    t->tv_nsec = ns % 1000000000LL;
    return status;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    int status;
    int64_t ns = now(CLOCK_REALTIME, &status);
    (void)zone;
    t->tv_sec = ns / 1000000000LL;
    t->tv_usec = ns % 1000000000LL / 1000;
    return status;
}

time_t time(time_t *t) {
    int status;
    time_t seconds = now(CLOCK_REALTIME, &status) / 1000000000LL;
    if (t) *t = seconds;
    return seconds;
}
