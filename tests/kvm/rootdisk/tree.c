// Tells what the kernel finds on the root disk: one line for each name, then `told all`, then waits to be stopped.
//
//   PATH MODE UID GID SECONDS.NANOSECONDS LINKS INODE CONTENT [NAME=VALUE]...
//
// Names are in hexadecimal digits, `/` before the path of everything but the root; a content or a value is its length and
// its 64 bits of FNV-1a. It mounts the disk once more by itself: an overlay would not show links, inodes and all
// attributes as they are.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#define AT "/tmp/disk"
#define ROOM (64 * 1024) // of a name, a list of attributes or a value

static void die(const char *what, const char *path) {
  printf("FAILED %s %s: %s\n", what, path, strerror(errno));
  fflush(stdout);
  exit(1);
}

static void hex(const char *bytes) {
  for (; *bytes; bytes++) printf("%02x", (unsigned char)*bytes);
}

struct sum {
  uint64_t length, fnv;
};

static void add(struct sum *sum, const unsigned char *bytes, size_t count) {
  sum->length += count;
  for (size_t i = 0; i < count; i++) sum->fnv = (sum->fnv ^ bytes[i]) * 0x100000001b3;
}

static void show(const unsigned char *bytes, size_t count) {
  struct sum sum = {0, 0xcbf29ce484222325};
  add(&sum, bytes, count);
  printf("%llu:%016llx", (unsigned long long)sum.length, (unsigned long long)sum.fnv);
}

static void show_file(const char *path) {
  static unsigned char buffer[ROOM];
  struct sum sum = {0, 0xcbf29ce484222325};
  ssize_t count;
  int fd = open(path, O_RDONLY);
  if (fd < 0) die("open", path);
  while ((count = read(fd, buffer, sizeof buffer)) > 0) add(&sum, buffer, count);
  if (count < 0) die("read", path);
  close(fd);
  printf("%llu:%016llx", (unsigned long long)sum.length, (unsigned long long)sum.fnv);
}

static void show_attributes(const char *path) {
  static char names[ROOM], value[ROOM];
  ssize_t length = llistxattr(path, names, sizeof names);
  if (length < 0) die("llistxattr", path);
  for (char *name = names; name < names + length; name += strlen(name) + 1) {
    ssize_t count = lgetxattr(path, name, value, sizeof value);
    if (count < 0) die("lgetxattr", path);
    printf(" ");
    hex(name);
    printf("=");
    show((unsigned char *)value, count);
  }
}

static void tell(const char *path) {
  static char target[ROOM];
  struct stat st;
  if (lstat(path, &st)) die("lstat", path);
  printf("/");
  if (path[sizeof AT - 1]) hex(path + sizeof AT);
  printf(" %o %u %u %lld.%09ld %llu %llu ", st.st_mode, st.st_uid, st.st_gid, (long long)st.st_mtim.tv_sec,
         st.st_mtim.tv_nsec, (unsigned long long)st.st_nlink, (unsigned long long)st.st_ino);
  if (S_ISREG(st.st_mode)) {
    show_file(path);
  } else if (S_ISLNK(st.st_mode)) {
    ssize_t count = readlink(path, target, sizeof target);
    if (count < 0) die("readlink", path);
    show((unsigned char *)target, count);
  } else if (S_ISCHR(st.st_mode) || S_ISBLK(st.st_mode)) {
    printf("%u,%u", major(st.st_rdev), minor(st.st_rdev));
  } else {
    printf("-");
  }
  show_attributes(path);
  printf("\n");
  if (!S_ISDIR(st.st_mode)) return;

  DIR *folder = opendir(path);
  struct dirent *entry;
  if (!folder) die("opendir", path);
  while (errno = 0, (entry = readdir(folder))) {
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    char *inside;
    if (asprintf(&inside, "%s/%s", path, entry->d_name) < 0) die("asprintf", path);
    tell(inside);
    free(inside);
  }
  if (errno) die("readdir", path);
  closedir(folder);
}

int main(void) {
  if (mkdir(AT, 0700)) die("mkdir", AT);
  if (mount("/dev/vda", AT, "erofs", MS_RDONLY, NULL)) die("mount", "/dev/vda");
  tell(AT);
  puts("told all");
  fflush(stdout);
  for (;;) pause();
}
