#pragma once
// For tests: peers that speak the page protocol, or break it, byte by byte.

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>

#include "base/check.hpp"
#include "os/fd.hpp"
#include "pager/pager_testing.hpp"

namespace yado::pager {

/// A blocking stream. Nothing comes for 20 s: the end, and the test fails by what it then misses.
class RawPeer {
 public:
  explicit RawPeer(os::Fd fd) : fd_(std::move(fd)) {
    const timeval limit{20, 0};
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  }
  static RawPeer connect(const std::string& path) {
    os::Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    YADO_CHECK(path.size() < sizeof address.sun_path, "{}", path);
    path.copy(address.sun_path, path.size());
    EXPECT_EQ(::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0) << path;
    return RawPeer(std::move(fd));
  }

  /// False when the peer has gone.
  bool send(Bytes bytes) const {
    while (!bytes.empty()) {
      const ssize_t sent = ::send(fd_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
      if (sent <= 0) return false;
      bytes = bytes.subspan(static_cast<std::size_t>(sent));
    }
    return true;
  }
  bool send(Operation operation, std::uint64_t id, Bytes body, std::uint16_t flags = 0) const {
    return send(make_frame(operation, id, body, flags));
  }

  struct Answer {
    Header header;
    std::vector<std::byte> body;
    Error error() const { return header.operation == Operation::error ? parse_error(body) : Error{Errc{}, ""}; }
    Contents contents(BatchUse use = BatchUse::answer) const {
      const auto batch = parse_batch(body, use);
      EXPECT_TRUE(batch) << batch.error().text();
      return batch ? contents_of(batch->runs, batch->data) : Contents{};
    }
  };
  /// The next frame, or nothing at the end.
  std::optional<Answer> read() const {
    std::array<std::byte, header_bytes> bytes;
    if (!read_all(bytes)) return std::nullopt;
    const auto header = parse_header(bytes);
    EXPECT_TRUE(header) << header.error().text();
    if (!header) return std::nullopt;
    Answer answer{*header, std::vector<std::byte>(header->body_bytes)};
    if (!read_all(answer.body)) return std::nullopt;
    EXPECT_TRUE(check_frame(bytes, answer.body));
    return answer;
  }
  std::optional<Answer> ask(Operation operation, std::uint64_t id, Bytes body, std::uint16_t flags = 0) const {
    if (!send(operation, id, body, flags)) return std::nullopt;
    return read();
  }
  bool ended() const {
    std::byte one;
    const ssize_t got = ::recv(fd_.get(), &one, 1, 0);
    return got == 0 || (got < 0 && errno == ECONNRESET);
  }
  int fd() const { return fd_.get(); }

 private:
  bool read_all(std::span<std::byte> space) const {
    while (!space.empty()) {
      const ssize_t got = ::recv(fd_.get(), space.data(), space.size(), 0);
      if (got <= 0) return false;
      space = space.subspan(static_cast<std::size_t>(got));
    }
    return true;
  }
  os::Fd fd_;
};

/// A server on a unix socket whose answers the test decides. `script` gets each connection in turn, numbered from 1,
/// on the server's thread; the connection ends when it returns.
class RawServer {
 public:
  using Script = std::function<void(RawPeer&, int)>;
  RawServer(std::string path, Script script) : path_(std::move(path)), script_(std::move(script)) {
    listener_ = os::Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    path_.copy(address.sun_path, path_.size());
    YADO_CHECK(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0, "{}", path_);
    YADO_CHECK(::listen(listener_.get(), 64) == 0, "{}", path_);
    thread_ = std::thread([this] {
      for (int number = 1;; ++number) {
        os::Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!fd.valid()) return;
        {
          const std::lock_guard lock(mutex_);
          current_ = fd.get();
          if (ending_) return;
        }
        RawPeer peer(std::move(fd));
        script_(peer, number);
        connections = number;
        const std::lock_guard lock(mutex_);
        current_ = -1;
      }
    });
  }
  ~RawServer() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    {
      const std::lock_guard lock(mutex_);
      ending_ = true;
      if (current_ >= 0) ::shutdown(current_, SHUT_RDWR);
    }
    thread_.join();
    ::unlink(path_.c_str());
  }
  std::atomic<int> connections = 0;  ///< that have ended

 private:
  std::string path_;
  Script script_;
  os::Fd listener_;
  std::mutex mutex_;
  int current_ = -1;     // guarded by mutex_
  bool ending_ = false;  // guarded by mutex_
  std::thread thread_;
};

/// Between a client and the server at `to`: gives on what either says, through `meddle`, which may change the bytes, or
/// say that both are cut off.
class Proxy {
 public:
  using Meddle = std::function<bool(std::span<std::byte> bytes)>;
  Proxy(const std::string& path, std::string to, Meddle meddle)
      : server_(path, [to = std::move(to), meddle = std::move(meddle)](RawPeer& client, int) {
          const RawPeer server = RawPeer::connect(to);
          std::array<pollfd, 2> ends{pollfd{client.fd(), POLLIN, 0}, pollfd{server.fd(), POLLIN, 0}};
          std::vector<std::byte> bytes(16 * 1024);
          while (::poll(ends.data(), ends.size(), -1) > 0)
            for (std::size_t from = 0; from < 2; ++from) {
              if (ends[from].revents == 0) continue;
              const ssize_t got = ::recv(ends[from].fd, bytes.data(), bytes.size(), 0);
              if (got <= 0) return;
              const std::span some(bytes.data(), static_cast<std::size_t>(got));
              if (!meddle(some) || !(from == 0 ? server : client).send(some)) return;
            }
        }) {}

 private:
  RawServer server_;
};

}  // namespace yado::pager
