#pragma once
// What an agent keeps on disk.
//
//   <root>/agent.lock               flock(2)ed by the one agent that uses the directory
//   <root>/port                     the TCP port of the API the last time, so that peers find it again
//   <root>/fences/<workload>        the highest epoch ever seen, as decimal text
//   <root>/specs/<workload>.json    so that it can be raised while control is down
//   <root>/instances/<instance>/    record.json (below), the supervisor's socket, log and mount points
//   <root>/images/                  image::Store
//   <root>/roots/                   root file systems unpacked from archives
//
// Every small file is written beside, synced and renamed, and is durable when the call returns. Calls block.

#include <filesystem>
#include <map>
#include <vector>

#include "base/error.hpp"
#include "model/cluster.hpp"
#include "net/address.hpp"
#include "os/fd.hpp"

namespace yado::agent {

/// What the agent must know of an instance to adopt it, or to clear away what is left of it.
struct InstanceRecord {
  InstanceId id;
  WorkloadId workload;
  Purpose purpose = Purpose::owner;
  Epoch epoch;
  std::optional<ImageId> image;
  net::Ipv4 address;            ///< on the bridge
  std::uint16_t published = 0;  ///< port of the host; 0: none
  std::uint16_t service = 0;    ///< port inside
  std::int64_t since_ns = 0;    ///< BootClock: started, restored or last frozen
  bool ready = false;           ///< the launch was finished: a restarted agent may adopt it
  bool operator==(const InstanceRecord&) const = default;
};

class StateDirectory {
 public:
  /// Makes what is missing, mode 0700. Error `conflict` when another agent uses it.
  static Result<StateDirectory> open(const std::filesystem::path& root);

  Status save_fence(const WorkloadId& workload, Epoch epoch) const;
  /// A fence that cannot be read is an error: without it an old epoch could act again.
  Result<std::map<WorkloadId, Epoch>> fences() const;

  Status save_spec(const WorkloadSpec& spec) const;
  /// A spec that cannot be read is left out, with a warning: control sends it again.
  Result<std::vector<WorkloadSpec>> specs() const;

  /// Makes the instance's directory.
  Status save_instance(const InstanceRecord& record) const;
  /// One with a default `workload` has a directory and no record that can be read.
  Result<std::vector<InstanceRecord>> instances() const;
  Status remove_instance(const InstanceId& instance) const;

  std::uint16_t last_port() const;
  Status save_port(std::uint16_t port) const;

  std::filesystem::path instance(const InstanceId& id) const { return root_ / "instances" / id.str(); }
  std::filesystem::path images() const { return root_ / "images"; }
  std::filesystem::path roots() const { return root_ / "roots"; }
  const std::filesystem::path& root() const { return root_; }

 private:
  StateDirectory(std::filesystem::path root, os::Fd lock) : root_(std::move(root)), lock_(std::move(lock)) {}
  std::filesystem::path root_;
  os::Fd lock_;
};

}  // namespace yado::agent
