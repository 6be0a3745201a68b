#include "split_vm_hosts.hpp"

#include <csignal>

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/units.hpp"
#include "os/file.hpp"
#include "wire/tls.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t page_bytes = 4096;
constexpr std::uint64_t unused_bytes = 64_MiB;  // of the guest's memory: zeros, which no host keeps (measured: 57 to 70 MiB)
constexpr std::uint16_t port = 7700;            // every host has a network of its own
constexpr auto end_limit = 10s;                 // keeps a server that hangs from hanging us

/// Beside this program.
Result<fs::path> host_program() {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  if (error) return fail_errno(error.value(), "find this program");
  return self.parent_path() / "yado-bench-split-vm-host";
}

/// Certificates of the case's own, in directories of every host's disk.
Status issue(const wire::Authority& authority, const HostId& host, const fs::path& directory) {
  YADO_ASSIGN(const wire::Identity identity, authority.issue("agent:" + host.str()), "certificate");
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return fail_errno(error.value(), "certificate");
  return identity.save(directory);
}

Result<std::string> read_line(const os::Fd& socket) {
  std::string line;
  for (char one = 0;;) {
    const ssize_t n = ::read(socket.get(), &one, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return fail(Errc::unavailable, "a memory server has ended");
    if (one == '\n') return line;
    line += one;
  }
}

}  // namespace

Result<WorkDirectories> WorkDirectories::create(const Rig& rig) {
  WorkDirectories work;
  for (const HostId& host : rig.hosts()) {
    std::error_code error;
    const fs::path& path = work.paths_.emplace_back(rig.disk(host) / "work");
    fs::remove_all(path, error);
    if (!fs::create_directory(path, error)) return fail_errno(error.value(), "make " + path.native());
  }
  return work;
}

WorkDirectories::~WorkDirectories() {
  std::error_code ignored;
  for (const fs::path& path : paths_) fs::remove_all(path, ignored);
}

std::uint64_t WorkDirectories::bytes_of(const std::string& name) const {
  std::uint64_t bytes = 0;
  std::error_code ignored;
  for (const fs::path& root : paths_)
    for (const auto& entry : fs::recursive_directory_iterator(root, ignored)) {
      const std::string inside = entry.path().lexically_relative(root).native();
      struct stat status {};
      if (inside.find(name) != std::string::npos && ::lstat(entry.path().c_str(), &status) == 0 && S_ISREG(status.st_mode))
        bytes += static_cast<std::uint64_t>(status.st_blocks) * 512;
    }
  return bytes;
}

Status WorkDirectories::forget_cached() const {
  std::error_code ignored;
  for (const fs::path& root : paths_)
    for (const auto& entry : fs::recursive_directory_iterator(root, ignored)) {
      if (!entry.is_regular_file(ignored)) continue;
      YADO_ASSIGN(const os::Fd file, os::open_path(entry.path(), O_RDONLY), "forget the image's pages");
      if (::fsync(file.get()) < 0) return fail_errno("forget the image's pages");
      if (const int error = ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_DONTNEED); error != 0) return fail_errno(error, "forget the image's pages");
    }
  return {};
}

Result<SplitHosts> SplitHosts::start(Rig& rig, const WorkDirectories& work, std::uint32_t hosts, std::uint64_t memory_bytes) {
  const auto& all = rig.hosts();
  SplitHosts made;
  YADO_ASSIGN(const fs::path program, host_program(), "memory servers");
  YADO_ASSIGN(const wire::Authority authority, wire::Authority::open_or_create(work.of(0) / "authority"), "memory servers");
  YADO_TRY(issue(authority, all.front(), work.of(0) / "identity"), "memory servers");
  YADO_ASSIGN(const os::Netns* network, rig.lab().netns(all.front()), "memory servers");
  made.paging_.program = {program, "pager"};
  made.paging_.network_namespace = network->fd().get();
  made.paging_.config.local_bytes = (memory_bytes - unused_bytes) / hosts / page_bytes * page_bytes;
  made.paging_.config.session = "writer";
  made.paging_.config.epoch = 1;
  made.paging_.config.identity = work.of(0) / "identity";

  for (std::size_t i = 1; i < hosts; ++i) {
    const HostId& host = all[i];
    const std::string address = rig.lab().address(host).str();
    YADO_TRY(issue(authority, host, work.of(i) / "identity"), "memory servers");
    made.names_.push_back(host);
    const fs::path& store = made.stores_.emplace_back(work.of(i) / "store");
    int ends[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0) return fail_errno("memory servers");
    os::Fd ours(ends[0]);
    const os::Fd theirs(ends[1]);
    YADO_ASSIGN(lab::HostProcess process,
                rig.lab().spawn(host, {.arguments = {program, "memory", address, fmt::format("{}", port), work.of(i) / "identity", store, host.str(),
                                                     fmt::format("{}", 2 * memory_bytes / page_bytes)},
                                       .environment = {}, .log_file = work.of(i) / "log", .descriptors = {{theirs.get(), 3}}}),
                "memory servers");
    made.running_.push_back({std::move(process), std::move(ours)});
    made.paging_.config.servers.push_back({.host = host.str(), .unix_path = {}, .address = address, .port = port, .expected_peer = "agent:" + host.str(),
                                           .quota_bytes = memory_bytes, .load = {}});
  }
  for (std::size_t i = 0; i < made.running_.size(); ++i)
    if (const auto ready = read_line(made.running_[i].socket); !ready)
      return fail(Errc::unavailable, "memory server of {}: {}", made.names_[i], os::read_text(work.of(i + 1) / "log").value_or(ready.error().message));
  return made;
}

SplitHosts::~SplitHosts() {
  for (Server& one : running_) one.socket.reset();
  for (Server& one : running_)
    if (const auto ended = one.process.wait(end_limit); !ended || !*ended) (void)one.process.send(SIGKILL);
}

vm::Paging SplitHosts::paging(std::uint32_t prefetch_pages) const {
  vm::Paging paging = paging_;
  paging.config.prefetch_pages = prefetch_pages;
  return paging;
}

Status SplitHosts::kill(std::size_t server) {
  YADO_TRY(running_.at(server).process.send(SIGKILL), "kill a memory server");
  return {};
}

Result<std::uint64_t> SplitHosts::pages_on_disk() {
  std::uint64_t left = 0;
  for (Server& one : running_) {
    YADO_TRY(os::write_all(one.socket, "?"), "memory server");
    YADO_ASSIGN(const std::string line, read_line(one.socket), "memory server");
    left += std::strtoull(line.c_str(), nullptr, 10);
  }
  return left;
}

}  // namespace yado::bench
