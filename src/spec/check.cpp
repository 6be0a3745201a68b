#include "spec/check.hpp"

#include <algorithm>
#include <cmath>
#include <set>
#include <string_view>

#include "base/units.hpp"
#include "spec/values.hpp"

namespace yado::spec {
namespace {

class Problems {
 public:
  template <class... Args>
  void add(std::string field, fmt::format_string<Args...> format, Args&&... args) {
    list.push_back({std::move(field), fmt::format(format, std::forward<Args>(args)...)});
  }
  std::vector<Problem> list;
};

std::string at(std::string_view field, std::size_t index) { return fmt::format("{}[{}]", field, index); }

// execve and mount take C strings: everything behind a NUL would be dropped in silence.
bool has_nul(std::string_view text) { return text.find('\0') != std::string_view::npos; }

void check_absolute(Problems& problems, const std::string& field, std::string_view path) {
  if (!path.starts_with('/')) return problems.add(field, "{} is not an absolute path", quote(path));
  if (has_nul(path)) return problems.add(field, "{} contains a NUL character", quote(path));
  if (path.ends_with("/..") || path.find("/../") != std::string_view::npos)
    problems.add(field, "{} must not contain \"..\"", quote(path));
}

// RFC 1123 host names and IPv4 addresses; up to 253 characters in labels of up to 63.
bool valid_host(std::string_view host) {
  if (host.empty() || host.size() > 253) return false;
  while (true) {
    const auto dot = host.find('.');
    const std::string_view label = host.substr(0, dot);
    if (!valid_name(label)) return false;
    if (dot == std::string_view::npos) return true;
    host.remove_prefix(dot + 1);
  }
}

// RFC 9110, 5.6.2: what a header's name may consist of.
bool header_name(std::string_view text) {
  constexpr std::string_view marks = "!#$%&'*+-.^_`|~";
  return std::ranges::all_of(text, [&](char c) {
    return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || marks.find(c) != std::string_view::npos;
  });
}

void check_container(Problems& problems, const ContainerSpec& container) {
  if (container.root.empty())
    problems.add("container.root", "is missing: the directory or tar of the root file system");
  else
    check_absolute(problems, "container.root", container.root);

  if (container.command.empty() || container.command[0].empty())
    problems.add("container.command", "names no program: write it as [\"program\", \"argument\", …]");
  for (std::size_t i = 0; i < container.command.size(); ++i)
    if (has_nul(container.command[i])) problems.add(at("container.command", i), "contains a NUL character");

  for (const auto& [name, value] : container.environment) {
    if (name.empty() || has_nul(name) || name.find('=') != std::string::npos)
      problems.add("container.env", "{} is not the name of a variable", quote(name));
    if (has_nul(value)) problems.add("container.env", "the value of {} contains a NUL character", quote(name));
  }
  check_absolute(problems, "container.cwd", container.working_directory);

  // A container's user namespace maps 65536 ids, and the last one is the kernel's "nobody" (user_namespaces(7)).
  if (container.uid > 65534) problems.add("container.uid", "{} is not between 0 and 65534", container.uid);
  if (container.gid > 65534) problems.add("container.gid", "{} is not between 0 and 65534", container.gid);
  if (container.memory_bytes != 0 && container.memory_bytes < 1_MiB)
    problems.add("container.memory", "{} bytes: no program starts below 1MiB", container.memory_bytes);
  // The kernel's quota has at least 1 ms of every 100 ms.
  if (container.cpus != 0 && !(container.cpus >= 0.01 && container.cpus <= 4096))
    problems.add("container.cpus", "{} is not between 0.01 and 4096", container.cpus);
  if (container.pids > 4'194'304) problems.add("container.pids", "{} is not between 1 and 4194304", container.pids);

  std::set<std::string> targets;
  for (std::size_t i = 0; i < container.mounts.size(); ++i) {
    const Mount& mount = container.mounts[i];
    const std::string field = at("container.mounts", i);
    check_absolute(problems, field + ".source", mount.source);
    check_absolute(problems, field + ".target", mount.target);
    if (mount.target.find_first_not_of('/') == std::string::npos && !mount.target.empty())
      problems.add(field + ".target", "\"/\" is the root file system: set container.root instead");
    if (!targets.insert(mount.target).second)
      problems.add(field + ".target", "{} is already the target of another mount", quote(mount.target));
  }
}

void check_split(Problems& problems, const VmSpec& vm) {
  const Split& split = *vm.split;
  const std::uint64_t copies = split.redundancy == Redundancy::replica ? 2 : 1;
  if (split.local_bytes < 16_MiB || split.local_bytes % 4096 != 0 || split.local_bytes > vm.memory_bytes)
    problems.add("vm.split.local", "{} bytes: must be a multiple of 4KiB, at least 16MiB, and not more than vm.memory", split.local_bytes);
  std::set<HostId> seen;
  bool all_sized = true;
  std::uint64_t room = split.local_bytes;
  for (std::size_t i = 0; i < split.over.size(); ++i) {
    const std::uint64_t bytes = split.over[i].bytes;
    all_sized &= bytes != 0;
    room += bytes / copies;
    if (bytes != 0 && (bytes < 16_MiB || bytes % 4096 != 0 || bytes > vm.memory_bytes))
      problems.add(at("vm.split.over", i), "{} bytes: must be a multiple of 4KiB, at least 16MiB, and not more than vm.memory", bytes);
    const HostId& host = split.over[i].host;
    if (!valid_name(host.str())) problems.add(at("vm.split.over", i), "{} is no host's name", quote(host.str()));
    if (!seen.insert(host).second) problems.add(at("vm.split.over", i), "{} stands there twice", quote(host.str()));
  }
  if (!split.over.empty() && all_sized && room < vm.memory_bytes)
    problems.add("vm.split.over", "vm.split.local and the sizes given have room for {} of {} bytes of vm.memory{}: leave a size out for an even share of the rest", room,
                 vm.memory_bytes, copies > 1 ? ", each page twice" : "");
  if (split.over.empty() && split.local_bytes < vm.memory_bytes)
    problems.add("vm.split.over", "no host is named that could keep the other {} bytes of vm.memory", vm.memory_bytes - split.local_bytes);
  if (split.over.size() > 15) problems.add("vm.split.over", "{} hosts are more than 15", split.over.size());
  if (split.redundancy == Redundancy::replica && split.over.size() == 1)
    problems.add("vm.split.redundancy", "\"replica\" needs two hosts in vm.split.over");
  if (split.redundancy == Redundancy::parity && !split.over.empty() && split.over.size() < 3)
    problems.add("vm.split.redundancy", "\"parity\" needs three hosts in vm.split.over: two for pages and one for their XOR; with two use \"replica\"");
  if (split.redundancy == Redundancy::parity && std::ranges::any_of(split.over, [](const MemoryHost& host) { return host.bytes != 0; }))
    problems.add("vm.split.over", "with \"parity\" all hosts keep as much: leave the sizes out");
  if (split.checkpoint_bytes_per_second != 0 && split.checkpoint_bytes_per_second < 1_MiB)
    problems.add("vm.split.checkpoint_rate", "must be at least 1MiB/s: a checkpoint that never ends keeps its changes in memory; leave it out for no limit");
  if (split.prefetch_pages < 1 || split.prefetch_pages > 512)
    problems.add("vm.split.prefetch", "must be between 4KiB and 2MiB");
}

void check_vm(Problems& problems, const VmSpec& vm) {
  if (vm.split) check_split(problems, vm);
  if (vm.kernel.empty() && vm.disks.empty())
    problems.add("vm", "has neither a kernel nor a disk to boot from");
  if (vm.kernel.empty() && !vm.initramfs.empty()) problems.add("vm.initramfs", "is of no use without vm.kernel");
  if (vm.kernel.empty() && !vm.command_line.empty()) problems.add("vm.command_line", "is of no use without vm.kernel");
  if (!vm.kernel.empty()) check_absolute(problems, "vm.kernel", vm.kernel);
  if (!vm.initramfs.empty()) check_absolute(problems, "vm.initramfs", vm.initramfs);
  if (has_nul(vm.command_line)) problems.add("vm.command_line", "contains a NUL character");
  for (std::size_t i = 0; i < vm.disks.size(); ++i) check_absolute(problems, at("vm.disks", i), vm.disks[i]);
  if (vm.memory_bytes < 16_MiB || vm.memory_bytes % 2_MiB != 0)
    problems.add("vm.memory", "{} bytes: must be a multiple of 2MiB and at least 16MiB", vm.memory_bytes);
  if (vm.vcpus < 1 || vm.vcpus > 255) problems.add("vm.vcpus", "{} is not between 1 and 255", vm.vcpus);
  if (vm.cpus != 0 && !(vm.cpus >= 0.01 && vm.cpus <= 4096)) problems.add("vm.cpus", "{} is not between 0.01 and 4096", vm.cpus);
}

void check_service(Problems& problems, const Service& service) {
  if (service.hosts.empty())
    problems.add("service.hosts", "is empty: name the HTTP hosts that lead to this workload, such as [\"site.test\"]");
  std::set<std::string> hosts;
  for (std::size_t i = 0; i < service.hosts.size(); ++i) {
    if (!valid_host(service.hosts[i]))
      problems.add(at("service.hosts", i), "{} is not a host name (letters, digits, '-' and '.'; no port)",
                   quote(service.hosts[i]));
    else if (!hosts.insert(service.hosts[i]).second)
      problems.add(at("service.hosts", i), "{} is named twice", quote(service.hosts[i]));
  }
  if (service.port == 0) problems.add("service.port", "must be between 1 and 65535: where the application listens");

  const Readiness& ready = service.ready;
  if (!ready.path.starts_with('/')) problems.add("service.ready.path", "{} does not start with '/'", quote(ready.path));
  // It becomes part of a request line, where a space or a line break would begin something else.
  else if (!std::ranges::all_of(ready.path, [](char c) { return c > ' ' && c < 0x7f; }))
    problems.add("service.ready.path", "{} holds characters that must be percent-encoded", quote(ready.path));
  if (ready.status < 200 || ready.status > 599)
    problems.add("service.ready.status", "{} is not between 200 and 599", ready.status);
  if (ready.start_limit <= 0ms || ready.start_limit > 24h)
    problems.add("service.ready.start_limit", "must be more than nothing and at most 24h");
  if (!header_name(service.idempotency_header))
    problems.add("service.idempotency_header", "{} is not the name of an HTTP header",
                 quote(service.idempotency_header));
}

void check_policy(Problems& problems, const Policy& policy, bool checkpoints_owner) {
  const bool image_of_owner = checkpoints_owner && policy.standby == StandbyLevel::image;
  if (policy.consistency == Consistency::exclusive && policy.standby != StandbyLevel::cold && !image_of_owner)
    problems.add("policy.standby",
                 "an exclusive workload can only have standby = \"cold\": images and frozen copies are taken from a "
                 "second start of the application, which it must never have");
  if (policy.lease < 100ms || policy.lease > 1h) problems.add("policy.lease", "is not between 100ms and 1h");
  if (policy.relocations == 0 || policy.relocations_per <= 0ms)
    problems.add("policy.relocations", "must allow at least one in some time, such as \"10/min\"");
  if (policy.lifetime && *policy.lifetime <= 0ms) problems.add("policy.lifetime", "must be more than nothing");
  if (policy.image_age <= 0ms) problems.add("policy.image_age", "must be more than nothing");
  if (policy.frozen_age <= 0ms) problems.add("policy.frozen_age", "must be more than nothing");

  std::set<HostId> placement;
  for (std::size_t i = 0; i < policy.placement.size(); ++i) {
    const HostId& host = policy.placement[i];
    if (!valid_name(host.str()))
      problems.add(at("policy.placement", i), "{} is not the name of a host", quote(host.str()));
    else if (!placement.insert(host).second)
      problems.add(at("policy.placement", i), "{} is named twice", quote(host.str()));
  }
}

}  // namespace

std::vector<Problem> problems_of(const WorkloadSpec& spec) {
  Problems problems;
  if (!valid_name(spec.name.str()) || spec.name.str().size() > longest_workload_name)
    problems.add("name", "{} is not a name: 1 to {} of a-z, 0-9, '-' and '.', first and last a letter or digit",
                 quote(spec.name.str()), longest_workload_name);
  if (spec.kind == Kind::vm) {
    check_vm(problems, spec.vm);
    if (spec.policy.standby == StandbyLevel::frozen)
      problems.add("policy.standby", "a VM can have \"cold\" or \"image\": frozen VMs are not built yet");
  } else {
    check_container(problems, spec.container);
  }
  check_service(problems, spec.service);
  check_policy(problems, spec.policy, spec.kind == Kind::vm && spec.vm.split.has_value());
  return std::move(problems.list);
}

Status check(const WorkloadSpec& spec) {
  std::string lines;
  for (const Problem& problem : problems_of(spec))
    lines += fmt::format("{}{}: {}", lines.empty() ? "" : "\n", problem.field, problem.message);
  if (lines.empty()) return {};
  return std::unexpected(Error{Errc::invalid_argument, std::move(lines)});
}

}  // namespace yado::spec
