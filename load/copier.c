/* Passes on what two connected sockets send each other, and looks at none of it. See copier.py. */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

#define ROOM (512 * 1024)

struct direction {
    int from, to;
    char *held;
    size_t start, end;
};

/* Whether the connection goes on. */
static int pass_on(struct direction *way)
{
    ssize_t count;

    if (way->start == way->end) {
        count = read(way->from, way->held, ROOM);
        if (count < 0)
            return errno == EAGAIN;
        if (count == 0)
            return 0;
        way->start = 0;
        way->end = count;
    }
    count = write(way->to, way->held + way->start, way->end - way->start);
    if (count < 0)
        return errno == EAGAIN;
    way->start += count;
    return 1;
}

/* Until one of the two ends; both do not block. 0, or -1 without memory. */
int copy_both_ways(int first, int second)
{
    struct direction ways[2] = {{first, second, malloc(ROOM), 0, 0}, {second, first, malloc(ROOM), 0, 0}};
    int live = ways[0].held && ways[1].held, result = live ? 0 : -1, i;

    while (live) {
        /* Nothing is read before what was read last is written. */
        struct pollfd watched[2] = {{first, 0, 0}, {second, 0, 0}};
        for (i = 0; i < 2; i++) {
            int waits = ways[i].start < ways[i].end;
            watched[waits ? !i : i].events |= waits ? POLLOUT : POLLIN;
        }
        if (poll(watched, 2, -1) < 0 && errno != EINTR)
            break;
        for (i = 0; i < 2 && live; i++) {
            int waits = ways[i].start < ways[i].end;
            if (watched[waits ? !i : i].revents)
                live = pass_on(&ways[i]);
        }
    }
    free(ways[0].held);
    free(ways[1].held);
    return result;
}
