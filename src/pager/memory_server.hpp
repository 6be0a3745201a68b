#pragma once
// A memory server: keeps pages for pagers on other hosts. docs/formats/page_protocol.md is its protocol.
//
// It has threads of its own: each runs the connections given to it in turn, one more reads images (LOAD), and some write them (SAVE), each for
// one session at a time. A session (one workload's pages) outlives its connections; it ends by END, end(), or with the server.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"
#include "pager/image_archive.hpp"
#include "pager/protocol.hpp"
#include "wire/tls.hpp"

namespace yado::pager {

class MemoryServer {
 public:
  struct Options {
    std::uint64_t capacity_pages = 0;       ///< for all sessions together
    unsigned threads = 1;
    std::shared_ptr<PageArchive> archive;   ///< for SAVE and LOAD; none: they are `unsupported`
    /// Whether this peer (the common name in its certificate, or "local") may have sessions here. None: everybody with a
    /// certificate of the authority. Called on the server's threads.
    std::function<bool(std::string_view peer)> admits;
  };

  explicit MemoryServer(Options options);
  MemoryServer(const MemoryServer&) = delete;
  MemoryServer& operator=(const MemoryServer&) = delete;
  /// Closes everything; the pages are gone.
  ~MemoryServer();

  Status listen_unix(const std::string& path, unsigned mode);
  /// Mutual TLS on a numeric address; port 0: any free one. Returns the port. `identity` is also who this server is to
  /// another one, for MOVE.
  Result<std::uint16_t> listen_tls(const std::string& address, std::uint16_t port, const wire::Identity& identity);

  struct Session {
    std::string name;
    std::string owner;  ///< the peer that opened it
    SessionStats stats;
  };
  std::vector<Session> sessions() const;
  /// Forgets a session and its pages; its connections get errors. Error not_found.
  Status end(const std::string& session);

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace yado::pager
