/* What the hook in the paged process and the pager say to each other, over one connected unix socket (SOCK_SEQPACKET). Both are of one
 * build and on one machine, so structs go as they are; the version says when they are not.
 *
 *     paged process (QEMU)                          pager
 *       mmap of the memory ──── HELLO + 3 fds ────▶   takes the faults from now on
 *                          ◀──── GO ─────────────
 *       ... runs ...       ◀──── UNMAP ranges ────   one at a time
 *                          ───── DONE result ────▶
 *       ends at once       ◀──── (end of file) ──    without the pager its memory is not whole
 */
#pragma once

#include <stdint.h>

enum { YADO_PAGES_VERSION = 1, YADO_PAGES_MOST_RANGES = 256 };

/* Of the hook: userfaultfd, the memory file, its /proc/self/pagemap come with it, in this order. */
struct yado_pages_hello {
  uint32_t version;
  int32_t process;
  uint64_t address; /* where the memory is mapped */
  uint64_t bytes;
};

struct yado_pages_range {
  uint64_t offset, bytes;
};

/* Of the pager: GO is one without ranges. */
struct yado_pages_unmap {
  uint32_t version;
  uint32_t ranges;
  struct yado_pages_range range[YADO_PAGES_MOST_RANGES]; /* only `ranges` of them are sent */
};

/* Of the hook. */
struct yado_pages_done {
  int32_t error; /* errno, or 0 */
};
