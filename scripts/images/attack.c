// A guest that means harm. Root in its machine, it tries what it was not given, and tells one line per attempt.
//
// usage: attack reach (tcp|udp ADDRESS PORT)...  one line per attempt, as attempt.h has it
//        attack vsock CID FIRST LAST             likewise, for every vsock port of the range
//        attack sockets PATH...                  likewise, for Unix sockets of these paths and abstract names
//        attack tsi ADDRESS PORT                 an IPv4 address as the host sees it, by libkrun's TSI: a line per way
//        attack frames ADDRESS PORT              malformed Ethernet frames on eth0, many of them about ADDRESS;
//                                                one line per kind: `frames KIND sent N refused M`
// From the environment: III_ATTACK_SEED (the same seed, the same frames) and III_ATTACK_SECONDS.
#define _GNU_SOURCE
#include "attempt.h"

#include <linux/if_packet.h>
#include <linux/vm_sockets.h>
#include <net/if.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/un.h>
#include <time.h>

#define DEVICE "eth0"
#define DEFAULT_SECONDS 2
#define DEFAULT_SEED 1
// As crates/protocol/src/network.rs has them.
#define GUEST_MAC "\x02\x69\x69\x69\x00\x02"
#define GATEWAY_MAC "\x02\x69\x69\x69\x00\x01"
#define GUEST_IP "\xc6\x13\xf9\x02"
#define GATEWAY_IP "\xc6\x13\xf9\x01"
#define GUEST_IP6 "\xfd\x69\x69\x69\x69\x69\0\0\0\0\0\0\0\0\0\x02"
#define GATEWAY_IP6 "\xfd\x69\x69\x69\x69\x69\0\0\0\0\0\0\0\0\0\x01"
// Header and MTU: as large as the device takes.
#define MAX_FRAME (65520 + 14)
// How often the clock is looked at.
#define FRAMES_PER_LOOK 64

// ---- places -----------------------------------------------------------------------------------------

static int vsock(unsigned cid, unsigned first, unsigned last) {
    for (unsigned port = first; port <= last; port++) {
        struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = cid, .svm_port = port};
        char what[100];
        snprintf(what, sizeof what, "vsock %u %u", cid, port);
        attempt(what, SOCK_STREAM, (struct sockaddr *)&address, sizeof address);
        fflush(stdout);
    }
    return 0;
}

static int sockets(int argc, char **argv) {
    for (int at = 0; at < argc; at++) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        char what[200];
        size_t length = strlen(argv[at]);
        if (length + 1 >= sizeof address.sun_path) return 2;
        snprintf(what, sizeof what, "path %s", argv[at]);
        memcpy(address.sun_path, argv[at], length);
        attempt(what, SOCK_STREAM, (struct sockaddr *)&address, sizeof address);
        snprintf(what, sizeof what, "abstract %s", argv[at]);
        address.sun_path[0] = 0;
        memcpy(address.sun_path + 1, argv[at], length);
        attempt(what, SOCK_STREAM, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + length);
    }
    return 0;
}

// libkrun's TSI, which makes the VMM connect for its guest, and which has to be off (devices/src/virtio/vsock of
// libkrun 1.19): ports of the host for its datagrams, and the family of sockets that the guest's kernel has for it.
#define TSI_PROXY_CREATE 1024
#define TSI_CONNECT 1025
#define AF_TSI 46
#define TSI_PEER_PORT 5000

struct tsi_create {
    uint32_t peer_port;
    uint16_t family, type;
};

struct tsi_connect {
    uint32_t peer_port, address_length;
    struct sockaddr_in address;
};

// As the kernel would ask, but not the kernel: that the guest's own has it switched off protects nobody.
static void tsi_by_datagrams(const char *what, const struct sockaddr_in *to) {
    struct tsi_create create = {.peer_port = TSI_PEER_PORT, .family = AF_INET, .type = SOCK_STREAM};
    struct tsi_connect connect = {.peer_port = TSI_PEER_PORT, .address_length = sizeof *to, .address = *to};
    struct sockaddr_vm own = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = VMADDR_PORT_ANY};
    struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = TSI_PROXY_CREATE};
    int control = socket(AF_VSOCK, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    char answer[200];
    ssize_t sent = -1;
    if (control >= 0 && bind(control, (struct sockaddr *)&own, sizeof own) == 0) {
        sent = sendto(control, &create, sizeof create, 0, (struct sockaddr *)&host, sizeof host);
        host.svm_port = TSI_CONNECT;
        if (sent >= 0) sent = sendto(control, &connect, sizeof connect, 0, (struct sockaddr *)&host, sizeof host);
    }
    int error = sent < 0 ? errno : await(control, POLLIN);
    ssize_t heard = error ? -1 : recv(control, answer, sizeof answer, 0);
    if (heard >= 0) {
        printf("%s datagrams answered %zd bytes\n", what, heard);
    } else {
        printf("%s datagrams failed %s\n", what, strerrorname_np(error ? error : errno));
    }
    if (control >= 0) close(control);
}

static void nothing(int signal) { (void)signal; }

static int tsi(const char *address, int port) {
    struct sockaddr_storage to;
    char what[200];
    snprintf(what, sizeof what, "tsi %s %d", address, port);
    if (parse_address(address, port, &to) != sizeof(struct sockaddr_in)) return 2;
    tsi_by_datagrams(what, (struct sockaddr_in *)&to);
    // This connect may wait for an answer of the VMM that never comes.
    struct sigaction interrupt = {.sa_handler = nothing};
    sigaction(SIGALRM, &interrupt, NULL);
    alarm(1 + patience_ms() / 1000);
    int opened = socket(AF_TSI, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (opened < 0 || connect(opened, (struct sockaddr *)&to, sizeof(struct sockaddr_in)) < 0) {
        printf("%s socket failed %s\n", what, strerrorname_np(errno));
    } else {
        printf("%s socket connected\n", what);
    }
    if (opened >= 0) close(opened);
    return 0;
}

// ---- frames -----------------------------------------------------------------------------------------

static uint64_t state;

// xorshift64*: the same on every machine.
static uint32_t noise(void) {
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return (state * 0x2545f4914f6cdd1dULL) >> 32;
}

static uint32_t below(uint32_t limit) { return noise() % limit; }

static uint8_t frame[MAX_FRAME];
static size_t length;
static struct in_addr target;
static uint16_t target_port;

static void put(const void *bytes, size_t count) {
    memcpy(frame + length, bytes, count);
    length += count;
}

static void put8(uint8_t value) { frame[length++] = value; }

static void put16(uint16_t value) {
    put8(value >> 8);
    put8(value);
}

static void put_noise(size_t count) {
    while (count--) put8(noise());
}

static void ethernet(uint16_t type) {
    length = 0;
    put(GATEWAY_MAC, 6);
    put(GUEST_MAC, 6);
    put16(type);
}

// A right header of IPv4 for `body` bytes; what is wrong with it comes later, and not always.
static void ipv4(uint8_t protocol, const void *to, size_t body) {
    size_t start = length;
    uint32_t sum = 0;
    put8(0x45);
    put8(0);
    put16(20 + body);
    put16(noise());
    put16(0);
    put8(64);
    put8(protocol);
    put16(0);
    put(GUEST_IP, 4);
    put(to, 4);
    for (size_t at = start; at < length; at += 2) sum += frame[at] << 8 | frame[at + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    sum = ~((sum & 0xffff) + (sum >> 16));
    frame[start + 10] = sum >> 8;
    frame[start + 11] = sum;
}

static void ipv6(uint8_t next, const void *to, size_t body) {
    put("\x60\0\0\0", 4);
    put16(body);
    put8(next);
    put8(64);
    put(GUEST_IP6, 16);
    put(to, 16);
}

// Somewhere the guest may not go, or the gateway.
static const void *somewhere(void) {
    static const char places[][5] = {GATEWAY_IP,         GUEST_IP,           "\x7f\0\0\x01",
                                     "\xa9\xfe\xa9\xfe", "\xff\xff\xff\xff", "\xe0\0\0\x01"};
    uint32_t place = below(7);
    return place == 6 ? (const void *)&target : places[place];
}

static void arp(void) {
    ethernet(0x0806);
    put("\0\x01\x08\0\x06\x04\0", 7);
    put8(1 + below(3));
    put(below(2) ? GUEST_MAC : GATEWAY_MAC, 6);
    put(below(2) ? GUEST_IP : GATEWAY_IP, 4);
    put("\0\0\0\0\0\0", 6);
    put(somewhere(), 4);
}

// Every combination of flags, with options that lie about their length.
static void tcp_body(size_t options) {
    put16(1024 + below(60000));
    put16(below(2) ? target_port : below(65536));
    put_noise(8);
    put8((5 + options / 4) << 4);
    put8(below(2) ? 2 : noise());
    put16(0xffff);
    put16(noise());
    put16(0);
    for (size_t at = 0; at < options; at++) put8(below(3) ? below(9) : noise());
}

static void tcp(void) {
    size_t options = 4 * below(11), data = below(3) ? 0 : below(200);
    ethernet(0x0800);
    ipv4(6, somewhere(), 20 + options + data);
    tcp_body(options);
    put_noise(data);
}

static void tcp6(void) {
    size_t options = 4 * below(11);
    uint8_t mapped[16] = {0};
    const void *to = GATEWAY_IP6;
    if (below(2)) {
        // An IPv4 address by another name: ::ffff:a.b.c.d.
        mapped[10] = mapped[11] = 0xff;
        memcpy(mapped + 12, somewhere(), 4);
        to = mapped;
    }
    ethernet(0x86dd);
    ipv6(below(4) ? 6 : noise(), to, 20 + options);
    tcp_body(options);
}

static void udp(void) {
    size_t data = below(600);
    uint16_t ports[] = {53, 67, 68, 5353, target_port, noise()};
    ethernet(0x0800);
    ipv4(17, somewhere(), 8 + data);
    put16(noise());
    put16(ports[below(6)]);
    put16(below(2) ? 8 + data : noise());
    put16(0);
    put_noise(data);
}

// A question whose names are too long, point to themselves, or end in the middle.
static void dns(void) {
    uint8_t labels = 1 + below(40);
    size_t start, udp_start;
    ethernet(0x0800);
    start = length;
    ipv4(17, GATEWAY_IP, 0);
    udp_start = length;
    put16(1024 + below(60000));
    put16(53);
    put16(0);
    put16(0);
    put16(noise());
    put16(below(2) ? 0x0100 : noise());
    put16(below(3));
    put16(below(3));
    put16(0);
    put16(below(2));
    while (labels--) {
        uint8_t kind = below(8);
        if (kind == 0) {
            put16(0xc000 | below(64)); // a pointer, perhaps to itself
        } else {
            uint8_t size = kind == 1 ? noise() : 1 + below(12);
            put8(size);
            put_noise(kind == 2 ? size / 2 : size);
        }
    }
    if (below(2)) put8(0);
    put16(1);
    put16(1);
    // The lengths are right now, so that it gets to the reader of questions.
    size_t body = length;
    frame[udp_start + 4] = (body - udp_start) >> 8;
    frame[udp_start + 5] = body - udp_start;
    length = start;
    ipv4(17, GATEWAY_IP, body - udp_start);
    length = body;
}

static void icmp(void) {
    size_t data = below(100);
    ethernet(0x0800);
    ipv4(1, somewhere(), 4 + data);
    put8(below(2) ? 8 : noise());
    put8(noise() & 15);
    put16(0);
    put_noise(data);
}

static void neighbors(void) {
    static const uint8_t types[] = {133, 134, 135, 136, 137, 128, 143};
    size_t options = 8 * below(6);
    ethernet(0x86dd);
    ipv6(58, GATEWAY_IP6, 24 + options);
    put8(types[below(sizeof types)]);
    put8(0);
    put16(noise());
    put_noise(4);
    put(below(2) ? GATEWAY_IP6 : GUEST_IP6, 16);
    while (options--) put8(below(3));
}

static void anything(void) {
    ethernet(below(4) ? (below(2) ? 0x0800 : 0x86dd) : noise());
    put_noise(below(16) ? below(300) : below(MAX_FRAME - 14));
}

static const struct {
    const char *name;
    void (*make)(void);
} KINDS[] = {{"arp", arp}, {"tcp", tcp}, {"tcp6", tcp6}, {"udp", udp}, {"dns", dns},
             {"icmp", icmp}, {"neighbors", neighbors}, {"noise", anything}};
#define KIND_COUNT (sizeof KINDS / sizeof *KINDS)

// A few wrong bytes, or an end that comes too early.
static void spoil(void) {
    uint32_t changes = below(5);
    while (changes--) frame[below(length)] = noise();
    if (below(4) == 0) length = 1 + below(length);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static int frames(const char *address, int port) {
    const char *seed = getenv("III_ATTACK_SEED"), *seconds = getenv("III_ATTACK_SECONDS");
    uint64_t sent[KIND_COUNT] = {0}, refused[KIND_COUNT] = {0};
    struct sockaddr_ll link = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex(DEVICE), .sll_halen = 6};
    int wire = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0);
    if (wire < 0 || !link.sll_ifindex || inet_pton(AF_INET, address, &target) != 1) {
        printf("frames cannot be sent: %s\n", strerrorname_np(errno));
        return 1;
    }
    target_port = port;
    // Zero would stay zero.
    state = (seed ? strtoull(seed, NULL, 10) : DEFAULT_SEED) * 0x9e3779b97f4a7c15ULL | 1;
    double end = now() + (seconds ? atof(seconds) : DEFAULT_SECONDS);
    while (now() < end) {
        for (int at = 0; at < FRAMES_PER_LOOK; at++) {
            size_t kind = below(KIND_COUNT);
            KINDS[kind].make();
            if (below(4)) spoil();
            // The kernel itself refuses some: shorter than a header, or longer than the device takes.
            ssize_t gone = sendto(wire, frame, length, 0, (struct sockaddr *)&link, sizeof link);
            if (gone == (ssize_t)length) {
                sent[kind]++;
            } else if (errno == EINVAL || errno == EMSGSIZE) {
                refused[kind]++;
            } else if (errno != ENOBUFS && errno != EAGAIN) {
                printf("frames %s failed %s\n", KINDS[kind].name, strerrorname_np(errno));
                return 1;
            }
        }
    }
    for (size_t kind = 0; kind < KIND_COUNT; kind++)
        printf("frames %s sent %llu refused %llu\n", KINDS[kind].name, (unsigned long long)sent[kind],
               (unsigned long long)refused[kind]);
    return 0;
}

int main(int argc, char **argv) {
    if (argc > 2 && !strcmp(argv[1], "reach")) return reach(argc - 2, argv + 2);
    if (argc == 5 && !strcmp(argv[1], "vsock"))
        return vsock(strtoul(argv[2], NULL, 10), strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10));
    if (argc > 2 && !strcmp(argv[1], "sockets")) return sockets(argc - 2, argv + 2);
    if (argc == 4 && !strcmp(argv[1], "tsi")) return tsi(argv[2], atoi(argv[3]));
    if (argc == 4 && !strcmp(argv[1], "frames")) return frames(argv[2], atoi(argv[3]));
    fprintf(stderr, "attack: see its source for the usage\n");
    return 2;
}
