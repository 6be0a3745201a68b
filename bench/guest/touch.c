// The program whose memory is paged in `./run bench paging`: it fills a shared memory file, touches its pages, measures how long each
// first touch takes, and looks at every word it reads.
//
//   touch FD MIB         FD is the memory file; named /proc/self/fd/FD
//
// Commands on standard input, answered by one line of key=value each:
//   fill PERCENT         every page anew, the first PERCENT of its words incompressible, the others repeat one word
//   pass                 every page in order
//   random N MS PERCENT  N pages at random, for at most MS milliseconds; PERCENT of them are rewritten afterwards
//
//   us          the whole command, verification included          touches     pages
//   faults      touches of pages that were not in this machine's memory just before (mincore(2)); the kernel answers alike for pages that
//               a pager has taken and for pages that were swapped out
//   touch_us    all first touches together                        p50_ns, p99_ns, max_ns     of the faults' touches
//   bad         wrong words
//
// Page p holds in its first word  p << 32 | version  and in word k > 0 a hash of that word and k, or the first word again; versions
// are kept a second time, in memory that is not paged. A torn, stale, lost or swapped page is a wrong word.

#define _GNU_SOURCE
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { page_bytes = 4096, words = page_bytes / 8 };

static uint64_t *memory;
static uint32_t *versions;
static uint32_t *fault_ns;  // as many as there are touches of a command
static uint64_t pages, hashed_words = words;

static struct {
  uint64_t touches, faults, touch_ns, bad;
} seen;

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

static uint64_t word_of(uint64_t first, uint64_t k) {
  const uint64_t x = (first + k * 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
  return x ^ x >> 31;
}

static void make(uint64_t page) {
  uint64_t *at = memory + page * words;
  const uint64_t first = page << 32 | ++versions[page];
  at[0] = first;
  for (uint64_t k = 1; k < hashed_words; ++k) at[k] = word_of(first, k);
  for (uint64_t k = hashed_words; k < words; ++k) at[k] = first;
}

static uint64_t bad_words(uint64_t page) {
  const uint64_t *at = memory + page * words;
  const uint64_t first = page << 32 | versions[page];
  uint64_t bad = at[0] != first;
  for (uint64_t k = 1; k < hashed_words; ++k) bad += at[k] != word_of(first, k);
  for (uint64_t k = hashed_words; k < words; ++k) bad += at[k] != first;
  return bad;
}

static void touch(uint64_t page) {
  volatile uint64_t *at = memory + page * words;
  unsigned char here = 0;
  if (mincore((void *)at, page_bytes, &here) != 0) exit(1);
  const uint64_t begun = now_ns();
  (void)*at;
  const uint64_t took = now_ns() - begun;
  ++seen.touches;
  seen.touch_ns += took;
  if (!(here & 1)) fault_ns[seen.faults++] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
  seen.bad += bad_words(page);
}

static int by_size(const void *a, const void *b) {
  const uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return x < y ? -1 : x > y;
}

// Nearest rank.
static uint64_t percentile(unsigned percent) { return seen.faults == 0 ? 0 : fault_ns[(seen.faults * percent + 99) / 100 - 1]; }

static void report(uint64_t begun) {
  const uint64_t us = (now_ns() - begun) / 1000;
  qsort(fault_ns, seen.faults, sizeof *fault_ns, by_size);
  printf("us=%" PRIu64 " touches=%" PRIu64 " faults=%" PRIu64 " touch_us=%" PRIu64 " p50_ns=%" PRIu64 " p99_ns=%" PRIu64 " max_ns=%" PRIu64 " bad=%" PRIu64 "\n", us,
         seen.touches, seen.faults, seen.touch_ns / 1000, percentile(50), percentile(99), percentile(100), seen.bad);
}

static void fill(uint64_t percent) {
  hashed_words = words * percent / 100;
  for (uint64_t page = 0; page < pages; ++page) make(page);
}

static void pass(void) {
  for (uint64_t page = 0; page < pages; ++page) touch(page);
}

static void random_pages(uint64_t count, uint64_t ms, uint64_t percent_rewritten) {
  static uint64_t state = 88172645463325252u;
  const uint64_t until = now_ns() + ms * 1000000;
  for (uint64_t i = 0; i < count && now_ns() < until; ++i) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    const uint64_t page = (state >> 16) % pages;
    touch(page);
    if ((state & 0xffff) % 100 < percent_rewritten) make(page);
  }
}

int main(int count, char **arguments) {
  if (count != 3) return 2;
  char path[64];
  snprintf(path, sizeof path, "/proc/self/fd/%s", arguments[1]);
  const int file = open(path, O_RDWR | O_CLOEXEC);
  pages = strtoull(arguments[2], NULL, 10) << 8;
  memory = mmap(NULL, pages * page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  const int own = MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE;
  versions = mmap(NULL, pages * sizeof *versions, PROT_READ | PROT_WRITE, own, -1, 0);
  fault_ns = mmap(NULL, pages * sizeof *fault_ns, PROT_READ | PROT_WRITE, own, -1, 0);
  if (file < 0 || memory == MAP_FAILED || versions == MAP_FAILED || fault_ns == MAP_FAILED) return 1;
  // Never swapped out themselves: a fault of theirs would look like one of the memory's.
  if (mlock(versions, pages * sizeof *versions) != 0 || mlock(fault_ns, pages * sizeof *fault_ns) != 0) return 1;
  setvbuf(stdout, NULL, _IOLBF, 0);
  printf("pages=%" PRIu64 "\n", pages);
  char line[100];
  while (fgets(line, sizeof line, stdin) != NULL) {
    uint64_t a = 0, b = 0, c = 0;
    memset(&seen, 0, sizeof seen);
    const uint64_t begun = now_ns();
    if (sscanf(line, "fill %" SCNu64, &a) == 1 && a >= 1 && a <= 100) fill(a);
    else if (sscanf(line, "random %" SCNu64 " %" SCNu64 " %" SCNu64, &a, &b, &c) == 3 && a <= pages) random_pages(a, b, c);
    else if (strcmp(line, "pass\n") == 0) pass();
    else return 2;
    report(begun);
  }
  return 0;
}
