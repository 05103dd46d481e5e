// Moves bytes over one plain vsock connection to the host: what a session's throughput is compared with.
// flood serve N: for each 's' from the host sends it N bytes; for each 't' takes N bytes from it and answers with one.
// flood write N, flood read N: writes N bytes to standard output, reads as many from standard input.
#include <linux/vm_sockets.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char chunk[256 * 1024];

static int move(int link, int sends, long left) {
    while (left > 0) {
        size_t most = left < (long)sizeof chunk ? (size_t)left : sizeof chunk;
        ssize_t done = sends ? write(link, chunk, most) : read(link, chunk, most);
        if (done <= 0) return 1;
        left -= done;
    }
    return 0;
}

int main(int argc, char **argv) {
    struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_port = 1024, .svm_cid = 2};
    if (argc != 3) return 1;
    long bytes = atol(argv[2]);
    if (!strcmp(argv[1], "write")) return move(1, 1, bytes);
    if (!strcmp(argv[1], "read")) return move(0, 0, bytes);
    int link = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (connect(link, (struct sockaddr *)&host, sizeof host)) return 1;
    for (char way; read(link, &way, 1) == 1;) {
        if (move(link, way == 's', bytes)) return 1;
        if (way == 't' && write(link, chunk, 1) != 1) return 1;
    }
    return 0;
}
