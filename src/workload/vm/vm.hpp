#pragma once
// One virtual machine: a QEMU process of our own (stock, unmodified), in one cgroup.
//
//   owner (supervisor)                              QEMU
//     monitor()   ◀── QMP: events, the end ──────── monitor        connected socket, inherited
//     console()   ◀── serial port ─────────────────  console        connected socket, inherited
//     memory()    ─── shared file without a name ──  -object memory-backend-file
//     process()   ◀── pidfd
//   <directory>/control  ◀── QMP, one client at a time: whoever saves (perhaps a forked child)
//   <directory>/agent    ─── the agent in the guest, if there is one: whoever asks it (guest_agent.hpp)
//   <directory>/disk-N.qcow2, disk-N.K.qcow2    what the instance wrote to its N-th disk (disk.hpp)
//
// All calls block, each answer of QEMU at most Qemu::limit. The object belongs to one thread, the one that started or
// restored it: the kernel kills QEMU when that thread ends (prctl(2) PR_SET_PDEATHSIG). Destruction kills QEMU and
// releases cgroup, tap and memory; the directory stays, with the disks.

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "os/cgroup.hpp"
#include "os/pidfd.hpp"
#include "workload/vm/console.hpp"
#include "workload/vm/guest_agent.hpp"
#include "workload/vm/memory_part.hpp"
#include "workload/vm/qmp.hpp"
#include "workload/vm/spec.hpp"

namespace yado::vm {

/// Where the parts of an image are, and what its manifest keeps for this driver.
struct ImageParts {
  std::filesystem::path device_state;  ///< a directory
  std::filesystem::path disk;          ///< a directory
  std::map<std::string, std::string> properties;
  std::vector<std::filesystem::path> ahead = {};  ///< directories with layers of its disks that lie below those in `disk`, the oldest first (Vm::seal)
};

struct Saved {
  std::map<std::string, std::string> properties;
  std::chrono::microseconds pause{0};  ///< from STOP to RESUME by QEMU's clock; 0: it stood still already
  std::uint64_t device_state_bytes = 0;
  std::uint64_t disk_bytes = 0;  ///< of layers that were copied
  std::vector<std::string> disks_since = {};  ///< by disk, the first layer that the image does not have (Vm::kept)
  bool disks_are_delta = false;               ///< what was copied lies on the disks of the image that the memory is a delta of
  bool not_yet = false;       ///< it runs on, nothing was saved: DisksAhead::most_bytes
  bool disks_frozen = false;  ///< by the guest's agent, at the cut: so they are in the image, and the guest that is restored waits for a thaw
};

/// What whoever goes on with a guest has of its disks already, by Vm::seal.
struct DisksAhead {
  std::vector<std::filesystem::path> directories;  ///< the oldest first
  std::uint64_t most_bytes = ~std::uint64_t{0};    ///< if it has written more than that since, it is not stopped
};

/// How it ended.
struct End {
  os::ExitStatus status;
  std::string reason;  ///< for people: "the guest powered off", "the guest panicked", or QEMU's last words
};

struct VmUse {
  os::CgroupUse qemu;
  std::uint64_t guest_bytes = 0;  ///< of the guest's memory that take room
};

enum class Begin { running, paused };
enum class After { as_before, paused };

class Vm {
 public:
  Vm(Vm&&) noexcept;
  Vm& operator=(Vm&&) noexcept;
  ~Vm();

  /// Returns when QEMU has set everything up; `running`: the firmware begins. Overlays that are in the directory are
  /// used again. Errors: `invalid_argument` and `not_found` for the spec, `unsupported` for a QEMU older than 7.2,
  /// `application` with QEMU's words.
  static Result<Vm> start(const VmSpec& spec, const Place& place, const Qemu& qemu, Begin begin = Begin::running);
  /// The guest goes on where it stood when it was saved, on overlays of its own. Needs the accelerator of the save.
  /// Errors: those of `start`, `conflict` when the directory holds disks, `corrupt` for an image that is not of this
  /// spec or lacks something. A memory that is inherited is only read until the guest runs: `paused`, until own_memory().
  static Result<Vm> restore(const VmSpec& spec, const Place& place, const Qemu& qemu, const ImageParts& image,
                            MemoryPart& memory, Begin begin = Begin::running);

  /// A guest of this spec is to come from another main host: QEMU stands ready beside a pager that waits (pager::ServiceConfig::waits), which is
  /// most of what a restore takes. `ahead`: what came of its disks already, as in ImageParts. Errors: those of `start`; `unsupported` without a pager.
  static Result<Vm> expect(const VmSpec& spec, const Place& place, const Qemu& qemu, const std::vector<std::filesystem::path>& ahead = {});
  /// Whether what came can go on in this one, which was expected: the same machine and accelerator, the same that came ahead, up to two layers of each disk
  /// besides. Nothing is changed.
  Status suits(const ImageParts& image) const;
  /// It goes on where it stood: as `restore`, in what was expected. `heritage`: what the pager is to inherit. Errors: those of suits() and of restore.
  Status go_on(const ImageParts& image, const pager::ServiceConfig& heritage, Begin begin = Begin::running);

  /// Writes devices, memory and disks of one instant into the two directories and `memory`. The guest stands still for
  /// devices and memory; disks are copied when it goes on. An agent in the guest has its file systems written out and at rest for the
  /// moment of the cut (not with After::paused); when it cannot, the image is as without one. Also after an error it is as it was before, running or paused. May run in a forked child of
  /// the owner; if that is killed half-way, `resume` brings the guest back. Errors: `no_space`, `timed_out`
  /// (also when somebody else saves for so long), `conflict` for a paused guest that was saved since it last ran (QEMU
  /// migrates it once only), `application` when QEMU has ended.
  /// `after`: paused, it stands still after a success, until resume(); somebody else may go on with it.
  /// `ahead`, for somebody else: these layers are left out. `conflict`: they were merged since.
  Result<Saved> save(const std::filesystem::path& device_state, const std::filesystem::path& disk, MemoryPart& memory, After after = After::as_before,
                     const DisksAhead& ahead = {}) const;
  /// An image that `save` made of the guest's disks and a paged memory was kept, and its memory's cut is called `cut`: what it has of the disks is left out where
  /// the next one is a delta of it. May run in a forked child of the owner, and not run at all: then the next image has all of the disks.
  Status kept(const Saved& saved, const std::string& cut) const;
  /// Copies what the guest has written to its disks so far, but for what is in the directories `ahead`, while it runs: whoever is to go on with it has
  /// it before the guest stands still. Without `ahead` layers that earlier saves and moves left are merged first. The guest must run. Returns how many bytes.
  /// Errors: `no_space`, `timed_out`, `conflict`. May run in a forked child of the owner.
  Result<std::uint64_t> seal(const std::filesystem::path& disk, const std::vector<std::filesystem::path>& ahead = {}) const;

  /// Whether an agent in the guest has its port open. Asks QEMU, not the guest.
  Result<bool> has_agent();
  /// A connection to it. Not for `save`'s time, which has one of its own. `unavailable`: there is none, or it hangs.
  /// May run in a forked child of the owner.
  Result<GuestAgent> agent(nanoseconds limit) const;
  /// The same without a question to the guest.
  Result<os::Fd> connect_agent() const;

  /// In front of resume(), where another main host may want the same memory: of a guest that was restored `paused` from what such a host left, and of one that
  /// was saved to be gone on with elsewhere. Without a pager, or when nobody else can want it, nothing. Error `not_owner`: another one may have run.
  Status own_memory(std::uint64_t epoch);
  Status pause();
  Status resume();
  /// QEMU's word for it: "running", "paused", …
  Result<std::string> run_state();
  /// What QEMU has said since the last call; never waits. Error `application`: QEMU has ended (see reap).
  Result<std::vector<QmpEvent>> take_events();
  /// By what was taken so far: QEMU stopped the guest because a disk's file could not grow. It goes on by resume(), and stops again if there is no room still.
  bool stands_for_room() const;
  /// Asks by the power button, more than once, and waits for `grace`, then has QEMU quit, then kills it. A paused guest cannot hear.
  Result<End> stop(nanoseconds grace);
  /// The end, when there is one.
  Result<std::optional<End>> reap();
  Result<VmUse> stats() const;

  /// Readable when there are events, or the end.
  int monitor_fd() const;
  Console& console();
  /// Readable when QEMU has ended.
  const os::Pidfd& process() const;
  /// The guest's memory; offset = RAM offset.
  const os::Fd& memory() const;
  const os::Cgroup& cgroup() const;
  const Qemu& qemu() const;
  QemuVersion version() const;
  /// The tap in the place's network namespace; empty: no network card.
  const std::string& tap() const;
  /// Where its pager answers (paging.hpp); empty: its memory is not paged.
  std::filesystem::path pager() const;
  std::uint64_t memory_bytes() const;  ///< of the guest

 private:
  struct State;
  explicit Vm(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace yado::vm
