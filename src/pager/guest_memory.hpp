#pragma once
// The memory of another process that has given its faults away (hook/): what the kernel lets a pager do with its pages.
//
//   in the file, mapped    the process reads and writes it without asking
//   in the file, unmapped  its next use is a fault (userfaultfd MINOR)
//   not in the file        its next use is a fault (MISSING); the kernel would have filled in zeros
//
// Sources: Documentation/admin-guide/mm/userfaultfd.rst, Documentation/admin-guide/mm/pagemap.rst, ioctl_userfaultfd(2).

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "os/fd.hpp"
#include "pager/page.hpp"

namespace yado::pager {

/// Whether first writes to pages that are put into view are noticed (see collect_written).
enum class Writes : bool { unnoticed, noticed };

/// Thread-safe for different pages; unmap() also for the same ones. After the process has ended most calls are `not_found`.
class GuestMemory {
 public:
  /// Waits for the hook on the other end of `socket` (SOCK_SEQPACKET) and takes what it hands over; the process waits until go().
  /// Errors: unavailable (it has ended), unsupported (another version), corrupt.
  static Result<GuestMemory> take(os::Fd socket);
  GuestMemory(GuestMemory&&) noexcept;
  GuestMemory& operator=(GuestMemory&&) = delete;
  /// The process ends: its memory is no longer whole.
  ~GuestMemory();

  Status go() const;
  std::uint64_t pages() const;
  int process() const;
  /// POLLHUP: the process has ended.
  int process_fd() const;
  const os::Fd& file() const;  ///< offset = 4096 * page

  /// Readable when there are faults.
  int fault_fd() const;
  /// Pages that somebody waits for; never waits itself. Some may be reported twice, or later than they were resolved.
  Result<std::span<const PageNumber>> faults(std::span<PageNumber> space) const;

  /// Into view, as it lies in the file, and wakes who waits. False: it is not in the file.
  Result<bool> map(PageRun run, Writes writes) const;
  /// Into the file and into view, pages in a row that are not in the file, and wakes who waits.
  Status place(PageNumber first, std::span<const std::byte> contents, Writes writes) const;
  Status wake(const PageRun& pages) const;
  /// Out of view. They stay in the file. Waits for the process's helper thread.
  Status unmap(std::span<const PageRun> pages) const;
  /// Out of the file.
  Status punch(const PageRun& pages) const;
  /// Not through the process's mapping, so without faults; holes read as zeros.
  Status read(PageNumber first, std::span<std::byte> contents) const;

  /// From now on first writes are noticed, to every page in view.
  Status notice_writes() const;
  using Pages = std::function<void(const PageRun&)>;
  /// Pages in view that were written since this was asked last (or since they came into view), and begins anew for these.
  Status collect_written(const Pages& written) const;
  /// The same pages, without beginning anew: costs the process nothing.
  Status see_written(const Pages& written) const;
  /// Of pages that were just unmapped: those that were written in view. Exact only while writes are noticed; then no write is missed, whenever it came.
  Status written_before_unmap(std::span<const PageRun> unmapped, const Pages& written) const;

 private:
  struct State;
  enum class Look : bool { only, and_begin_anew };
  Status written(Look look, const Pages& written) const;
  explicit GuestMemory(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

/// libyado_pages.so as a file without a name, to be preloaded as /proc/self/fd/N.
Result<os::Fd> hook_library();

}  // namespace yado::pager
