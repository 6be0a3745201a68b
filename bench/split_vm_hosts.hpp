#pragma once
// The hosts of a split VM: memory servers as processes of their lab hosts, behind the limited links and on the limited disks,
// by mutual TLS; and what a pager on the first host is told of them.

#include <memory>
#include <string>
#include <vector>

#include "split_vm_rig.hpp"
#include "workload/vm/paging.hpp"

namespace yado::bench {

/// A directory `work` on the disk of every host; all of them go with this object.
class WorkDirectories {
 public:
  static Result<WorkDirectories> create(const Rig& rig);
  WorkDirectories(WorkDirectories&& other) noexcept = default;
  ~WorkDirectories();

  /// Of the rig's host number `host`, from 0.
  const std::filesystem::path& of(std::size_t host) const { return paths_.at(host); }
  /// What the files of that name and below it take, on all hosts.
  std::uint64_t bytes_of(const std::string& name) const;
  /// A restore begins with cold caches, as on the morning after.
  Status forget_cached() const;

 private:
  WorkDirectories() = default;
  std::vector<std::filesystem::path> paths_;
};

class SplitHosts {
 public:
  /// Memory servers in the rig's second to `hosts`-th host, without pages yet.
  static Result<SplitHosts> start(Rig& rig, const WorkDirectories& work, std::uint32_t hosts, std::uint64_t memory_bytes);
  SplitHosts(SplitHosts&&) noexcept = default;
  /// The servers end, with all their pages.
  ~SplitHosts();

  /// For a guest on the first host, which keeps an even share of what it uses.
  vm::Paging paging(std::uint32_t prefetch_pages) const;
  /// Names of the memory servers' hosts.
  const std::vector<HostId>& servers() const { return names_; }
  /// A server's images: DirectoryArchive's root.
  std::filesystem::path store(std::size_t server) const { return stores_.at(server); }
  /// Kills the memory server, as a crash would.
  Status kill(std::size_t server);
  /// Pages that a LOAD has announced and not read yet, on all servers.
  Result<std::uint64_t> pages_on_disk();

 private:
  SplitHosts() = default;
  struct Server {
    lab::HostProcess process;
    os::Fd socket;
  };
  vm::Paging paging_;
  std::vector<HostId> names_;
  std::vector<std::filesystem::path> stores_;
  std::vector<Server> running_;
};

}  // namespace yado::bench
