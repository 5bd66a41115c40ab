/*
 * Record how much of each file is on disk: a preloaded library that logs each completed fsync.
 *
 * DTIMER_TEST_DISK names the log (see tests/disks.py). A line is "<inode> <size>", with the size of
 * the file before the fsync: data written during an fsync may not be included in it.
 * Each fsync takes DTIMER_TEST_DISK_MS longer.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int notes = -1;
static useconds_t slow;

__attribute__((constructor)) static void open_notes(void) {
    const char *path = getenv("DTIMER_TEST_DISK");
    const char *ms = getenv("DTIMER_TEST_DISK_MS");
    if (path) notes = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);
    if (ms) slow = (useconds_t)atoi(ms) * 1000;
}

static int synced(long number, int file) {
    struct stat before;
    int known = fstat(file, &before) == 0;
    if (slow) usleep(slow);
    int status = (int)syscall(number, file);
    if (!status && known && notes >= 0) {
        char line[64];
        int length = snprintf(line, sizeof line, "%llu %lld\n", (unsigned long long)before.st_ino,
                              (long long)before.st_size);
        /* One write, so that lines of two threads do not mix. */
        ssize_t written = write(notes, line, (size_t)length);
        (void)written;
    }
    return status;
}

int fsync(int file) { return synced(SYS_fsync, file); }
int fdatasync(int file) { return synced(SYS_fdatasync, file); }
