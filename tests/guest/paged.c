// A program with a shared memory file, for tests of the pager: writes a pattern from several threads under which a stale, lost, torn
// or swapped page shows, and looks at every word it reads.
//
//   paged FD MIB        FD is the memory file; named /proc/self/fd/FD
//
// Commands on standard input, answered by one line each:
//   f        fill          ok pages=…
//   w MS P   for MS milliseconds random pages of the first P percent are read, checked and most of them written; some
//            through the kernel (read(2) into the page)      ok writes=… bad=…
//   s MS     the same, one page after the other
//   z P      zeros to the last P percent
//   t A B    writes page A, then page B                      ok pages=…
//   v        check all                                       ok pages=… bad=…
//   q        end

#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { page_bytes = 4096, words = page_bytes / 8, threads = 3 };

static uint64_t *memory;
static uint32_t *versions;  // 0: all zero
static uint64_t pages;

static struct {
  uint64_t until_us, percent;
  bool in_order;
} work;

static uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

static uint64_t word_of(uint64_t first, uint64_t k) {
  const uint64_t x = (first + k * 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
  return x ^ x >> 31;
}

static void make(uint64_t page, uint64_t *at) {
  const uint64_t first = page << 32 | ++versions[page];
  at[0] = first;
  for (uint64_t k = 1; k < words; ++k) at[k] = word_of(first, k);
}

static uint64_t bad_words(uint64_t page) {
  const uint64_t *at = memory + page * words;
  const uint64_t first = versions[page] == 0 ? 0 : page << 32 | versions[page];
  uint64_t bad = at[0] != first;
  for (uint64_t k = 1; k < words; ++k) bad += at[k] != (first == 0 ? 0 : word_of(first, k));
  return bad;
}

struct Thread {
  pthread_t thread;
  uint64_t number, writes, bad, random;
  int pipe[2];
};

static uint64_t next(uint64_t *state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  return *state ^= *state << 17;
}

// Each has the pages whose number leaves its own remainder, so that versions need no lock.
static void *run(void *given) {
  struct Thread *self = given;
  uint64_t buffer[words], turn = 0;
  const uint64_t most = pages * work.percent / 100 / threads;
  while (now_us() < work.until_us) {
    const uint64_t random = next(&self->random);
    const uint64_t page = (work.in_order ? turn++ % most : random % most) * threads + self->number;
    self->bad += bad_words(page);
    switch (random >> 60) {
      case 0: break;
      case 1:  // the kernel writes it
        make(page, buffer);
        if (write(self->pipe[1], buffer, page_bytes) != page_bytes || read(self->pipe[0], memory + page * words, page_bytes) != page_bytes) ++self->bad;
        ++self->writes;
        break;
      case 2:  // the kernel reads it
        if (write(self->pipe[1], memory + page * words, page_bytes) != page_bytes || read(self->pipe[0], buffer, page_bytes) != page_bytes ||
            memcmp(buffer, memory + page * words, page_bytes) != 0)
          ++self->bad;
        break;
      default: make(page, memory + page * words); ++self->writes;
    }
    self->bad += bad_words(page);
  }
  return NULL;
}

static void run_threads(void) {
  static struct Thread all[threads];
  uint64_t writes = 0, bad = 0;
  for (int i = 0; i < threads; ++i) {
    struct Thread *one = &all[i];
    if (one->random == 0) {
      one->number = (uint64_t)i;
      one->random = 88172645463325252u + (uint64_t)i;
      if (pipe2(one->pipe, O_CLOEXEC) != 0) exit(1);
    }
    one->writes = one->bad = 0;
    pthread_create(&one->thread, NULL, run, one);
  }
  for (int i = 0; i < threads; ++i) {
    pthread_join(all[i].thread, NULL);
    writes += all[i].writes;
    bad += all[i].bad;
  }
  printf("ok writes=%" PRIu64 " bad=%" PRIu64 "\n", writes, bad);
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%s", arguments[1]);
  const int file = open(path, O_RDWR | O_CLOEXEC);
  pages = strtoull(arguments[2], NULL, 10) << 8;
  memory = mmap(NULL, pages * page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  versions = calloc(pages, sizeof *versions);
  if (file < 0 || memory == MAP_FAILED || versions == NULL) return 1;
  setvbuf(stdout, NULL, _IOLBF, 0);
  printf("ok pages=%" PRIu64 "\n", pages);
  char line[100];
  while (fgets(line, sizeof line, stdin) != NULL) {
    uint64_t first = 0, second = 100, bad = 0;
    sscanf(line + 1, "%" SCNu64 " %" SCNu64, &first, &second);
    switch (line[0]) {
      case 'f':
        for (uint64_t page = 0; page < pages; ++page) make(page, memory + page * words);
        printf("ok pages=%" PRIu64 "\n", pages);
        break;
      case 'z':
        for (uint64_t page = pages - pages * first / 100; page < pages; ++page) {
          memset(memory + page * words, 0, page_bytes);
          versions[page] = 0;
        }
        printf("ok pages=%" PRIu64 "\n", pages);
        break;
      case 't':
        make(first % pages, memory + first % pages * words);
        make(second % pages, memory + second % pages * words);
        printf("ok pages=%" PRIu64 "\n", pages);
        break;
      case 'v':
        for (uint64_t page = 0; page < pages; ++page) bad += bad_words(page);
        printf("ok pages=%" PRIu64 " bad=%" PRIu64 "\n", pages, bad);
        break;
      case 'w':
      case 's':
        work.until_us = now_us() + first * 1000;
        work.percent = second;
        work.in_order = line[0] == 's';
        run_threads();
        break;
      default: return 0;
    }
  }
  return 0;
}
