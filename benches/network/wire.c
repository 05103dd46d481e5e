// The guest's half of the network benchmark: connections, round trips and bytes each way to one TCP server.
//
// usage: wire ADDRESS PORT [MEBIBYTES]     the numbers as `NAME VALUE` lines on standard output
//        wire ADDRESS PORT MEBIBYTES host  likewise, on a vsock connection to the host
// A connection's first byte says what it is for: `e` echo, `t` take what comes and answer with a byte after the count
// that follows (8 bytes, big endian), `g` give as many.
#include <arpa/inet.h>
#include <linux/vm_sockets.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 200
#define ROUND_TRIPS 1000
#define DEFAULT_MEBIBYTES 64

static struct sockaddr_in server;
static char chunk[256 * 1024];
static double times[ROUND_TRIPS];

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int opened(void) {
    int link = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    if (link < 0 || connect(link, (struct sockaddr *)&server, sizeof server)) fail("connect");
    setsockopt(link, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    return link;
}

static int by_size(const void *left, const void *right) {
    double difference = *(const double *)left - *(const double *)right;
    return difference < 0 ? -1 : difference > 0;
}

// In microseconds.
static double median(size_t count) {
    qsort(times, count, sizeof *times, by_size);
    return times[count / 2] * 1e6;
}

static double connections(void) {
    for (int at = 0; at < CONNECTIONS; at++) {
        double began = now();
        int link = opened();
        times[at] = now() - began;
        close(link);
    }
    return median(CONNECTIONS);
}

static double round_trips(void) {
    int link = opened();
    char byte = 'e';
    if (write(link, &byte, 1) != 1) fail("write");
    for (int at = 0; at < ROUND_TRIPS; at++) {
        double began = now();
        if (write(link, &byte, 1) != 1 || read(link, &byte, 1) != 1) fail("echo");
        times[at] = now() - began;
    }
    close(link);
    return median(ROUND_TRIPS);
}

// MiB/s, from the request to the last byte at its receiver.
static double transfer(char way, uint64_t mebibytes) {
    int link = opened();
    uint64_t left = mebibytes << 20;
    unsigned char request[9] = {way};
    for (int at = 0; at < 8; at++) request[1 + at] = left >> (56 - 8 * at);
    double began = now();
    if (write(link, request, sizeof request) != sizeof request) fail("request");
    while (left > 0) {
        size_t most = left < sizeof chunk ? left : sizeof chunk;
        ssize_t done = way == 't' ? write(link, chunk, most) : read(link, chunk, most);
        if (done <= 0) fail("transfer");
        left -= done;
    }
    if (way == 't' && read(link, chunk, 1) != 1) fail("answer");
    double took = now() - began;
    close(link);
    return mebibytes / took;
}

int main(int argc, char **argv) {
    uint64_t mebibytes = argc > 3 ? strtoull(argv[3], NULL, 10) : DEFAULT_MEBIBYTES;
    if (argc > 4) {
        struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_port = 1024, .svm_cid = VMADDR_CID_HOST};
        int link = socket(AF_VSOCK, SOCK_STREAM, 0);
        if (link < 0 || connect(link, (struct sockaddr *)&host, sizeof host) || dup2(link, 1) < 0) return 1;
    }
    server.sin_family = AF_INET;
    if (argc < 3 || inet_pton(AF_INET, argv[1], &server.sin_addr) != 1) return 2;
    server.sin_port = htons(atoi(argv[2]));
    // The first one also finds the neighbours.
    close(opened());
    printf("connect_us %f\n", connections());
    printf("round_trip_us %f\n", round_trips());
    printf("out %f\n", transfer('t', mebibytes));
    printf("into %f\n", transfer('g', mebibytes));
    return fflush(stdout) ? 1 : 0;
}
