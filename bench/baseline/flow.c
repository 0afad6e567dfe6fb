/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The two ends of a stream of packets; the connected or bound socket is standard input.
 *
 *   flow send SIZE SECONDS      writes pieces of SIZE bytes until the time is over; of TCP it then ends the connection
 *   flow count SIZE PACKETS     writes as many pieces; prints the processor time it took, in seconds
 *   flow receive SIZE SILENCE   reads until the connection ends, or until nothing came for SILENCE seconds;
 *                               prints bytes, packets, and seconds from the first to the last of them
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>

static double at_clock(clockid_t clock)
{
    struct timespec at;
    clock_gettime(clock, &at);
    return (double)at.tv_sec + (double)at.tv_nsec / 1e9;
}

static double now(void)
{
    return at_clock(CLOCK_MONOTONIC);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        return 2;
    size_t size = strtoul(argv[2], NULL, 10);
    double seconds = strtod(argv[3], NULL);
    char *buffer = calloc(1, size);

    if (strcmp(argv[1], "send") == 0) {
        for (double end = now() + seconds; now() < end;)
            /* A full queue or a refused packet is the network's answer, and the next one is sent all the same. */
            if (send(0, buffer, size, MSG_NOSIGNAL) < 0 && errno == EPIPE)
                return 1;
        shutdown(0, SHUT_WR);
        return 0;
    }
    if (strcmp(argv[1], "count") == 0) {
        double before = at_clock(CLOCK_PROCESS_CPUTIME_ID);
        for (unsigned long left = strtoul(argv[3], NULL, 10); left; left--)
            if (send(0, buffer, size, MSG_NOSIGNAL) < 0 && errno == EPIPE)
                return 1;
        printf("%f\n", at_clock(CLOCK_PROCESS_CPUTIME_ID) - before);
        return 0;
    }
    struct timeval silence = { .tv_sec = (time_t)seconds, .tv_usec = (suseconds_t)((seconds - (double)(time_t)seconds) * 1e6) };
    setsockopt(0, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof silence);
    unsigned long long bytes = 0, packets = 0;
    double first = 0, last = 0;
    for (ssize_t got; (got = recv(0, buffer, size, 0)) > 0; packets++, bytes += (unsigned long long)got) {
        last = now();
        if (!packets)
            first = last;
    }
    printf("%llu %llu %f\n", bytes, packets, last - first);
    return 0;
}
