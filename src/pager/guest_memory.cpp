#include "pager/guest_memory.hpp"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <memory>
#include <mutex>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "pager/hook_protocol.h"

// Linux 6.7, linux/fs.h; Debian 12's headers are of 6.1.
#ifndef PAGEMAP_SCAN
struct page_region {
  __u64 start, end, categories;
};
struct pm_scan_arg {
  __u64 size, flags, start, end, walk_end, vec, vec_len, max_pages, category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#define PM_SCAN_WP_MATCHING (1 << 0)
#define PM_SCAN_CHECK_WPASYNC (1 << 1)
#define PAGE_IS_WRITTEN (1 << 1)
#define PAGE_IS_SWAPPED (1 << 4)
#endif
#ifndef UFFDIO_CONTINUE_MODE_WP
#define UFFDIO_CONTINUE_MODE_WP (1ULL << 1)
#endif

namespace yado::pager {
namespace {

constexpr std::size_t regions_at_once = 1024;

}  // namespace

struct GuestMemory::State {
  os::Fd socket, faults, file, pagemap;
  std::uint64_t address = 0, pages = 0;
  int process = 0;
  std::mutex asking;  ///< one request to the helper thread at a time

  uffdio_range range(PageNumber first, std::uint64_t count) const { return {address + first * page_bytes, count * page_bytes}; }
  PageRun pages_of(const page_region& region) const {
    return {(region.start - address) / page_bytes, static_cast<std::uint32_t>((region.end - region.start) / page_bytes)};
  }

  /// Calls `visit` for what `scan` matches inside the run.
  Status scan(pm_scan_arg scan, const PageRun& run, const Pages& visit) const {
    thread_local std::vector<page_region> regions(regions_at_once);
    scan.size = sizeof scan;
    scan.start = address + run.first * page_bytes;
    scan.end = scan.start + std::uint64_t{run.pages} * page_bytes;
    scan.vec = reinterpret_cast<std::uintptr_t>(regions.data());
    scan.vec_len = regions.size();
    while (scan.start < scan.end) {
      const int found = ::ioctl(pagemap.get(), PAGEMAP_SCAN, &scan);
      if (found < 0 && errno == EINTR) continue;
      if (found < 0) return fail_errno("PAGEMAP_SCAN");
      for (int i = 0; i < found; ++i) visit(pages_of(regions[static_cast<std::size_t>(i)]));
      scan.start = scan.walk_end;
    }
    return {};
  }
};

GuestMemory::GuestMemory(std::unique_ptr<State> state) : state_(std::move(state)) {}
GuestMemory::GuestMemory(GuestMemory&&) noexcept = default;
GuestMemory::~GuestMemory() = default;

Result<GuestMemory> GuestMemory::take(os::Fd socket) {
  yado_pages_hello hello{};
  constexpr std::size_t descriptors = 3;
  alignas(cmsghdr) char control[CMSG_SPACE(descriptors * sizeof(int))];
  iovec data{&hello, sizeof hello};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  const ssize_t n = ::recvmsg(socket.get(), &message, MSG_CMSG_CLOEXEC);
  if (n < 0) return fail_errno("hear the paged process");
  if (n == 0) return fail(Errc::unavailable, "the paged process ended before it handed its memory over");
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  int fds[descriptors] = {-1, -1, -1};
  if (header != nullptr && header->cmsg_type == SCM_RIGHTS)
    std::memcpy(fds, CMSG_DATA(header), std::min(sizeof fds, header->cmsg_len - CMSG_LEN(0)));
  auto state = std::make_unique<State>();
  state->faults = os::Fd(fds[0]);
  state->file = os::Fd(fds[1]);
  state->pagemap = os::Fd(fds[2]);
  if (n != sizeof hello || !state->pagemap.valid()) return fail(Errc::corrupt, "the paged process says something else than HELLO");
  if (hello.version != YADO_PAGES_VERSION)
    return fail(Errc::unsupported, "the hook in the paged process is version {}, this pager needs {}", hello.version, +YADO_PAGES_VERSION);
  if (hello.bytes == 0 || hello.bytes % page_bytes != 0 || hello.address % page_bytes != 0)
    return fail(Errc::corrupt, "a memory of {} bytes at {:#x}", hello.bytes, hello.address);
  state->socket = std::move(socket);
  state->address = hello.address;
  state->pages = hello.bytes / page_bytes;
  state->process = hello.process;
  return GuestMemory(std::move(state));
}

Status GuestMemory::go() const {
  const yado_pages_unmap go{YADO_PAGES_VERSION, 0, {}};
  if (::send(state_->socket.get(), &go, offsetof(yado_pages_unmap, range), MSG_NOSIGNAL) < 0) return fail_errno("let the paged process go on");
  return {};
}

std::uint64_t GuestMemory::pages() const { return state_->pages; }
int GuestMemory::process() const { return state_->process; }
int GuestMemory::process_fd() const { return state_->socket.get(); }
const os::Fd& GuestMemory::file() const { return state_->file; }
int GuestMemory::fault_fd() const { return state_->faults.get(); }

Result<std::span<const PageNumber>> GuestMemory::faults(std::span<PageNumber> space) const {
  thread_local std::vector<uffd_msg> messages(64);
  const std::size_t most = std::min(space.size(), messages.size());
  const ssize_t n = ::read(state_->faults.get(), messages.data(), most * sizeof(uffd_msg));
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return space.first(0);
  if (n < 0) return fail_errno("read faults");
  std::size_t count = 0;
  for (std::size_t i = 0; i < static_cast<std::size_t>(n) / sizeof(uffd_msg); ++i)
    if (messages[i].event == UFFD_EVENT_PAGEFAULT) space[count++] = (messages[i].arg.pagefault.address - state_->address) / page_bytes;
  return space.first(count);
}

Result<bool> GuestMemory::map(PageRun run, Writes writes) const {
  while (run.pages > 0) {
    uffdio_continue call{};
    call.range = state_->range(run.first, run.pages);
    call.mode = writes == Writes::noticed ? UFFDIO_CONTINUE_MODE_WP : 0;
    if (::ioctl(state_->faults.get(), UFFDIO_CONTINUE, &call) == 0) return true;
    const int error = errno;
    std::uint32_t done = call.mapped > 0 ? static_cast<std::uint32_t>(call.mapped / static_cast<std::int64_t>(page_bytes)) : 0;
    if (done == 0 && error == EFAULT) return false;
    if (done == 0 && error == EEXIST) {  // that one is in view
      YADO_TRY(wake({run.first, 1}), "map");
      done = 1;
    } else if (done == 0 && error != EAGAIN) {  // EAGAIN: the address space is changing
      return fail_errno(error, fmt::format("UFFDIO_CONTINUE of page {}", run.first));
    }
    run.first += done;
    run.pages -= done;
  }
  return true;
}

Status GuestMemory::place(PageNumber first, std::span<const std::byte> contents, Writes writes) const {
  while (!contents.empty()) {
    uffdio_copy call{};
    call.dst = state_->address + first * page_bytes;
    call.src = reinterpret_cast<std::uintptr_t>(contents.data());
    call.len = contents.size();
    call.mode = writes == Writes::noticed ? UFFDIO_COPY_MODE_WP : 0;
    if (::ioctl(state_->faults.get(), UFFDIO_COPY, &call) == 0) return {};
    const int error = errno;
    if (call.copy <= 0 && error != EAGAIN) return fail_errno(error, fmt::format("UFFDIO_COPY of page {}", first));
    if (call.copy <= 0) continue;
    first += static_cast<std::uint64_t>(call.copy) / page_bytes;
    contents = contents.subspan(static_cast<std::size_t>(call.copy));
  }
  return {};
}

Status GuestMemory::wake(const PageRun& pages) const {
  uffdio_range range = state_->range(pages.first, pages.pages);
  if (::ioctl(state_->faults.get(), UFFDIO_WAKE, &range) != 0) return fail_errno("UFFDIO_WAKE");
  return {};
}

Status GuestMemory::unmap(std::span<const PageRun> pages) const {
  const std::lock_guard lock(state_->asking);
  while (!pages.empty()) {
    yado_pages_unmap ask{YADO_PAGES_VERSION, 0, {}};
    for (; !pages.empty() && ask.ranges < YADO_PAGES_MOST_RANGES; pages = pages.subspan(1))
      ask.range[ask.ranges++] = {pages.front().first * page_bytes, std::uint64_t{pages.front().pages} * page_bytes};
    const std::size_t bytes = offsetof(yado_pages_unmap, range) + ask.ranges * sizeof(yado_pages_range);
    if (::send(state_->socket.get(), &ask, bytes, MSG_NOSIGNAL) < 0) return fail_errno("ask the paged process to unmap pages");
    yado_pages_done done{};
    ssize_t n;
    do n = ::recv(state_->socket.get(), &done, sizeof done, 0);
    while (n < 0 && errno == EINTR);
    if (n != sizeof done) return fail(Errc::not_found, "the paged process has ended");
    if (done.error != 0) return fail_errno(done.error, "MADV_DONTNEED in the paged process");
  }
  return {};
}

Status GuestMemory::punch(const PageRun& pages) const {
  if (::fallocate(state_->file.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(pages.first * page_bytes),
                  static_cast<off_t>(std::uint64_t{pages.pages} * page_bytes)) != 0)
    return fail_errno("punch pages out of the memory file");
  return {};
}

Status GuestMemory::read(PageNumber first, std::span<std::byte> contents) const {
  while (!contents.empty()) {
    const ssize_t n = ::pread(state_->file.get(), contents.data(), contents.size(), static_cast<off_t>(first * page_bytes));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return fail_errno("read the memory file");
    if (n == 0 || n % page_bytes != 0) return fail(Errc::io, "the memory file ends at page {}", first + static_cast<std::uint64_t>(n) / page_bytes);
    first += static_cast<std::uint64_t>(n) / page_bytes;
    contents = contents.subspan(static_cast<std::size_t>(n));
  }
  return {};
}

Status GuestMemory::notice_writes() const {
  return collect_written([](const PageRun&) {});
}

Status GuestMemory::collect_written(const Pages& written) const { return this->written(Look::and_begin_anew, written); }
Status GuestMemory::see_written(const Pages& written) const { return this->written(Look::only, written); }

Status GuestMemory::written(Look look, const Pages& written) const {
  pm_scan_arg scan{};
  scan.flags = look == Look::only ? 0 : PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC;
  scan.category_mask = PAGE_IS_WRITTEN;
  scan.return_mask = PAGE_IS_WRITTEN;
  // A run has 32 bits for its length.
  constexpr std::uint64_t most = std::uint64_t{1} << 30;
  for (PageNumber first = 0; first < state_->pages; first += most)
    YADO_TRY(state_->scan(scan, {first, static_cast<std::uint32_t>(std::min(most, state_->pages - first))}, written), "written pages");
  return {};
}

/// A page that was write-protected when it went out of view leaves a marker in the page table (pte_install_uffd_wp_if_needed), which
/// PAGEMAP_SCAN shows as swapped and not written; one that was written leaves nothing. So what has no marker was written.
Status GuestMemory::written_before_unmap(std::span<const PageRun> unmapped, const Pages& written) const {
  pm_scan_arg scan{};
  scan.category_inverted = PAGE_IS_WRITTEN;
  scan.category_mask = PAGE_IS_SWAPPED | PAGE_IS_WRITTEN;
  scan.return_mask = PAGE_IS_SWAPPED;
  for (const PageRun& run : unmapped) {
    PageNumber next = run.first;
    const auto until = [&](PageNumber page) {
      if (next < page) written({next, static_cast<std::uint32_t>(page - next)});
    };
    YADO_TRY(state_->scan(scan, run, [&](const PageRun& clean) {
      until(clean.first);
      next = clean.first + clean.pages;
    }), "written pages");
    until(run.first + run.pages);
  }
  return {};
}

}  // namespace yado::pager
