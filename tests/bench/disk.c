/* What the disk allows: messages created in tmp/, written, synced, renamed to new/, the directory
 * synced; by several threads, each with a maildir of its own, and with no protocol at all.
 *
 *     disk SECONDS OCTETS MOST MAILDIR...
 *
 * prints how many messages each thread stored, MOST at most, and in how many seconds. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static double seconds;
static size_t octets;
static long most;
static char *text;

struct maildir {
    const char *path;
    long stored;
    double took;
};

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void must(int done, const char *what)
{
    if (!done) {
        perror(what);
        exit(1);
    }
}

static void *store(void *argument)
{
    struct maildir *own = argument;
    char draft[4096], final[4096], folder[4096];
    snprintf(folder, sizeof folder, "%s/new", own->path);
    int directory = open(folder, O_RDONLY | O_DIRECTORY);
    must(directory >= 0, folder);
    double began = now();
    while (own->stored < most && now() - began < seconds) {
        snprintf(draft, sizeof draft, "%s/tmp/%ld", own->path, own->stored);
        snprintf(final, sizeof final, "%s/new/%ld", own->path, own->stored);
        int file = open(draft, O_WRONLY | O_CREAT | O_EXCL, 0600);
        must(file >= 0, draft);
        must(write(file, text, octets) == (ssize_t)octets, draft);
        must(fsync(file) == 0 && close(file) == 0, draft);
        must(rename(draft, final) == 0, final);
        must(fsync(directory) == 0, folder);
        own->stored++;
    }
    own->took = now() - began;
    return NULL;
}

int main(int count, char **arguments)
{
    if (count < 5) {
        fputs("usage: disk SECONDS OCTETS MOST MAILDIR...\n", stderr);
        return 2;
    }
    seconds = atof(arguments[1]);
    octets = strtoul(arguments[2], NULL, 10);
    most = atol(arguments[3]);
    text = malloc(octets);
    must(text != NULL, "memory");
    memset(text, 'x', octets);
    int threads = count - 4;
    struct maildir *maildirs = calloc(threads, sizeof *maildirs);
    pthread_t *ids = calloc(threads, sizeof *ids);
    must(maildirs != NULL && ids != NULL, "memory");
    for (int n = 0; n < threads; n++) {
        maildirs[n].path = arguments[4 + n];
        must(pthread_create(&ids[n], NULL, store, &maildirs[n]) == 0, "thread");
    }
    for (int n = 0; n < threads; n++) {
        pthread_join(ids[n], NULL);
        printf("%ld %.6f\n", maildirs[n].stored, maildirs[n].took);
    }
    return 0;
}
