// Moves bytes over one plain vsock connection to the host: what a session's throughput is compared with.
// flood send N: writes N bytes. flood take N: reads N bytes, then answers with one.
// flood write N, flood read N: likewise by standard output and input, without an answer.
#include <linux/vm_sockets.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static char chunk[256 * 1024];

int main(int argc, char **argv) {
    struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_port = 1024, .svm_cid = 2};
    if (argc != 3) return 1;
    int writes = !strcmp(argv[1], "write"), reads = !strcmp(argv[1], "read");
    int link = writes ? 1 : reads ? 0 : socket(AF_VSOCK, SOCK_STREAM, 0);
    if (!writes && !reads && connect(link, (struct sockaddr *)&host, sizeof host)) return 1;
    int sends = writes || !strcmp(argv[1], "send");
    for (long left = atol(argv[2]); left > 0;) {
        size_t most = left < (long)sizeof chunk ? (size_t)left : sizeof chunk;
        ssize_t done = sends ? write(link, chunk, most) : read(link, chunk, most);
        if (done <= 0) return 1;
        left -= done;
    }
    if (!sends && !reads && write(link, chunk, 1) != 1) return 1;
    return 0;
}
