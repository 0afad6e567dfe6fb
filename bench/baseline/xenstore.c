/* SPDX-License-Identifier: GPL-2.0-or-later */
/* xenstore-read and xenstore-write over a folder of files, compiled by the benchmark for both contenders alike.
 *
 *   xenstore-read  [--] PATH         prints the value; exit 1 when there is none
 *   xenstore-write [--] PATH VALUE   the folder above must be there
 */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    const char *nodes = "/run/lab/xenstore", *own = "/local/domain/self/";
    const char *name = strrchr(argv[0], '/');
    int writes = strstr(name ? name : argv[0], "write") != NULL;
    int at = argc > 1 && strcmp(argv[1], "--") == 0 ? 2 : 1;
    char path[512], value[4096];
    ssize_t length;
    int fd;

    if (argc != at + 1 + writes)
        return 2;
    snprintf(path, sizeof path, "%s%s%s", nodes, argv[at][0] == '/' ? "" : own, argv[at]);
    if (writes) {
        fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        length = (ssize_t)strlen(argv[at + 1]);
        return fd < 0 || write(fd, argv[at + 1], (size_t)length) != length;
    }
    fd = open(path, O_RDONLY);
    length = fd < 0 ? -1 : read(fd, value, sizeof value - 1);
    if (length < 0) {
        fprintf(stderr, "xenstore-read: couldn't read path %s\n", argv[at]);
        return 1;
    }
    value[length] = '\n';
    return write(1, value, (size_t)length + 1) != length + 1;
}
