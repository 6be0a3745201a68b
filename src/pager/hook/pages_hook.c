// libyado_pages.so: preloaded into a stock program (QEMU), it gives the faults of one shared mapping to a pager.
//
//   YADO_PAGES_MEMORY  the file whose first writable shared mapping is meant, as the program names it
//   YADO_PAGES_PAGER   the pager's socket: a path, or "fd:N", inherited
//
// Says nothing and does nothing without the two. What goes wrong ends the process (status 97): a program that ran without its pager would take
// holes for zeros. userfaultfd(2), ioctl_userfaultfd(2).

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "../hook_protocol.h"

#ifndef UFFD_FEATURE_WP_ASYNC  // Linux 6.7; Debian 12's headers are of 6.1
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

enum { failure_status = 97 };

static char *memory;
static int pager = -1;
// Stays open here: when the pager ends, waiting threads go on waiting, and do not see holes as zeros.
static int faults = -1;
static pthread_mutex_t once = PTHREAD_MUTEX_INITIALIZER;

static void give_up(const char *what) {
  fprintf(stderr, "libyado_pages: %s: %s\n", what, strerror(errno));
  _exit(failure_status);
}

static _Noreturn void pager_has_ended(void) {
  static const char words[] = "libyado_pages: the pager has ended, and with it what it kept of this memory\n";
  (void)!write(STDERR_FILENO, words, sizeof words - 1);
  _exit(failure_status);
}

// MADV_DONTNEED works on one's own memory only: the pager asks for it.
static void *serve_pager(void *unused) {
  (void)unused;
  static struct yado_pages_unmap ask;
  for (;;) {
    const ssize_t n = recv(pager, &ask, sizeof ask, 0);
    if (n < 0 && errno == EINTR) continue;
    if (n < (ssize_t)sizeof(uint32_t) * 2 || ask.version != YADO_PAGES_VERSION || ask.ranges > YADO_PAGES_MOST_RANGES) pager_has_ended();
    struct yado_pages_done done = {0};
    for (uint32_t i = 0; i < ask.ranges && done.error == 0; ++i)
      if (madvise(memory + ask.range[i].offset, ask.range[i].bytes, MADV_DONTNEED) != 0) done.error = errno;
    if (send(pager, &done, sizeof done, MSG_NOSIGNAL) != sizeof done) pager_has_ended();
  }
}

static int connect_to_pager(const char *where) {
  if (strncmp(where, "fd:", 3) == 0) {
    const int fd = atoi(where + 3);
    if (fcntl(fd, F_SETFD, FD_CLOEXEC) != 0) give_up("the pager's socket");
    return fd;
  }
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  if (fd < 0 || strlen(where) >= sizeof address.sun_path) give_up("the pager's socket");
  strcpy(address.sun_path, where);
  if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0) give_up(where);
  return fd;
}

static void say_hello(const struct yado_pages_hello *hello, const int fds[3]) {
  union {
    char bytes[CMSG_SPACE(3 * sizeof(int))];
    struct cmsghdr aligned;
  } control = {0};
  struct iovec data = {(void *)hello, sizeof *hello};
  struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(3 * sizeof(int));
  memcpy(CMSG_DATA(header), fds, 3 * sizeof(int));
  if (sendmsg(pager, &message, MSG_NOSIGNAL) < 0) give_up("greet the pager");
}

static void hand_over(char *address, size_t bytes, int file) {
  faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
  if (faults < 0) give_up("userfaultfd (a privileged call: run as root, or set vm.unprivileged_userfaultfd)");
  struct uffdio_api api = {.api = UFFD_API,
                           .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP |
                                       UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC};
  if (ioctl(faults, UFFDIO_API, &api) != 0) give_up("userfaultfd's features (asynchronous write protection needs Linux 6.7)");
  struct uffdio_register whole = {.range = {(uintptr_t)address, bytes},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP};
  if (ioctl(faults, UFFDIO_REGISTER, &whole) != 0) give_up("register the memory with userfaultfd");
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) give_up("/proc/self/pagemap");
  const int fds[3] = {faults, file, pagemap};
  const struct yado_pages_hello hello = {YADO_PAGES_VERSION, getpid(), (uintptr_t)address, bytes};
  say_hello(&hello, fds);
  close(pagemap);
  struct yado_pages_unmap go;
  ssize_t n;
  do n = recv(pager, &go, sizeof go, 0);
  while (n < 0 && errno == EINTR);
  if (n < (ssize_t)sizeof(uint32_t) * 2 || go.version != YADO_PAGES_VERSION || go.ranges != 0) {
    if (n >= 0) errno = ECONNREFUSED;
    give_up("the pager does not take this memory");
  }

  memory = address;
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // the program's signals are for its own threads
  pthread_t thread;
  const int error = pthread_create(&thread, NULL, serve_pager, NULL);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (error != 0) {
    errno = error;
    give_up("a thread");
  }
  pthread_detach(thread);
}

static bool is_the_memory(int file) {
  const char *path = getenv("YADO_PAGES_MEMORY");
  struct stat wanted, given;
  return path != NULL && fstat(file, &given) == 0 && stat(path, &wanted) == 0 && given.st_ino == wanted.st_ino &&
         given.st_dev == wanted.st_dev;
}

static void *map(void *address, size_t bytes, int protection, int flags, int file, off_t offset) {
  // Not dlsym: the C library itself may call mmap before that works.
  void *result = (void *)syscall(SYS_mmap, address, bytes, protection, flags, file, offset);
  if (result == MAP_FAILED || file < 0 || !(flags & MAP_SHARED) || !(protection & PROT_WRITE) || offset != 0) return result;
  const int saved = errno;
  const char *where = getenv("YADO_PAGES_PAGER");
  if (where != NULL && is_the_memory(file)) {
    pthread_mutex_lock(&once);
    if (pager < 0) {
      pager = connect_to_pager(where);
      hand_over(result, bytes, file);
    }
    pthread_mutex_unlock(&once);
  }
  errno = saved;
  return result;
}

__attribute__((visibility("default"))) void *mmap(void *address, size_t bytes, int protection, int flags, int file, off_t offset) {
  return map(address, bytes, protection, flags, file, offset);
}
__attribute__((visibility("default"))) void *mmap64(void *address, size_t bytes, int protection, int flags, int file, off_t offset) {
  return map(address, bytes, protection, flags, file, offset);
}
