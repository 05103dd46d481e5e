// The whole content of the image `hello`: proof that an image needs no shell and no folder but its program's.
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

int main(int argc, char **argv) {
    sigset_t end;
    int signal;
    sigemptyset(&end);
    sigaddset(&end, SIGTERM);
    sigprocmask(SIG_BLOCK, &end, NULL);
    printf("hello from scratch, pid %s, %d arguments\n", getpid() > 1 ? "above 1" : "1", argc - 1);
    for (int at = 1; at < argc; at++) printf("argument %s\n", argv[at]);
    fflush(stdout);
    sigwait(&end, &signal);
    printf("goodbye\n");
    return 0;
}
