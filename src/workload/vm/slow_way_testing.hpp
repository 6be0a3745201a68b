#pragma once
// For tests only: a socket in front of another one, through which what is sent goes no faster than at a given rate.

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <list>
#include <thread>

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "os/clock.hpp"
#include "os/fd.hpp"

namespace yado::vm::testing {

class SlowWay {
 public:
  SlowWay(const std::filesystem::path& here, std::filesystem::path there, double bytes_a_second)
      : there_(std::move(there)), rate_(bytes_a_second), listener_(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    const sockaddr_un address = address_of(here);
    if (::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0 || ::listen(listener_.get(), 16) != 0) std::abort();
    accepting_ = std::thread([this] { accept_all(); });
  }
  ~SlowWay() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    accepting_.join();
    for (const os::Fd& one : sockets_) ::shutdown(one.get(), SHUT_RDWR);
    for (std::thread& one : threads_) one.join();
  }

 private:
  static sockaddr_un address_of(const std::filesystem::path& path) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path.native().copy(address.sun_path, sizeof address.sun_path - 1);
    return address;
  }
  void accept_all() {
    for (;;) {
      os::Fd near(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
      if (!near.valid()) return;
      os::Fd far(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
      const sockaddr_un address = address_of(there_);
      if (::connect(far.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) continue;
      const int from = sockets_.emplace_back(std::move(near)).get(), to = sockets_.emplace_back(std::move(far)).get();
      threads_.emplace_back([this, from, to] { carry(from, to, rate_); });
      threads_.emplace_back([this, from, to] { carry(to, from, 0); });
    }
  }
  static void carry(int from, int to, double rate) {
    char bytes[65536];
    Instant free{};
    for (ssize_t n; (n = ::read(from, bytes, sizeof bytes)) > 0;) {
      for (ssize_t done = 0; done < n;) {
        const ssize_t sent = ::send(to, bytes + done, static_cast<std::size_t>(n - done), MSG_NOSIGNAL);
        if (sent <= 0) return;
        done += sent;
      }
      if (rate <= 0) continue;
      free = std::max(free, os::now()) + nanoseconds(static_cast<std::int64_t>(static_cast<double>(n) / rate * 1e9));
      std::this_thread::sleep_for(free - os::now());
    }
    ::shutdown(to, SHUT_WR);
  }

  const std::filesystem::path there_;
  const double rate_;
  os::Fd listener_;
  std::list<os::Fd> sockets_;        // the accepting thread's, until it is joined
  std::list<std::thread> threads_;   // the same
  std::thread accepting_;
};

}  // namespace yado::vm::testing
