#pragma once
// What a user asks for: a workload, how it is reached, and what may be done to keep it answering.
// Values without behaviour; defaults are the ones docs/spec.md states.

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/time.hpp"
#include "model/ids.hpp"

namespace yado {

enum class Kind { container, vm };
/// How often a page is held that is not on the main host. `none`: once; a host that dies takes the memory with it.
enum class Redundancy { none, replica, parity };
enum class StandbyLevel { cold, image, frozen };
/// `shared`: two instances at once are harmless. `exclusive`: there is never a second live one.
enum class Consistency { shared, exclusive };

struct Mount {
  std::string source;  ///< absolute path on every host (shared storage)
  std::string target;  ///< absolute path inside
  bool read_only = true;
  bool operator==(const Mount&) const = default;
};

struct ContainerSpec {
  std::string root;                  ///< absolute path of a directory, or of a .tar[.gz|.zst|.xz], on every host
  std::vector<std::string> command;  ///< argv; [0] is searched in PATH inside the root
  std::map<std::string, std::string> environment;
  std::string working_directory = "/";
  std::uint32_t uid = 0;  ///< inside the container; 0 is root of its own user namespace only
  std::uint32_t gid = 0;
  std::vector<Mount> mounts;
  std::uint64_t memory_bytes = 0;  ///< 0: no limit
  double cpus = 0;                 ///< 0: no limit; 0.5 = half a core
  std::uint32_t pids = 0;          ///< 0: the default limit of 1024
  bool operator==(const ContainerSpec&) const = default;
};

/// Another host that keeps some of a VM's memory. Where its memory server listens is filled in by control, with each call.
struct MemoryHost {
  HostId host;
  std::string address;
  std::uint16_t port = 0;
  std::uint64_t bytes = 0;  ///< at most, copies included; 0: an even share of what those with a size leave
  bool leaving = false;     ///< only in a raise: it has a share of the image, and keeps nothing of it once the others have it
  /// As people see it: where it can be reached is no part of a spec.
  bool operator==(const MemoryHost& other) const { return host == other.host && bytes == other.bytes && leaving == other.leaving; }
  bool reached_alike(const MemoryHost& other) const { return host == other.host && address == other.address && port == other.port; }
};

/// A memory that is held by several hosts: pages are exchanged while the VM runs.
struct Split {
  std::uint64_t local_bytes = 0;   ///< on the host where it runs, at most
  std::vector<MemoryHost> over;    ///< the rest
  Redundancy redundancy = Redundancy::none;
  std::uint32_t prefetch_pages = 64;  ///< fetched at once, at most, around a page that is waited for
  std::uint64_t checkpoint_bytes_per_second = 0;  ///< that each host writes at most; 0: no limit
  bool operator==(const Split&) const = default;
};

/// A virtual machine. Paths are absolute and the same on every host.
struct VmSpec {
  std::string kernel;              ///< empty: the firmware boots from the first disk
  std::string initramfs;           ///< may be empty
  std::string command_line;        ///< of the kernel
  std::vector<std::string> disks;  ///< base images (raw, qcow2), never written: every instance has an overlay of its own
  std::uint64_t memory_bytes = 0;  ///< of the guest; a multiple of 2 MiB
  std::uint32_t vcpus = 1;
  double cpus = 0;                 ///< share of the host's; 0: no limit
  std::optional<Split> split;      ///< none: all of its memory is on the host where it runs
  bool operator==(const VmSpec&) const = default;
};

/// The request that proves that an instance works: status AND content, because an application without its
/// database likes to answer 200 with an empty page.
struct Readiness {
  std::string path = "/";
  int status = 200;
  std::string contains;              ///< must stand in the body; empty: any body
  milliseconds start_limit{60'000};  ///< give up on a start that has not answered by then
  bool operator==(const Readiness&) const = default;
};

/// The name clients use, bound to one TCP port of the workload that speaks HTTP/1.1.
struct Service {
  std::vector<std::string> hosts;  ///< HTTP host names, lower case, without port
  std::uint16_t port = 0;          ///< inside the instance
  Readiness ready;
  std::string idempotency_header;  ///< a request that carries it may be replayed; empty: none may
  bool operator==(const Service&) const = default;
};

struct Policy {
  StandbyLevel standby = StandbyLevel::image;
  Consistency consistency = Consistency::shared;
  milliseconds lease{5'000};              ///< `exclusive` only: the longest gap control may be silent before the freeze
  std::uint32_t relocations = 10;         ///< at most this many …
  milliseconds relocations_per{60'000};   ///< … in this time
  std::optional<milliseconds> lifetime;   ///< scale to zero after this long; none: always up
  milliseconds image_age{3'600'000};      ///< renew the ready image after this
  milliseconds frozen_age{600'000};       ///< re-restore the frozen standby after this
  std::uint32_t warm_up = 1;              ///< readiness requests asked of a frozen standby, at once, before the freeze
  std::vector<HostId> placement;          ///< allowed hosts, in order of preference; empty: any
  bool operator==(const Policy&) const = default;
};

struct WorkloadSpec {
  WorkloadId name;
  Kind kind = Kind::container;
  ContainerSpec container;  ///< of kind `container`
  VmSpec vm;                ///< of kind `vm`
  Service service;
  Policy policy;
  bool operator==(const WorkloadSpec&) const = default;
};

/// What an instance of it takes of its host's memory, as far as the spec says.
inline std::uint64_t memory_bytes(const WorkloadSpec& spec) {
  if (spec.kind == Kind::container) return spec.container.memory_bytes;
  return spec.vm.split ? spec.vm.split->local_bytes : spec.vm.memory_bytes;
}

/// True when an instance of the one is an instance of the other: only what may change while it runs is different.
inline bool same_instance(const WorkloadSpec& a, const WorkloadSpec& b) {
  return a.kind == b.kind && a.container == b.container && a.vm == b.vm && a.service == b.service &&
         a.policy.consistency == b.policy.consistency;
}

}  // namespace yado
