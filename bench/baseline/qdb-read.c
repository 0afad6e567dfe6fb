/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Reads one QubesDB key: the baseline's reader, compiled by the benchmark.
 *
 *   qdb-read PATH      prints the value; exit 0 found, 2 no such key, 1 anything else
 */
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { MSG_READ = 0, MSG_NOENT = 8, REPLY_READ = 10, PATH_SIZE = 64, VALUE_SIZE = 3072 };

struct header {
    uint8_t type;
    char path[PATH_SIZE];
    uint8_t padding[3];
    uint32_t length;
};

static int all(int fd, void *buffer, size_t length)
{
    for (char *at = buffer; length > 0;) {
        ssize_t got = read(fd, at, length);
        if (got <= 0)
            return -1;
        at += got;
        length -= (size_t)got;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct sockaddr_un where = { .sun_family = AF_UNIX, .sun_path = "/run/qubes/qubesdb.ro.sock" };
    struct header message = { .type = MSG_READ };
    char value[VALUE_SIZE];
    int fd;

    _Static_assert(sizeof(struct header) == 72, "the header of the wire protocol is 72 bytes");
    if (argc != 2 || strlen(argv[1]) >= PATH_SIZE)
        return 1;
    strcpy(message.path, argv[1]);
    fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&where, sizeof where) < 0)
        return perror("qdb-read"), 1;
    if (write(fd, &message, sizeof message) != (ssize_t)sizeof message || all(fd, &message, sizeof message) < 0)
        return 1;
    if (message.type == MSG_NOENT)
        return 2;
    if (message.type != REPLY_READ || message.length > sizeof value || all(fd, value, message.length) < 0)
        return 1;
    return fwrite(value, 1, message.length, stdout) == message.length ? 0 : 1;
}
