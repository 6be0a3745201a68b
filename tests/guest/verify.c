// The first and only program of a test guest: keeps a pattern in memory under which a stale, lost, torn or swapped
// page shows, and obeys one-letter commands on the serial console.
//
// Page p holds in its first word  p << 32 | version  and in word k > 0 a hash of that first word and k. How often page
// p was written is kept a second time in a table, on other pages. So every single word is checked:
//   bad words     a word that does not follow from its page's number and version (swapped, torn, overwritten)
//   lost counts   versions by which pages are behind the table (stale: a page of the past)
// and, where there is a disk, its first sector against what was last written there (disk and memory of one instant).
//
//   f  fill anew      i  idle        w  write random pages     h  write random pages of the hot set
//   v  verify once    r  read random pages                     d  as w, and a disk write first and every 64 pages
//   s  say how it is  p  panic       q  power off (so does the power button)
//   A thread per processor works; each writes pages of its own, and they lie beside each other.
//   c  compare clocks: since the last c, how long this machine stood still. Its own clocks stand still with it; the
//      CMOS clock is the host's. To some 0.1 ms, and takes up to a second (the CMOS clock counts whole ones)
//
// Kernel command line: verify.mib=N (default: half of the free memory), verify.hot=PERCENT (default 10).

#define _GNU_SOURCE  // O_DIRECT
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/input.h>
#include <linux/rtc.h>
#include <poll.h>
#include <pthread.h>
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

enum { page_bytes = 4096, words = page_bytes / 8, batch = 16, disk_every = 64, sector_bytes = 512 };

static uint64_t *memory;    // pages of the pattern
static uint32_t *versions;  // how often each was written
static uint64_t pages, hot_pages;
static _Atomic uint64_t writes;  // since the start
static int disk = -1, button = -1;
static uint64_t disk_record;  // what the first sector says; 0: nothing written yet

static uint64_t longest_gap_us, last_look_us;

static uint64_t now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

// The longest time between two looks at the clock is the longest time this program stood still.
static void look_at_clock(void) {
  const uint64_t now = now_us();
  if (last_look_us && now - last_look_us > longest_gap_us) longest_gap_us = now - last_look_us;
  last_look_us = now;
}

static _Thread_local unsigned worker;  // 0: the one that hears commands
static unsigned workers = 1;

static uint64_t random_number(void) {  // xorshift64
  static _Thread_local uint64_t state;
  if (state == 0) state = 88172645463325252u + worker;
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}

static uint64_t word_of(uint64_t first, uint64_t k) {
  const uint64_t x = (first + k * 0x9E3779B97F4A7C15u) * 0xBF58476D1CE4E5B9u;
  return x ^ x >> 31;
}

static void write_page(uint64_t page) {
  uint64_t *at = memory + page * words;
  const uint64_t first = page << 32 | ++versions[page];
  at[0] = first;
  for (uint64_t k = 1; k < words; ++k) at[k] = word_of(first, k);
  ++writes;
}

struct Verdict {
  uint64_t bad_words, stale_pages, lost_counts;
};

static void check_page(uint64_t page, struct Verdict *verdict) {
  const uint64_t *at = memory + page * words;
  const uint64_t first = at[0];
  const uint32_t version = (uint32_t)first;
  if (first >> 32 != page || version > versions[page]) ++verdict->bad_words;
  for (uint64_t k = 1; k < words; ++k)
    if (at[k] != word_of(first, k)) ++verdict->bad_words;
  if (first >> 32 == page && version < versions[page]) {
    ++verdict->stale_pages;
    verdict->lost_counts += versions[page] - version;
  }
}

static void fill(void) {
  const uint64_t start = now_us();
  for (uint64_t page = 0; page < pages; ++page) {
    write_page(page);
    look_at_clock();
  }
  printf("GUEST filled pages=%" PRIu64 " ms=%" PRIu64 "\n", pages, (now_us() - start) / 1000);
}

static uint64_t *sector(void) {
  static uint64_t buffer[sector_bytes / 8] __attribute__((aligned(sector_bytes)));
  return buffer;
}

static void write_disk(void) {
  if (disk < 0) return;
  memset(sector(), 0, sector_bytes);
  sector()[0] = disk_record + 1;
  if (pwrite(disk, sector(), sector_bytes, 0) == sector_bytes) ++disk_record;
  else printf("GUEST disk error: %s\n", strerror(errno));
}

static const char *disk_verdict(void) {
  if (disk < 0) return "none";
  if (disk_record == 0) return "unused";
  if (pread(disk, sector(), sector_bytes, 0) != sector_bytes) return "unreadable";
  return sector()[0] == disk_record ? "same" : "differs";
}

static void verify(void) {
  struct Verdict verdict = {0};
  const uint64_t start = now_us();
  for (uint64_t page = 0; page < pages; ++page) {
    check_page(page, &verdict);
    look_at_clock();
  }
  printf("GUEST verified pages=%" PRIu64 " writes=%" PRIu64 " bad_words=%" PRIu64 " stale_pages=%" PRIu64
         " lost_counts=%" PRIu64 " disk=%s longest_gap_us=%" PRIu64 " ms=%" PRIu64 "\n",
         pages, writes, verdict.bad_words, verdict.stale_pages, verdict.lost_counts, disk_verdict(), longest_gap_us,
         (now_us() - start) / 1000);
  longest_gap_us = 0;
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

static void compare_clocks(void) {
  static int64_t last_second = -1;
  static uint64_t last_us;
  uint64_t at_us = 0;
  const int64_t second = next_cmos_second(&at_us);
  if (second < 0) printf("GUEST has no CMOS clock\n");
  else printf("GUEST clocks away_us=%" PRId64 "\n", last_second < 0 ? 0 : (second - last_second) * 1000000 - (int64_t)(at_us - last_us));
  last_second = second;
  last_us = at_us;
}

static void power_off(void) {
  printf("GUEST powers off\n");
  sync();
  reboot(RB_POWER_OFF);
}

static void panic(void) {
  const int trigger = open("/proc/sysrq-trigger", O_WRONLY);
  if (trigger < 0 || write(trigger, "c", 1) != 1) printf("GUEST cannot panic: %s\n", strerror(errno));
}

// One round of what the mode wants. Short, so that commands are heard.
static void work(char mode) {
  struct Verdict seen = {0};
  for (int i = 0; i < batch; ++i) {
    uint64_t page = random_number() % (mode == 'h' ? hot_pages : pages);
    page -= page % workers;
    page = page + worker < pages ? page + worker : worker;
    if (mode == 'r') check_page(page, &seen);
    else write_page(page);
    if (worker > 0) continue;
    look_at_clock();
    if (mode == 'd' && writes % disk_every == 0) write_disk();
  }
  if (seen.bad_words || seen.lost_counts)
    printf("GUEST read bad_words=%" PRIu64 " lost_counts=%" PRIu64 "\n", seen.bad_words, seen.lost_counts);
}

// ---- the workers beside the one that hears commands ----

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static char mode = 'i';       // written under guard, by the first thread, which reads it without
static unsigned working = 0;  // under guard: others in a round

static void *worker_main(void *number) {
  worker = (unsigned)(uintptr_t)number;
  pthread_mutex_lock(&guard);
  for (;;) {
    while (mode == 'i') pthread_cond_wait(&changed, &guard);
    const char now = mode;
    ++working;
    pthread_mutex_unlock(&guard);
    work(now);
    pthread_mutex_lock(&guard);
    if (--working == 0) pthread_cond_broadcast(&changed);
  }
  return NULL;
}

// Nobody else is at work when it returns from `i`.
static void set_mode(char next) {
  pthread_mutex_lock(&guard);
  mode = next;
  pthread_cond_broadcast(&changed);
  while (mode == 'i' && working > 0) pthread_cond_wait(&changed, &guard);
  pthread_mutex_unlock(&guard);
}

static void start_workers(void) {
  const long processors = sysconf(_SC_NPROCESSORS_ONLN);
  for (long i = 1; i < processors; ++i) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, worker_main, (void *)(uintptr_t)i) != 0) break;
    ++workers;
  }
}

static bool button_pressed(void) {
  struct input_event event;
  return button >= 0 && read(button, &event, sizeof event) == sizeof event && event.type == EV_KEY && event.code == KEY_POWER;
}

// Waits when there is nothing else to do.
static char next_command(bool wait) {
  struct pollfd wanted[] = {{STDIN_FILENO, POLLIN, 0}, {button, POLLIN, 0}};
  if (poll(wanted, 2, wait ? 500 : 0) <= 0) return 0;
  if (wanted[1].revents && button_pressed()) return 'q';
  char letter = 0;
  return (wanted[0].revents & POLLIN) && read(STDIN_FILENO, &letter, 1) == 1 ? letter : 0;
}

static void load_modules(void) {
  FILE *order = fopen("/modules/order", "r");
  char name[256], path[300];
  while (order && fscanf(order, "%255s", name) == 1) {
    snprintf(path, sizeof path, "/modules/%s", name);
    const int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || syscall(SYS_finit_module, file, "", 0) != 0) printf("GUEST module %s: %s\n", name, strerror(errno));
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

static void find_devices(void) {
  disk = open("/dev/vda", O_RDWR | O_DIRECT | O_SYNC | O_CLOEXEC);
  char path[300];
  DIR *inputs = opendir("/dev/input");
  for (struct dirent *entry; inputs && button < 0 && (entry = readdir(inputs));) {
    unsigned char keys[KEY_MAX / 8 + 1] = {0};
    snprintf(path, sizeof path, "/dev/input/%s", entry->d_name);
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd >= 0 && ioctl(fd, EVIOCGBIT(EV_KEY, sizeof keys), keys) > 0 && (keys[KEY_POWER / 8] >> KEY_POWER % 8 & 1)) button = fd;
    else if (fd >= 0) close(fd);
  }
  if (inputs) closedir(inputs);
}

static void set_up(void) {
  mkdir("/proc", 0755);
  mkdir("/dev", 0755);
  mount("proc", "/proc", "proc", 0, NULL);
  mount("dev", "/dev", "devtmpfs", 0, NULL);
  setvbuf(stdout, NULL, _IOLBF, 0);
  struct termios terminal;
  tcgetattr(STDIN_FILENO, &terminal);
  terminal.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
  tcsetattr(STDIN_FILENO, TCSANOW, &terminal);
  load_modules();
  find_devices();

  struct sysinfo info;
  sysinfo(&info);
  const uint64_t free_mib = info.freeram * info.mem_unit >> 20;
  pages = option("verify.mib=", free_mib / 2) << 8;
  hot_pages = pages * option("verify.hot=", 10) / 100;
  if (hot_pages == 0) hot_pages = 1;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  memory = mmap(NULL, pages * page_bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  versions = mmap(NULL, pages * sizeof *versions, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (memory == MAP_FAILED || versions == MAP_FAILED) {
    printf("GUEST cannot have %" PRIu64 " pages: %s\n", pages, strerror(errno));
    reboot(RB_POWER_OFF);
  }
  madvise(memory, pages * page_bytes, MADV_NOHUGEPAGE);  // page by page, as the pager sees it
}

int main(void) {
  set_up();
  if (disk >= 0 && pread(disk, sector(), sector_bytes, 0) == sector_bytes) disk_record = sector()[0];
  printf("GUEST up pages=%" PRIu64 " disk=%s disk_record=%" PRIu64 " button=%s\n", pages, disk < 0 ? "none" : "yes", disk_record,
         button < 0 ? "none" : "yes");
  fill();
  start_workers();
  for (;;) {
    const bool idle = mode == 'i';
    const char command = next_command(idle);
    if (idle) last_look_us = 0;  // waiting is not standing still
    look_at_clock();
    switch (command) {
      case 'f': set_mode('i'); fill(); break;
      case 'v': set_mode('i'); verify(); break;
      case 's': printf("GUEST is mode=%c writes=%" PRIu64 " disk_record=%" PRIu64 " longest_gap_us=%" PRIu64 "\n", mode, writes, disk_record, longest_gap_us); break;
      case 'c': compare_clocks(); last_look_us = 0; break;
      case 'p': panic(); break;
      case 'q': power_off(); break;
      case 'i': case 'w': case 'h': case 'r': case 'd':
        if (command == 'd') write_disk();
        set_mode(command);
        printf("GUEST mode %c\n", mode);
    }
    if (mode != 'i') work(mode);
  }
}
