#pragma once
// One container: processes in namespaces of their own, on an overlay of their root file system, in one cgroup.
//
//   <directory>/lower      the root file system given, idmapped, read-only by use
//   <directory>/rw/upper   what the instance wrote (the `disk` part of an image), rw/work for overlayfs
//   <directory>/rw-mapped  the same, idmapped: what the overlay is made of
//   <directory>/root       the overlay of the two: "/" of the container
//   <directory>/mounts/N   the bind mounts of the spec, idmapped where the file system can
//   <directory>/work       CRIU's logs
//
// Mounts are made in the mount namespace of the caller, who has one of his own (os::enter_private_mounts): they die
// with him. All calls block; the object belongs to one thread, the one that started or restored it (the kernel kills
// the container when that *thread* ends, prctl(2) PR_SET_PDEATHSIG), and that thread is the parent of its processes.
// Destruction kills every process and releases mounts and cgroup; the directory stays.

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "model/workload.hpp"
#include "os/cgroup.hpp"
#include "os/pidfd.hpp"
#include "workload/container/criu.hpp"
#include "workload/instance.hpp"

namespace yado::container {

/// What the agent prepared for one instance.
struct Place {
  std::filesystem::path directory;  ///< exists; absolute; without ',' and ':' (overlayfs separates by them)
  std::filesystem::path root;       ///< a directory (prepare_root.hpp makes one of a tar); shared, never written
  std::string cgroup;               ///< relative name, "yado/site.4"
  std::string host_name;            ///< seen inside
  std::uint16_t port = 0;           ///< the service's port inside; 0: none (see thaw_order.hpp for what it is knocked on)
  int network_namespace = -1;       ///< stays the caller's; -1: the caller's own network
  std::uint32_t id_base = 100'000;  ///< id 0 inside is this id outside; 65536 ids are taken
};

/// Where the parts of an image are, and what its manifest keeps for this driver.
struct ImageParts {
  std::filesystem::path criu;
  std::filesystem::path disk;
  std::map<std::string, std::string> properties;
};

using workload::ExecIo;

class Container {
 public:
  Container(Container&&) noexcept;
  Container& operator=(Container&&) noexcept;
  ~Container();

  /// Returns when the program runs (its exec succeeded). Errors say what is missing: `not_found` for the root file
  /// system, the command or the working directory.
  static Result<Container> start(const ContainerSpec& spec, const Place& place);
  /// Restores into a fresh overlay; `frozen`: not one instruction of it has run when this returns.
  /// Errors: `unsupported` without a working CRIU, `corrupt` for an image without what is needed.
  static Result<Container> restore(const ContainerSpec& spec, const Place& place, const ImageParts& image,
                                   const Criu& criu, bool frozen);

  /// Writes memory and disk of one instant into the two directories and returns the properties that `restore` wants
  /// back. Whatever the result, the container stands FROZEN afterwards: thaw or stop it. May run in a forked child of
  /// the owner. Errors: `no_space`, `timed_out`, `unsupported`, `io` with the end of CRIU's log.
  Result<std::map<std::string, std::string>> checkpoint(const std::filesystem::path& criu_part,
                                                        const std::filesystem::path& disk_part, const Criu& criu) const;

  Status freeze() const;
  /// Processes without children first, their parents when those have run: see thaw_order.hpp.
  /// `running` is called as soon as the instance can answer; the call itself returns a little later.
  Status thaw(const std::function<void()>& running = {}) const;
  Result<bool> frozen() const;

  /// Runs a program inside and waits for it; its rights are those of the container's own program.
  Result<os::ExitStatus> exec(const std::vector<std::string>& command, const ExecIo& io) const;
  /// To the first process.
  Status signal(int number) const;
  /// SIGTERM to the first process, SIGKILL to all after `grace`. A frozen one is killed at once: it cannot hear.
  Result<os::ExitStatus> stop(nanoseconds grace);
  Result<os::CgroupUse> stats() const;

  /// The first process; readable when the container has ended (its pid namespace takes everything with it).
  const os::Pidfd& process() const;
  /// Reaps the first process when it has ended.
  Result<std::optional<os::ExitStatus>> reap();
  /// The read end of the pipe that is standard output and error inside; non-blocking.
  const os::Fd& output() const;
  const os::Cgroup& cgroup() const;

 private:
  struct State;
  explicit Container(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace yado::container
