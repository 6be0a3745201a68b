#include "lab/lab.hpp"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <unistd.h>

#include <thread>

#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/mount.hpp"

namespace yado::lab {
namespace {

Status check(const LabOptions& options) {
  if (::geteuid() != 0)
    return fail(Errc::permission, "a lab needs root, because it makes network namespaces: start it with sudo");
  if (!valid_name(options.name) || options.name.size() > 32)
    return fail(Errc::invalid_argument, "\"{}\" is no name for a lab: 1 to 32 of a-z, 0-9, '-' and '.'", options.name);
  if (options.hosts < 1 || options.hosts > 200)
    return fail(Errc::invalid_argument, "a lab has 1 to 200 hosts, not {}", options.hosts);
  return {};
}

std::map<std::string, net::Ipv4> addresses_for(std::uint32_t hosts) {
  std::map<std::string, net::Ipv4> addresses = {{"front", net::Ipv4::of(10, 77, 0, 2)}};
  for (std::uint32_t i = 1; i <= hosts; ++i)
    addresses[fmt::format("h{}", i)] = net::Ipv4::of(10, 77, 0, static_cast<std::uint8_t>(10 + i));
  return addresses;
}

}  // namespace

Result<Lab> Lab::create(const LabOptions& options) {
  const std::string doing = fmt::format("lab {}", options.name);
  YADO_TRY(check(options), doing);
  YADO_ASSIGN(auto directory, StateDirectory::create(options.run_directory, options.name), doing);
  auto addresses = addresses_for(options.hosts);
  YADO_ASSIGN(auto network, Switch::create(addresses, options.link_bits_per_second), doing);
  Lab lab(options, std::move(directory), std::move(network));
  lab.addresses_ = std::move(addresses);
  for (std::uint32_t i = 1; i <= options.hosts; ++i) lab.hosts_.emplace_back(fmt::format("h{}", i));
  YADO_TRY(lab.make_mounts(), doing);
  for (const auto& [name, address] : lab.addresses_) YADO_TRY(lab.switch_on(name), doing);
  return lab;
}

Lab::~Lab() = default;

Status Lab::make_mounts() {
  for (const auto& [name, address] : addresses_) {
    std::error_code error;
    std::filesystem::create_directory(directory_.path() / name, error);
    if (error) return fail_errno(error.value(), fmt::format("make the state directory of {}", name));
  }
  // On a thread of its own: the disks are mounted in a namespace that nobody but the lab's machines sees.
  const auto mount_disks = [this]() -> Status {
    YADO_TRY(os::enter_private_mounts(), "mounts of the lab");
    YADO_ASSIGN(mounts_, os::open_path("/proc/thread-self/ns/mnt", O_RDONLY), "mounts of the lab");
    if (options_.disk_bytes == 0) return {};
    for (const HostId& host : hosts_) {
      const std::filesystem::path path = state_directory(host);
      const std::string size = fmt::format("size={},mode=0755", options_.disk_bytes);
      if (::mount("yado-lab", path.c_str(), "tmpfs", MS_NOSUID | MS_NODEV, size.c_str()) < 0)
        return fail_errno(fmt::format("mount the disk of {}", host));
      YADO_ASSIGN(disks_[host.str()], os::open_path(path, O_RDONLY | O_DIRECTORY), "disk");
    }
    return {};
  };
  Status made;
  std::thread([&] { made = mount_disks(); }).join();
  return made;
}

Status Lab::switch_on(const std::string& name) {
  YADO_ASSIGN(auto netns, switch_.plug_in(name), "switch on");
  YADO_ASSIGN(auto machine, Machine::boot({name, cgroup(HostId(name))}, std::move(netns), mounts_), "switch on");
  machines_.emplace(name, std::move(machine));
  return {};
}

Result<Machine*> Lab::machine(const HostId& host) {
  if (!addresses_.contains(host.str())) return fail(Errc::not_found, "lab {} has no host {}", name(), host);
  const auto found = machines_.find(host.str());
  if (found == machines_.end()) return fail(Errc::conflict, "host {} is dead: boot it first", host);
  return &found->second;
}

Result<const os::Netns*> Lab::netns(const HostId& host) const {
  YADO_ASSIGN(const Machine* found, const_cast<Lab*>(this)->machine(host), "network");
  return &found->netns();
}

Result<HostProcess> Lab::spawn(const HostId& host, const SpawnOptions& options) {
  YADO_ASSIGN(Machine * found, machine(host), "start a program");
  return found->spawn(options);
}

Status Lab::boot(const HostId& host, Disk kept) {
  if (!addresses_.contains(host.str())) return fail(Errc::not_found, "lab {} has no host {}", name(), host);
  if (alive(host)) return fail(Errc::conflict, "host {} is alive", host);
  if (kept == Disk::wipe) {
    // Through the descriptor: the disk may be mounted where this process cannot see it.
    const auto disk = disks_.find(host.str());
    const std::filesystem::path root =
        disk == disks_.end() ? state_directory(host).native() : fmt::format("/proc/self/fd/{}/.", disk->second.get());
    std::error_code error;
    for (const auto& entry : std::filesystem::directory_iterator(root, error))
      std::filesystem::remove_all(entry.path(), error);
    if (error) return fail_errno(error.value(), fmt::format("wipe the disk of {}", host));
  }
  return switch_on(host.str());
}

Result<Instant> Lab::drop(const HostId& host, Switch::Drop wanted) {
  if (!addresses_.contains(host.str())) return fail(Errc::not_found, "lab {} has no host {}", name(), host);
  YADO_TRY(switch_.drop(host.str(), wanted), "link");
  return os::now();
}

Result<Instant> Lab::host_silent(const HostId& host) {
  YADO_ASSIGN(Machine * dying, machine(host), "host silent");
  YADO_ASSIGN(const Instant since, cut(host), "host silent");
  dying->kill();
  machines_.erase(host.str());
  // Its kernel still holds half-closed connections; a dead machine's would not send their FIN once the link is back.
  switch_.unplug(host.str());
  return since;
}

Result<Instant> Lab::freeze(const HostId& host) {
  YADO_ASSIGN(Machine * found, machine(host), "freeze");
  // A task in an uninterruptible sleep is waited for; one that stays in it is not frozen but broken.
  YADO_TRY(found->cgroup().freeze(10s), fmt::format("freeze {}", host));
  return os::now();
}

Result<Instant> Lab::thaw(const HostId& host) {
  YADO_ASSIGN(Machine * found, machine(host), "thaw");
  YADO_TRY(found->cgroup().thaw(), fmt::format("thaw {}", host));
  return os::now();
}

Result<const os::Fd*> Lab::disk(const HostId& host) const {
  const auto found = disks_.find(host.str());
  if (found == disks_.end())
    return fail(Errc::unsupported, "host {} has no disk of its own: make the lab with a disk size", host);
  return &found->second;
}

Result<Instant> Lab::fill_disk(const HostId& host) {
  YADO_ASSIGN(const os::Fd* root, disk(host), "fill the disk");
  const os::Fd file(::openat(root->get(), ".full", O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600));
  if (!file.valid()) return fail_errno(fmt::format("fill the disk of {}", host));
  // Until the kernel itself says that nothing is left: others may be writing, or deleting, meanwhile.
  const std::string block(std::size_t{1} << 20, '\0');
  for (std::size_t size = block.size(); size > 0;) {
    const ssize_t written = ::write(file.get(), block.data(), size);
    if (written > 0) continue;
    if (written < 0 && errno != ENOSPC) return fail_errno(fmt::format("fill the disk of {}", host));
    size /= 2;
  }
  return os::now();
}

Result<Instant> Lab::free_disk(const HostId& host) {
  YADO_ASSIGN(const os::Fd* root, disk(host), "free the disk");
  if (::unlinkat(root->get(), ".full", 0) < 0 && errno != ENOENT) return fail_errno(fmt::format("free {}", host));
  return os::now();
}

Result<os::Fd> listen_on_loopback(std::uint16_t port) {
  os::Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int on = 1;
  sockaddr_in where{};
  where.sin_family = AF_INET;
  where.sin_port = htons(port);
  where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (!fd.valid() || ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
      ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&where), sizeof where) < 0 ||
      ::listen(fd.get(), SOMAXCONN) < 0)
    return fail_errno(fmt::format("listen on 127.0.0.1:{}", port));
  return fd;
}

}  // namespace yado::lab
