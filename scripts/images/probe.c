// An honest program that looks at its network, for tests that busybox has no applets for.
//
// usage: probe reach (tcp|udp ADDRESS PORT)...   one line per attempt, as attempt.h has it
//        probe many ADDRESS PORT COUNT           as many connections at once, each with an answer of its own
//        probe relay ADDRESS PORT ADDRESS PORT   what the first peer sends goes to the second one, and a line says how
//                                                much that was
//        probe send ADDRESS PORT BYTES           as many zeros, in large pieces
//        probe echo PORT                         sends datagrams back, until it is ended; says `ready` first
#define _GNU_SOURCE
#include "attempt.h"

#include <fcntl.h>
#include <stdint.h>
#include <sys/resource.h>

// Descriptors beside the connections.
#define SPARE_DESCRIPTORS 64
// One piece of what is sent or relayed.
#define PIECE_BYTES (256 << 10)

static int give_up(const char *step, int at) {
    printf("%s %d failed %s\n", step, at, strerrorname_np(errno));
    return 1;
}

// The whole number, in parts if it has to be.
static int hear_number(int socket, uint32_t *number) {
    size_t got = 0;
    while (got < sizeof *number) {
        int error = await(socket, POLLIN);
        if (error) {
            errno = error;
            return -1;
        }
        ssize_t heard = recv(socket, (char *)number + got, sizeof *number - got, 0);
        if (heard <= 0) {
            if (heard == 0) errno = ECONNRESET;
            return -1;
        }
        got += heard;
    }
    return 0;
}

static int many(const char *text, int port, int count) {
    struct sockaddr_storage address;
    struct rlimit limit = {count + SPARE_DESCRIPTORS, count + SPARE_DESCRIPTORS};
    socklen_t length = parse_address(text, port, &address);
    int *sockets = calloc(count, sizeof *sockets);
    if (!length || !sockets) return 2;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0) return give_up("limit", count);
    for (int at = 0; at < count; at++) {
        sockets[at] = open_to(SOCK_STREAM, (struct sockaddr *)&address, length);
        if (sockets[at] < 0) return give_up("connection", at);
    }
    // All are open at once. What comes back must be this connection's own.
    for (int at = 0; at < count; at++) {
        uint32_t number = at;
        if (send(sockets[at], &number, sizeof number, MSG_NOSIGNAL) != sizeof number) return give_up("send", at);
    }
    for (int at = 0; at < count; at++) {
        uint32_t number;
        if (hear_number(sockets[at], &number) < 0) return give_up("receive", at);
        if (number != (uint32_t)at) {
            printf("connection %d heard %u\n", at, number);
            return 1;
        }
    }
    printf("many %d ok\n", count);
    return 0;
}

static int connected(const char *address, const char *port) {
    struct sockaddr_storage at;
    socklen_t length = parse_address(address, atoi(port), &at);
    if (!length) return -1;
    int opened = open_to(SOCK_STREAM, (struct sockaddr *)&at, length);
    // From here on it waits as long as its peers do.
    if (opened >= 0) fcntl(opened, F_SETFL, 0);
    return opened;
}

static int send_all(int to, const unsigned char *bytes, size_t length) {
    for (size_t gone = 0; gone < length;) {
        ssize_t sent = send(to, bytes + gone, length - gone, MSG_NOSIGNAL);
        if (sent < 0) return -1;
        gone += sent;
    }
    return 0;
}

static int relay(char **argv) {
    static unsigned char piece[PIECE_BYTES];
    unsigned long long total = 0;
    int from = connected(argv[0], argv[1]), to = connected(argv[2], argv[3]);
    if (from < 0 || to < 0) return give_up("connection", from < 0 ? 0 : 1);
    for (;;) {
        ssize_t heard = recv(from, piece, sizeof piece, MSG_WAITALL);
        if (heard < 0) return give_up("receive", 0);
        if (heard == 0) break;
        if (send_all(to, piece, heard) < 0) return give_up("send", 0);
        total += heard;
    }
    printf("relay %llu\n", total);
    return 0;
}

static int send_zeros(char **argv) {
    static unsigned char piece[PIECE_BYTES];
    int to = connected(argv[0], argv[1]);
    if (to < 0) return give_up("connection", 0);
    for (unsigned long long left = strtoull(argv[2], NULL, 10); left;) {
        size_t length = left < sizeof piece ? left : sizeof piece;
        if (send_all(to, piece, length) < 0) return give_up("send", 0);
        left -= length;
    }
    return 0;
}

static int echo(int port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port)};
    int opened = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (opened < 0 || bind(opened, (struct sockaddr *)&at, sizeof at) < 0) return give_up("port", port);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        char bytes[1500];
        struct sockaddr_in from;
        socklen_t length = sizeof from;
        ssize_t heard = recvfrom(opened, bytes, sizeof bytes, 0, (struct sockaddr *)&from, &length);
        if (heard >= 0) sendto(opened, bytes, heard, 0, (struct sockaddr *)&from, length);
    }
}

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "reach")) return reach(argc - 2, argv + 2);
    if (argc == 5 && !strcmp(argv[1], "many")) return many(argv[2], atoi(argv[3]), atoi(argv[4]));
    if (argc == 6 && !strcmp(argv[1], "relay")) return relay(argv + 2);
    if (argc == 5 && !strcmp(argv[1], "send")) return send_zeros(argv + 2);
    if (argc == 3 && !strcmp(argv[1], "echo")) return echo(atoi(argv[2]));
    fprintf(stderr, "probe: see its source for the usage\n");
    return 2;
}
