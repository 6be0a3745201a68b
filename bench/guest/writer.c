// The first and only program of a benchmark's guest: fills memory with incompressible words, rewrites a share of them,
// and measures how long it stood still itself. It obeys lines on the serial console and answers in lines of JSON.
//
//   fill                 every page anew
//   start SHARE [RATE]   rewrite the first SHARE percent of the pages in turn, RATE MiB/s (none: as fast as it goes)
//   stop                 rewrite nothing
//   gaps                 {"gaps": …} since the last `gaps`: how long this machine stood still, see below
//   verify               {"verified": …} every word compared; the writer stands still meanwhile, and goes on
//   ping TEXT            {"pong": TEXT} at once: by this a restored guest shows that it runs
//   quit                 power off
//
// Page p holds in its first word  p << 32 | version  and in word k > 0 a hash of that word and k; versions are kept a second
// time, on other pages. A torn, swapped or lost page is a bad word, a page of the past is stale.
//
// Standing still is measured twice, because two clocks are needed for it:
//   longest_us, p99_us, samples   time between two looks at CLOCK_MONOTONIC by a thread that does nothing else. With two
//                  CPUs or more it spins on one of them; with one it is woken every millisecond, before all others.
//   away_us        what CLOCK_MONOTONIC did not see, because it stood still as well (a VM that its monitor stopped): the
//                  CMOS clock, which is the host's, against CLOCK_MONOTONIC since the last `gaps`. To some 0.1 ms; -1: none
// The longest real standstill is at least max(longest_us, away_us) and at most their sum.
//
// Kernel command line: writer.mib=N (default: half of the free memory).

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/rtc.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysinfo.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { page_bytes = 4096, words = page_bytes / 8, batch_pages = 16, sample_us = 1000, us_per_s = 1000000 };

static uint64_t *memory;
static uint32_t *versions;
static uint64_t pages;
static _Atomic uint64_t writes;  // pages written since the start

static uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * us_per_s + (uint64_t)t.tv_nsec / 1000;
}

static void sleep_until_us(uint64_t at) {
  const struct timespec t = {.tv_sec = (time_t)(at / us_per_s), .tv_nsec = (long)(at % us_per_s) * 1000};
  while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR) {}
}

// --- the pattern ----------------------------------------------------------------------------------------

static uint64_t word_of(uint64_t first, uint64_t k) {
  const uint64_t x = (first + k * 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
  return x ^ x >> 31;
}

static void write_page(uint64_t page) {
  uint64_t *at = memory + page * words;
  const uint64_t first = page << 32 | ++versions[page];
  at[0] = first;
  for (uint64_t k = 1; k < words; ++k) at[k] = word_of(first, k);
  atomic_fetch_add_explicit(&writes, 1, memory_order_relaxed);
}

static void fill(void) {
  const uint64_t start = now_us();
  for (uint64_t page = 0; page < pages; ++page) write_page(page);
  printf("{\"filled\": {\"pages\": %" PRIu64 ", \"ms\": %" PRIu64 "}}\n", pages, (now_us() - start) / 1000);
}

static void verify(void) {
  uint64_t bad_words = 0, stale_pages = 0;
  const uint64_t start = now_us();
  for (uint64_t page = 0; page < pages; ++page) {
    const uint64_t *at = memory + page * words;
    const uint64_t first = at[0];
    const uint32_t version = (uint32_t)first;
    if (first >> 32 != page || version > versions[page]) ++bad_words;
    else if (version < versions[page]) ++stale_pages;
    for (uint64_t k = 1; k < words; ++k) bad_words += at[k] != word_of(first, k);
  }
  printf("{\"verified\": {\"pages\": %" PRIu64 ", \"writes\": %" PRIu64 ", \"bad_words\": %" PRIu64 ", \"stale_pages\": %" PRIu64 ", \"ms\": %" PRIu64 "}}\n",
         pages, atomic_load(&writes), bad_words, stale_pages, (now_us() - start) / 1000);
}

// --- the writer: one thread, so that nobody writes what it verifies -----------------------------------------

enum Job { job_none, job_fill, job_verify };

static pthread_mutex_t work_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t work_changed = PTHREAD_COND_INITIALIZER;
static struct Work {
  enum Job job;         // done once, before anything else
  uint64_t pages;       // rewritten in turn; 0: none
  uint64_t bytes_per_s; // 0: as fast as it goes
  uint64_t order;       // counts the changes
} work;  // guarded by work_mutex

static void order_job(enum Job job) {
  pthread_mutex_lock(&work_mutex);
  while (work.job != job_none) pthread_cond_wait(&work_changed, &work_mutex);
  work.job = job;
  pthread_cond_broadcast(&work_changed);
  pthread_mutex_unlock(&work_mutex);
}

static void order_rewriting(uint64_t share_pages, uint64_t bytes_per_s) {
  pthread_mutex_lock(&work_mutex);
  work.pages = share_pages;
  work.bytes_per_s = bytes_per_s;
  ++work.order;
  pthread_cond_broadcast(&work_changed);
  pthread_mutex_unlock(&work_mutex);
}

static struct Work next_work(void) {
  pthread_mutex_lock(&work_mutex);
  while (work.job == job_none && work.pages == 0) pthread_cond_wait(&work_changed, &work_mutex);
  const struct Work found = work;
  pthread_mutex_unlock(&work_mutex);
  return found;
}

static void job_done(void) {
  pthread_mutex_lock(&work_mutex);
  work.job = job_none;
  pthread_cond_broadcast(&work_changed);
  pthread_mutex_unlock(&work_mutex);
}

static void *writer(void *unused) {
  (void)unused;
  uint64_t page = 0, order = 0, begun_us = 0, written_bytes = 0;
  for (;;) {
    const struct Work now = next_work();
    if (now.job != job_none) {
      if (now.job == job_fill) fill();
      else verify();
      job_done();
      continue;
    }
    if (now.order != order) {
      order = now.order;
      begun_us = now_us();
      written_bytes = page = 0;
    }
    for (int i = 0; i < batch_pages; ++i) {
      write_page(page);
      page = (page + 1) % now.pages;
    }
    written_bytes += batch_pages * page_bytes;
    if (now.bytes_per_s) sleep_until_us(begun_us + written_bytes * us_per_s / now.bytes_per_s);
  }
  return NULL;
}

// --- standing still ---------------------------------------------------------------------------------------

// Gaps by their length: a bucket per 1/8 of a power of two, which is exact enough for a percentile.
enum { bucket_bits = 3, buckets = 64 << bucket_bits };
static pthread_mutex_t gap_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct Gaps {
  uint64_t longest_us, samples, by_length[buckets];
} gaps;  // guarded by gap_mutex

static unsigned bucket_of(uint64_t us) {
  if (us < 1u << bucket_bits) return (unsigned)us;
  const unsigned power = 63 - (unsigned)__builtin_clzll(us);
  return (power - bucket_bits + 1) << bucket_bits | (unsigned)(us >> (power - bucket_bits) & ((1u << bucket_bits) - 1));
}

static uint64_t longest_of_bucket(unsigned bucket) {
  if (bucket < 1u << bucket_bits) return bucket;
  const unsigned power = (bucket >> bucket_bits) - 1;
  return ((uint64_t)((bucket & ((1u << bucket_bits) - 1)) | 1u << bucket_bits) + 1) * (1ull << power) - 1;
}

static void note_gap(uint64_t us) {
  pthread_mutex_lock(&gap_mutex);
  if (us > gaps.longest_us) gaps.longest_us = us;
  ++gaps.samples;
  ++gaps.by_length[bucket_of(us)];
  pthread_mutex_unlock(&gap_mutex);
}

static struct Gaps take_gaps(void) {
  pthread_mutex_lock(&gap_mutex);
  const struct Gaps taken = gaps;
  memset(&gaps, 0, sizeof gaps);
  pthread_mutex_unlock(&gap_mutex);
  return taken;
}

static uint64_t percentile_us(const struct Gaps *of, double part) {
  uint64_t seen = 0;
  for (unsigned bucket = 0; bucket < buckets; ++bucket)
    if ((seen += of->by_length[bucket]) >= (double)of->samples * part) {
      const uint64_t most = longest_of_bucket(bucket);
      return most < of->longest_us ? most : of->longest_us;
    }
  return of->longest_us;
}

static void *sampler(void *spin) {
  uint64_t last = now_us();
  for (uint64_t now;; last = now) {
    if (!spin) sleep_until_us(last + sample_us);
    now = now_us();
    note_gap(now - last);
  }
  return NULL;
}

// Waits for the moment when the CMOS clock's second changes; -1: no such clock.
static int64_t next_cmos_second(uint64_t *at_us) {
  const int rtc = open("/dev/rtc0", O_RDONLY | O_CLOEXEC);
  struct rtc_time first, now;
  int64_t seconds = -1;
  if (rtc >= 0 && ioctl(rtc, RTC_RD_TIME, &first) == 0) {
    while (ioctl(rtc, RTC_RD_TIME, &now) == 0 && now.tm_sec == first.tm_sec) {}
    *at_us = now_us();
    struct tm date = {.tm_sec = now.tm_sec, .tm_min = now.tm_min, .tm_hour = now.tm_hour, .tm_mday = now.tm_mday, .tm_mon = now.tm_mon, .tm_year = now.tm_year};
    seconds = timegm(&date);
  }
  if (rtc >= 0) close(rtc);
  return seconds;
}

static void report_gaps(void) {
  static int64_t last_second = -1;
  static uint64_t last_us;
  // Taken before the other clock is asked, which takes up to a second.
  const struct Gaps seen = take_gaps();
  uint64_t at_us = 0;
  const int64_t second = next_cmos_second(&at_us);
  const int64_t away_us = second < 0 ? -1 : last_second < 0 ? 0 : (second - last_second) * us_per_s - (int64_t)(at_us - last_us);
  last_second = second;
  last_us = at_us;
  take_gaps();
  printf("{\"gaps\": {\"longest_us\": %" PRIu64 ", \"p99_us\": %" PRIu64 ", \"samples\": %" PRIu64 ", \"away_us\": %" PRId64 "}}\n", seen.longest_us,
         percentile_us(&seen, 0.99), seen.samples, away_us);
}

// --- once per second: how fast it goes ----------------------------------------------------------------------

static void *reporter(void *unused) {
  (void)unused;
  uint64_t at = now_us(), before = 0;
  for (;;) {
    sleep_until_us(at += us_per_s);
    const uint64_t done = atomic_load(&writes);
    pthread_mutex_lock(&gap_mutex);
    const uint64_t longest = gaps.longest_us;
    pthread_mutex_unlock(&gap_mutex);
    printf("{\"second\": {\"writes\": %" PRIu64 ", \"mib_per_s\": %.1f, \"longest_us\": %" PRIu64 "}}\n", done,
           (double)(done - before) * page_bytes / (1 << 20), longest);
    before = done;
  }
  return NULL;
}

// --- set-up and commands --------------------------------------------------------------------------------------

static void load_modules(void) {
  FILE *order = fopen("/modules/order", "r");
  char name[256], path[300];
  while (order && fscanf(order, "%255s", name) == 1) {
    snprintf(path, sizeof path, "/modules/%s", name);
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || syscall(SYS_finit_module, file, "", 0) != 0) printf("{\"error\": \"module %s: %s\"}\n", name, strerror(errno));
    close(file);
  }
  if (order) fclose(order);
}

// The number after `key` on the kernel's command line.
static uint64_t option(const char *key, uint64_t otherwise) {
  char line[4096] = "";
  const int file = open("/proc/cmdline", O_RDONLY | O_CLOEXEC);
  if (read(file, line, sizeof line - 1) < 0) line[0] = 0;
  close(file);
  const char *at = strstr(line, key);
  return at ? strtoull(at + strlen(key), NULL, 10) : otherwise;
}

static void power_off(const char *why) {
  printf("{\"%s\": \"powers off\"}\n", why);
  sync();
  reboot(RB_POWER_OFF);
}

static void take_memory(void) {
  struct sysinfo info;
  sysinfo(&info);
  pages = option("writer.mib=", (info.freeram * info.mem_unit >> 20) / 2) << 8;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  memory = mmap(NULL, pages * page_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  versions = mmap(NULL, pages * sizeof *versions, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (pages == 0 || memory == MAP_FAILED || versions == MAP_FAILED) {
    printf("{\"error\": \"cannot have %" PRIu64 " pages: %s\"}\n", pages, strerror(errno));
    power_off("error");
  }
  madvise(memory, pages * page_bytes, MADV_NOHUGEPAGE);  // page by page, as a pager sees it
}

static void set_up(void) {
  mkdir("/proc", 0755);
  mkdir("/dev", 0755);
  mount("proc", "/proc", "proc", 0, NULL);
  mount("dev", "/dev", "devtmpfs", 0, NULL);
  setvbuf(stdout, NULL, _IOLBF, 0);
  struct termios terminal;
  tcgetattr(STDIN_FILENO, &terminal);
  terminal.c_lflag &= ~(tcflag_t)ECHO;
  tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
  load_modules();
  take_memory();
}

// Real-time threads come before the writer, and the one with the higher priority before the other.
static void start_thread(void *(*body)(void *), void *argument, int priority, int cpu) {
  pthread_t thread;
  if (pthread_create(&thread, NULL, body, argument) != 0) power_off("error");
  if (priority > 0) pthread_setschedparam(thread, SCHED_FIFO, &(struct sched_param){.sched_priority = priority});
  if (cpu < 0) return;
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(cpu, &one);
  pthread_setaffinity_np(thread, sizeof one, &one);
}

static void start_threads(void) {
  const int cpus = get_nprocs();
  const int control_priority = 1, sample_priority = 2;
  // The kernel otherwise takes 5 % of every second from real-time threads that want all of it.
  const int limit = open("/proc/sys/kernel/sched_rt_runtime_us", O_WRONLY | O_CLOEXEC);
  if (write(limit, "-1", 2) != 2) printf("{\"error\": \"sched_rt_runtime_us\"}\n");
  close(limit);
  start_thread(writer, NULL, 0, cpus > 1 ? 0 : -1);
  if (cpus > 1) start_thread(sampler, &memory, 0, cpus - 1);  // alone there
  else start_thread(sampler, NULL, sample_priority, -1);
  start_thread(reporter, NULL, control_priority, 0);
  pthread_setschedparam(pthread_self(), SCHED_FIFO, &(struct sched_param){.sched_priority = control_priority});
  cpu_set_t first;
  CPU_ZERO(&first);
  CPU_SET(0, &first);
  sched_setaffinity(0, sizeof first, &first);
}

static void obey(char *line) {
  line[strcspn(line, "\r\n")] = 0;
  uint64_t share = 0, mib_per_s = 0;
  char text[64];
  if (strcmp(line, "fill") == 0) order_job(job_fill);
  else if (strcmp(line, "verify") == 0) order_job(job_verify);
  else if (strcmp(line, "gaps") == 0) report_gaps();
  else if (strcmp(line, "quit") == 0) power_off("quit");
  else if (sscanf(line, "ping %63[a-zA-Z0-9-]", text) == 1) printf("{\"pong\": \"%s\"}\n", text);
  else if (strcmp(line, "stop") == 0) {
    order_rewriting(0, 0);
    printf("{\"stopped\": {\"writes\": %" PRIu64 "}}\n", atomic_load(&writes));
  } else if (sscanf(line, "start %" SCNu64 " %" SCNu64, &share, &mib_per_s) >= 1 && share <= 100) {
    order_rewriting(pages * share / 100, mib_per_s << 20);
    printf("{\"started\": {\"pages\": %" PRIu64 ", \"mib_per_s\": %" PRIu64 "}}\n", pages * share / 100, mib_per_s);
  } else if (line[0] != 0) printf("{\"error\": \"no such command\"}\n");
}

int main(void) {
  set_up();
  start_threads();
  printf("{\"up\": {\"pages\": %" PRIu64 ", \"cpus\": %d}}\n", pages, get_nprocs());
  char line[256];
  while (fgets(line, sizeof line, stdin)) obey(line);
  power_off("end");
}
