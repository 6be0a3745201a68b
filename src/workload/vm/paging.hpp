#pragma once
// A virtual machine whose memory is paged: the pager process beside QEMU (pager/service.hpp), and the share of a checkpoint that is its business.

#include <functional>
#include <string>
#include <vector>

#include "image/page.hpp"
#include "os/process.hpp"
#include "pager/service.hpp"
#include "workload/vm/convergence.hpp"
#include "workload/vm/memory_part.hpp"

namespace yado::vm {

struct Paging {
  std::vector<std::string> program;  ///< `yado pager`: an absolute path and its arguments; the configuration's path is added
  pager::ServiceConfig config;       ///< `control` and `memory_bytes` are filled in
  int network_namespace = -1;        ///< where the memory servers are reached; stays the caller's; -1: the caller's own
};

/// The process. Killed and reaped at destruction; it ends by itself after QEMU.
class PagerProcess {
 public:
  /// begin, then wait_ready. `directory`: of the instance.
  static Result<PagerProcess> start(const Paging& paging, const std::filesystem::path& directory, std::uint64_t memory_bytes);
  /// QEMU may be started from now on: it waits for the pager where it needs it.
  static Result<PagerProcess> begin(const Paging& paging, const std::filesystem::path& directory, std::uint64_t memory_bytes);
  /// Returns when it is connected to all servers and knows where every page is. Errors are the pager's.
  Status wait_ready();
  /// After wait_ready: why it could not keep the memory any more, told once; empty: it did not say so. Does not wait.
  std::string last_words() const;
  /// Of one that was begun with `waits`: it pages by this configuration from now on. Returns as wait_ready.
  Status inherit(pager::ServiceConfig config) const;
  /// What it inherited is its own from now on, or, of what it has left to another host, is so again (pager/service.hpp, `own`).
  Status own(std::uint64_t epoch) const;
  /// What QEMU inherits, and its environment.
  const os::Fd& hook() const { return hook_; }
  const os::Fd& library() const { return library_; }
  /// QEMU has them.
  void let_go();
  /// QEMU has ended: waits until the servers were told so too, for a moment at most.
  void wait_for_end();
  const std::filesystem::path& control() const { return control_; }

 private:
  os::Process process_;
  os::Fd hook_, library_, told_;
  std::filesystem::path control_;
};

/// What one host saved.
struct MemoryShare {
  std::string host;  ///< empty: this one
  std::uint64_t pages = 0, bytes = 0;
  std::string sum;   ///< after keep(): of the manifest of the image that the host made of it
};

/// The memory's part of an image when a pager keeps it: every host saves what it holds, while the guest runs; at the end the guest stands
/// still for what was written last.
class PagedMemory final : public MemoryPart {
 public:
  struct Options {
    std::filesystem::path control;  ///< of the pager
    std::filesystem::path part;     ///< a directory that exists, for this host's share
    std::string name;               ///< of the image; a server calls its share <name>.<host>
    image::CutId cut, base_cut;
    std::string base;               ///< the name of the image of `base_cut`
    std::uint64_t bytes_per_second = 0;  ///< that each host writes at most; 0: as the pager is configured
    /// Told after every round.
    std::function<void(std::uint64_t pages_saved, std::uint64_t left)> progress;
    /// How many bytes the copies of what is written last may take.
    std::function<std::uint64_t()> room_for_copies = half_of_free_memory;
  };
  static std::uint64_t half_of_free_memory();
  explicit PagedMemory(Options options) : options_(std::move(options)) {}

  /// Error no_space: no room for the copies, and the guest cannot be slowed down. A guest that writes too much however slow it is stands still longer.
  Status before_pause(Brake& brake) override;
  Status save(const os::Fd& memory, std::uint64_t bytes) override;
  Status after_pause() override;
  std::string delta_of() const override { return base_cut_.none() ? std::string() : base_cut_.hex(); }
  std::string restored_cut() const override { return options_.cut.none() ? std::string() : options_.cut.hex(); }
  /// Everything else of the image is complete: this cut is the one that later changes are counted from.
  Status keep();
  /// The pager does it, from the image that it was started with.
  Status load(const os::Fd&, std::uint64_t) override { return {}; }

  const std::vector<MemoryShare>& shares() const { return shares_; }
  /// After after_pause(): the base that was wished for, or none: the pager counts its changes from another cut, so all was saved.
  const image::CutId& base_cut() const { return base_cut_; }
  /// What each host wrote at most; 0: no limit.
  std::uint64_t bytes_per_second() const { return bytes_per_second_; }

 private:
  Result<std::string> ask(const std::string& call);
  Status learn_shares(const std::string& call);
  Result<std::uint64_t> slow_down_until_there_is_room(std::uint64_t left, Brake& brake);
  Options options_;
  os::Fd socket_;
  std::string heard_;
  bool rest_at_the_cut_ = false;  ///< there is no room to copy it
  std::vector<MemoryShare> shares_;
  image::CutId base_cut_;
  std::uint64_t bytes_per_second_ = 0;
};

/// The memory's part when another main host goes on with the guest: no file, but the servers' sessions, which that host inherits.
class LeavingMemory final : public MemoryPart {
 public:
  struct Options {
    std::filesystem::path control;  ///< of the pager
    std::filesystem::path part;     ///< a directory that exists, for the order in which pages were in use
    std::string to;                 ///< name of the next main host: what is here is put into its memory server, as far as it has room
    std::function<void(std::uint64_t pages_sent, std::uint64_t left)> progress;
    Convergence::Options rounds = {};
  };
  explicit LeavingMemory(Options options) : options_(std::move(options)) {}

  /// Rounds while the guest runs, until it may stand still for the rest; one that writes faster than pages go is slowed down.
  Status before_pause(Brake& brake) override;
  Status save(const os::Fd& memory, std::uint64_t bytes) override;
  Status load(const os::Fd&, std::uint64_t) override { return {}; }

  /// For people, after save().
  std::string text() const;
  const Convergence& rounds() const { return rounds_; }
  /// What the next pager is to be told (pager::servers_from_text).
  const std::string& servers() const { return servers_; }

 private:
  Options options_;
  os::Fd socket_;
  std::string heard_;
  std::string servers_;
  Convergence rounds_{options_.rounds};
  nanoseconds last_pages_took_{0};
};

/// One call of the pager's (pager/service.hpp), on a connection of its own; the answer's JSON text. For `figures` and `limit`.
Result<std::string> ask_pager(const std::filesystem::path& control, const std::string& call);

/// The memory lies here and on these from now on (pager/service.hpp, `servers`). Returns when they are connected: what is not quite as
/// asked for. Whoever is not named is emptied meanwhile.
Result<std::vector<std::string>> change_memory_servers(const std::filesystem::path& control, std::uint64_t local_bytes,
                                                       const std::vector<pager::ServiceConfig::Server>& servers);
/// Returns when nobody is being emptied any more. Error no_space: somebody could not be.
Status wait_until_drained(const std::filesystem::path& control);
/// In which order pages were used in the first seconds after a cut, as far as they are over, into a file (pager/service.hpp, `used`).
Status write_use(const std::filesystem::path& control, const std::string& cut, const std::filesystem::path& into);

}  // namespace yado::vm
