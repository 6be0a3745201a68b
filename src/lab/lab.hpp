#pragma once
// A cluster on one machine: real processes, real sockets, real failures. Used by `yado dev`, `yado drill`, tests and
// benchmarks. Needs root; a second lab of another name may run beside it.
//
// Every host h1…hN, and the "front" where control, gates, clients and databases run, has namespaces of its own (pid,
// mount, network, uts, ipc), all held by descriptors of this process: when it ends, by whatever, the lab ends. What
// a kill -9 leaves on disk and in cgroups is swept by the next lab's start (state_directory.hpp).
//
// Failures (design.md, "Failures, kept apart"). Each call returns when the fault is in force, with the moment of it:
//
//   host_silent      the link drops both ways, then everything in the host is killed and its kernel's network taken
//                    away: no RST, no FIN, no ICMP. Its disk stays. boot() brings it back, and then peers get RST.
//   cut              the link drops both ways; the host lives on. heal() ends it, retransmissions go through.
//   one_way_in/_out  only what is sent to the host / by the host is dropped.
//   lossy            of all packets to and from the host every tenth is dropped, at random.
//   freeze           every process of the host stands still; its kernel answers ping and TCP connects.
//   fill_disk        the host's own disk is full (LabOptions::disk_bytes).
//
// The front is a machine as well: cut(front) is the observer's own link. Not thread-safe, except netns() and
// run_in_front() while no other call runs.

#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "lab/machine.hpp"
#include "lab/state_directory.hpp"
#include "lab/switch.hpp"
#include "model/ids.hpp"
#include "net/address.hpp"

namespace yado::lab {

struct LabOptions {
  std::string name = "dev";                ///< unique among the labs that run; a valid_name of at most 32 characters
  std::uint32_t hosts = 3;                 ///< 1 to 200
  std::uint64_t link_bits_per_second = 0;  ///< of every host's link, each way; 0: as fast as it goes
  std::uint64_t disk_bytes = 0;            ///< of every host's state directory, on a disk (tmpfs) of its own; 0: none
  std::filesystem::path run_directory = "/run/yado";
};

enum class Disk { keep, wipe };

class Lab {
 public:
  /// All hosts are up when it returns. Errc::permission without root, already_exists when the name is taken.
  static Result<Lab> create(const LabOptions& options);
  Lab(Lab&&) noexcept = default;
  Lab& operator=(Lab&&) = delete;
  ~Lab();

  static HostId front() { return HostId("front"); }
  const std::string& name() const { return options_.name; }
  /// h1…hN, without the front.
  const std::vector<HostId>& hosts() const { return hosts_; }
  net::Ipv4 address(const HostId& host) const { return addresses_.at(host.str()); }
  bool alive(const HostId& host) const { return machines_.contains(host.str()); }
  /// The path inside the host. With a disk of its own it can be seen only from there.
  std::filesystem::path state_directory(const HostId& host) const { return directory_.path() / host.str(); }
  /// Where an agent in this host makes the groups of its instances, relative to every hierarchy's root.
  std::string cgroup(const HostId& host) const { return cgroup_of(options_.name) + "/" + host.str(); }
  /// Errc::conflict when it is dead.
  Result<const os::Netns*> netns(const HostId& host) const;

  /// Errc::conflict when the host is dead or frozen; the error of exec when the program cannot be started.
  Result<HostProcess> spawn(const HostId& host, const SpawnOptions& options);
  /// Switches a dead host on again: fresh namespaces, the same name and address, link healed. Conflict when alive.
  Status boot(const HostId& host, Disk disk = Disk::keep);

  Result<Instant> host_silent(const HostId& host);
  Result<Instant> cut(const HostId& host) { return drop(host, {.to = true, .from = true}); }
  Result<Instant> one_way_in(const HostId& host) { return drop(host, {.to = true}); }
  Result<Instant> one_way_out(const HostId& host) { return drop(host, {.from = true}); }
  Result<Instant> lossy(const HostId& host) { return drop(host, {.some = true}); }
  Result<Instant> heal(const HostId& host) { return drop(host, {}); }
  Result<Instant> freeze(const HostId& host);
  Result<Instant> thaw(const HostId& host);
  /// Errc::unsupported without LabOptions::disk_bytes.
  Result<Instant> fill_disk(const HostId& host);
  Result<Instant> free_disk(const HostId& host);

  /// Runs `function`, which returns Status or Result<T>, on a thread inside the front's network.
  template <class Function>
  auto run_in_front(Function&& function) const -> std::invoke_result_t<Function&> {
    const auto front_network = netns(front());
    if (!front_network) return std::unexpected(front_network.error());
    return os::run_in(**front_network, std::forward<Function>(function));
  }

 private:
  Lab(LabOptions options, StateDirectory directory, Switch network)
      : options_(std::move(options)), directory_(std::move(directory)), switch_(std::move(network)) {}
  Status make_mounts();
  Status switch_on(const std::string& name);
  Result<Machine*> machine(const HostId& host);
  Result<const os::Fd*> disk(const HostId& host) const;
  Result<Instant> drop(const HostId& host, Switch::Drop drop);

  // Destroyed from the last to the first: machines before the switch, the directory and its lock at the end.
  LabOptions options_;
  StateDirectory directory_;
  std::vector<HostId> hosts_;
  std::map<std::string, net::Ipv4> addresses_;
  os::Fd mounts_;                        ///< the mount namespace with the disks, which every machine copies
  std::map<std::string, os::Fd> disks_;  ///< the root directory of each
  Switch switch_;
  std::map<std::string, Machine> machines_;  ///< those that are switched on
};

/// A listening TCP socket on 127.0.0.1 of the caller's network, to be handed to a process in the front by
/// SpawnOptions::descriptors: so a user's curl reaches a gate that lives in the lab. Port 0: any.
Result<os::Fd> listen_on_loopback(std::uint16_t port);

}  // namespace yado::lab
