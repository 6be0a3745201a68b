#pragma once
// What a supervisor needs of any kind of workload: the verbs that every driver has.
//
// All calls block. An Instance belongs to one thread, the one that started or restored it, which is the parent of its
// processes. Destruction kills it and releases what it held; its directory stays.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "os/cgroup.hpp"
#include "os/pidfd.hpp"

namespace yado::workload {

/// The directories of an image's parts (absolute paths), by name.
using PartDirectories = std::map<std::string, std::string>;
/// What an image's manifest keeps for the driver.
using Properties = std::map<std::string, std::string>;

struct ImageParts {
  PartDirectories directories;
  Properties properties;
};

/// What becomes of a checkpoint, for hosts that save a share of it: they make images, too.
struct NewImage {
  std::string name;
  std::string base;      ///< the image that it may be a delta of; empty: none
  std::string base_cut;  ///< the instant of that, in hex
  std::uint64_t bytes_per_second = 0;  ///< that each host writes at most; 0: as its spec says
};

/// How an instance is left to another host.
struct Handover {
  std::string to;                   ///< that host
  bool disks_only = false;          ///< only what it has written to its disks so far, for that host to have before the rest comes: it runs on
  std::vector<std::string> ahead;   ///< directories of disks that went there like this, the oldest first: the rest goes without them
  std::uint64_t most_disk_bytes = 0;  ///< if it has written more than that since, it runs on, and the answer is `not_yet_property`; 0: any
};
/// Says for people why it was not handed over yet.
inline constexpr const char* not_yet_property = "not_yet";

struct ExecIo {
  int input = -1;  ///< -1: /dev/null
  int output = -1;
  int error = -1;
};

/// When a start-up was seen to be complete, since the call.
struct StartupTimes {
  nanoseconds listening{0};
  nanoseconds settled{0};
};

class Instance {
 public:
  virtual ~Instance() = default;

  /// Readable when it has ended.
  virtual const os::Pidfd& process() const = 0;
  /// Reaps it when it has ended.
  virtual Result<std::optional<os::ExitStatus>> reap() = 0;
  /// After that, for people: more than its status says; empty: nothing.
  virtual std::string why_ended() const { return {}; }
  /// What it writes for people: its standard output or its console. The descriptor is for poll(2).
  virtual int output_fd() const = 0;
  /// What has come since, at most some MiB; empty: nothing yet. None: it will write no more.
  virtual std::optional<std::string> read_output() = 0;

  /// Readable when there may be news of it beside its output; -1: there never are.
  virtual int news_fd() const { return -1; }
  /// Takes them in. True while it stands still because its host's disk is full: nobody tells when there is room again, so try_again() now and then.
  virtual bool stands_for_room() { return false; }
  virtual Status try_again() { return {}; }

  /// Types it at its console: how much of it was taken; 0 of nothing where there is a console. What is left may be tried again when output_fd()
  /// can be written to.
  virtual Result<std::size_t> type(std::string_view) { return fail(Errc::unsupported, "only a VM has a console; into a container leads exec"); }

  /// The workload's right to run is this instance's under `epoch`, before it is thawed for it. An error: somebody else may have gone on with it, so that it
  /// must stay frozen.
  virtual Status granted(std::uint64_t /*epoch*/) { return {}; }
  virtual Status freeze() = 0;
  /// `running` is called as soon as the instance can answer; the call itself may return a little later.
  virtual Status thaw(const std::function<void()>& running = {}) = 0;
  /// To the first process.
  virtual Status signal(int number) = 0;
  /// Asks it to end, and kills it after `grace`. A frozen one is killed at once: it cannot hear.
  virtual Result<os::ExitStatus> stop(nanoseconds grace) = 0;
  /// At once, without waiting for the end.
  virtual Status kill() = 0;
  virtual Result<os::CgroupUse> stats() const = 0;
  /// Where its memory is, when several hosts keep it: a JSON object.
  virtual Result<std::string> memory() const { return fail(Errc::unsupported, "all of its memory is on this host"); }

  // These run in a forked child of the owner.

  /// Writes one instant into the directories and returns the properties that a restore wants back. Whatever the
  /// result, the instance may stand frozen afterwards: thaw or stop it.
  virtual Result<Properties> checkpoint(const PartDirectories& parts, const NewImage& image) const = 0;
  /// For another host to go on with: like a checkpoint, but what can be given to others while it runs is, and after a success it stands still
  /// until it is thawed. The properties say what the other host needs besides the directories.
  virtual Result<Properties> hand_over(const PartDirectories&, const Handover&) const {
    return fail(Errc::unsupported, "only a VM with split memory is moved while it runs");
  }
  /// It goes on running while its checkpoint is taken, but for a moment.
  virtual bool runs_during_checkpoint() const { return false; }
  /// Its memory lies here and on the hosts of `split` from now on. Returns when it does: what is not quite as asked for.
  virtual Result<std::string> resplit(const Split& /*split*/) const { return fail(Errc::unsupported, "all of its memory is on this host"); }
  /// In which order its memory was used in the first seconds after `cut` of a checkpoint, as far as they are over: into a file, for restores.
  virtual Status used(const std::string& /*cut*/, const std::filesystem::path& /*into*/) const { return fail(Errc::unsupported, "nobody sees how it uses its memory"); }
  /// Runs a program inside and waits for it.
  virtual Result<os::ExitStatus> exec(const std::vector<std::string>& command, const ExecIo& io) const = 0;
  /// Returns when the start-up is complete, as seen from outside. `already`: how long it has been running.
  virtual Result<StartupTimes> wait_startup(nanoseconds already, nanoseconds limit) const = 0;
};

/// Makes the instance of one place.
class Driver {
 public:
  virtual ~Driver() = default;
  /// Returns when the program runs.
  virtual Result<std::unique_ptr<Instance>> start() = 0;
  /// `frozen`: not one instruction of it has run when this returns.
  virtual Result<std::unique_ptr<Instance>> restore(const ImageParts& image, bool frozen) = 0;
  /// An instance of it will come from another host (hand_over there): what does not depend on that is made ready, for a restore() by this driver
  /// or by one that took it over. `disks_ahead`: as Handover::ahead. Gone with the driver. `unsupported`: nothing can be.
  virtual Status expect(const std::vector<std::string>& /*disks_ahead*/) { return fail(Errc::unsupported, "nothing of it can be made ready beforehand"); }
  virtual void take_over(Driver&) {}
  /// `unsupported`, with what to do, where checkpoints cannot be made or used.
  virtual Status can_checkpoint() const = 0;
};

}  // namespace yado::workload
