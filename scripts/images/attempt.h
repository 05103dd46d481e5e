// What `probe` and `attack` share: one attempt to reach something, and one line about how it went.
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

// How long a peer may be silent, in milliseconds; III_ATTEMPT_MS says otherwise. An emulated host is slow.
#define DEFAULT_PATIENCE_MS 20000
#define GREETING "hello\n"

static inline int patience_ms(void) {
    const char *said = getenv("III_ATTEMPT_MS");
    return said ? atoi(said) : DEFAULT_PATIENCE_MS;
}

// The length of the address, or 0 if it is none.
static inline socklen_t parse_address(const char *text, int port, struct sockaddr_storage *at) {
    struct sockaddr_in *four = (struct sockaddr_in *)at;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)at;
    memset(at, 0, sizeof *at);
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(port);
        return sizeof *four;
    }
    if (inet_pton(AF_INET6, text, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons(port);
        return sizeof *six;
    }
    return 0;
}

// Waits for an event of a socket: 0, or ETIMEDOUT, or what the socket complains about.
static inline int await(int socket, short events) {
    struct pollfd one = {.fd = socket, .events = events};
    int ready = poll(&one, 1, patience_ms());
    int error = 0;
    socklen_t length = sizeof error;
    if (ready < 0) return errno;
    if (ready == 0) return ETIMEDOUT;
    getsockopt(socket, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
}

// A connected socket, or -1 with errno. ETIMEDOUT: nothing came back.
static inline int open_to(int kind, const struct sockaddr *at, socklen_t length) {
    int opened = socket(at->sa_family, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int error = 0;
    if (opened < 0) return -1;
    if (connect(opened, at, length) < 0) {
        error = errno;
        if (error == EINPROGRESS) error = await(opened, POLLOUT);
    }
    if (!error) return opened;
    close(opened);
    errno = error;
    return -1;
}

// Says something on a connected socket, and hears the answer: its length, 0 for an end without one, or -1 with errno.
static inline ssize_t ask(int socket, char *answer, size_t room) {
    if (send(socket, GREETING, strlen(GREETING), MSG_NOSIGNAL) < 0) return -1;
    int error = await(socket, POLLIN);
    if (error) {
        errno = error;
        return -1;
    }
    return recv(socket, answer, room, 0);
}

// Tries to get an answer and tells, as one line: `WHAT answered TEXT`, `WHAT connected REASON` (a connection, but no
// answer), or `WHAT failed REASON`.
static inline void attempt(const char *what, int kind, const struct sockaddr *at, socklen_t length) {
    char answer[1000];
    int opened = open_to(kind, at, length);
    if (opened < 0) {
        printf("%s failed %s\n", what, strerrorname_np(errno));
        return;
    }
    ssize_t heard = ask(opened, answer, sizeof answer - 1);
    if (heard > 0) {
        answer[heard] = 0;
        answer[strcspn(answer, "\r\n")] = 0;
        printf("%s answered %s\n", what, answer);
    } else if (kind == SOCK_DGRAM) {
        // Without an answer a datagram has reached nobody, as far as one can know.
        printf("%s failed %s\n", what, strerrorname_np(errno));
    } else {
        printf("%s connected %s\n", what, heard == 0 ? "END" : strerrorname_np(errno));
    }
    close(opened);
}

// Attempts for `(tcp|udp ADDRESS PORT)...`.
static inline int reach(int argc, char **argv) {
    for (int at = 0; at + 2 < argc; at += 3) {
        struct sockaddr_storage address;
        char what[200];
        int kind = strcmp(argv[at], "udp") ? SOCK_STREAM : SOCK_DGRAM;
        socklen_t length = parse_address(argv[at + 1], atoi(argv[at + 2]), &address);
        if (!length) return 2;
        snprintf(what, sizeof what, "%s %s %s", argv[at], argv[at + 1], argv[at + 2]);
        attempt(what, kind, (struct sockaddr *)&address, length);
        fflush(stdout);
    }
    return 0;
}
