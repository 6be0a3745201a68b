#pragma once
// For tests only, and only as root: a place on a tmpfs, the host's own "/" as the root file system, a network.

#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/mount.hpp"
#include "os/netns.hpp"
#include "workload/container/container.hpp"

namespace yado::container::testing {

inline constexpr nanoseconds hang = 30s;  ///< keeps a broken test from hanging; never what a test asserts

/// Why these tests cannot run here; empty: they can.
inline std::string why_not() {
  if (::geteuid() != 0) return "needs root: containers are made of mounts, cgroups and user namespaces";
  if (::access("/usr/bin/python3", X_OK) != 0) return "needs /usr/bin/python3 (package python3-minimal) as the application";
  return {};
}

/// $YADO_CRIU (the `run` script sets it); an empty binary: none.
inline Criu find_criu(const std::filesystem::path& cache) {
  const char* named = std::getenv("YADO_CRIU");
  if (named == nullptr || ::access(named, X_OK) != 0) return {};
  return {.binary = named, .kernel_cache = cache, .limit = hang};
}

/// A directory on a tmpfs of its own, in a mount namespace of this process; gone with this object. The root file
/// system is the host's "/", never written, as no lower layer is; the instance could not lie on that same file system,
/// because overlayfs refuses an upper layer inside its lower one.
class Ground {
 public:
  static Result<Ground> make() {
    static const Status isolated = os::enter_private_mounts();
    YADO_TRY(isolated, "test");
    char name[] = "/tmp/yado-test-XXXXXX";
    if (::mkdtemp(name) == nullptr) return fail_errno("mkdtemp");
    Ground ground;
    ground.directory_ = name;
    YADO_ASSIGN(const os::Fd tmpfs, os::make_tmpfs(), "test");
    YADO_ASSIGN(ground.mounted_, os::attach_mount(tmpfs, ground.directory_), "test");
    return ground;
  }
  Ground(Ground&& other) noexcept
      : directory_(std::exchange(other.directory_, {})), mounted_(std::move(other.mounted_)) {}
  ~Ground() {
    mounted_ = os::Mounted();
    if (!directory_.empty()) ::rmdir(directory_.c_str());
  }

  const std::filesystem::path& directory() const { return directory_; }
  /// Unique over all test runs on the machine.
  std::string cgroup(const std::string& name) const {
    return "yado-test/" + directory_.filename().native() + "-" + name;
  }
  Place place(const std::string& name, const os::Fd& network, std::uint16_t port = 0) const {
    std::filesystem::create_directories(directory_ / name);
    return {.directory = directory_ / name,
            .root = "/",
            .cgroup = cgroup(name),
            .host_name = name,
            .port = port,
            .network_namespace = network.get()};
  }

 private:
  Ground() = default;
  std::filesystem::path directory_;
  os::Mounted mounted_;
};

inline ContainerSpec python(const std::string& code) {
  ContainerSpec spec;
  spec.root = "/";
  spec.command = {"/usr/bin/python3", "-uc", code};
  return spec;
}

/// Counts from 0, a line each (in one write: a checkpoint may fall between two), a few hundred a second.
inline ContainerSpec counter() {
  return python("import time,os\nn=0\nwhile True:\n  os.write(1,b'count %d\\n'%n); n+=1; time.sleep(0.003)");
}

/// An empty network namespace with its loopback up and 10.87.0.2 on it.
inline Result<os::Netns> make_network() {
  YADO_ASSIGN(os::Netns made, os::Netns::create(), "test");
  const auto configure = []() -> Status {
    const os::Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
    const auto set = [&](const char* name, const char* address) -> Status {
      ifreq request{};
      std::strcpy(request.ifr_name, name);
      auto* wanted = reinterpret_cast<sockaddr_in*>(&request.ifr_addr);
      wanted->sin_family = AF_INET;
      ::inet_pton(AF_INET, address, &wanted->sin_addr);
      if (::ioctl(socket.get(), SIOCSIFADDR, &request) != 0) return fail_errno("SIOCSIFADDR");
      request.ifr_flags = IFF_UP;
      if (::ioctl(socket.get(), SIOCSIFFLAGS, &request) != 0) return fail_errno("SIOCSIFFLAGS");
      return {};
    };
    YADO_TRY(set("lo", "127.0.0.1"), "lo");
    return set("lo:1", "10.87.0.2");
  };
  YADO_TRY(os::run_in(made, configure), "network of a test");
  return made;
}

/// What comes out of the container until `text` has come, or it has ended, or `limit` has passed.
inline std::string read_until(const Container& container, const std::string& text, nanoseconds limit = hang) {
  std::string all;
  const Instant deadline = os::now() + limit;
  while (all.find(text) == std::string::npos) {  // what is there already is read also when no time is left
    const auto ready = os::readable_within(container.output().get(), deadline - os::now());
    if (!ready || !*ready) break;
    char buffer[4096];
    const ssize_t n = ::read(container.output().get(), buffer, sizeof buffer);
    if (n == 0) break;
    if (n > 0) all.append(buffer, static_cast<std::size_t>(n));
  }
  return all;
}

}  // namespace yado::container::testing
