#pragma once
// An HTTP/1.1 server for the roles' own APIs (not the gate's data path, which streams both ways: gate/).
// One io_context, one thread; a handler is a coroutine and may suspend for as long as it likes.

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include "base/error.hpp"
#include "os/fd.hpp"
#include "wire/http.hpp"
#include "wire/tls.hpp"

namespace yado::wire {

/// How a handler answers: either one `respond`, or `start` and then any number of `write`s. A handler that returns
/// without answering makes the server answer 500. Writes fail once the peer is gone; the handler then returns.
class Responder {
 public:
  virtual ~Responder() = default;
  virtual boost::asio::awaitable<Status> respond(Response response) = 0;
  /// A chunked answer of unknown length (event streams, files).
  virtual boost::asio::awaitable<Status> start(int status, Headers headers) = 0;
  virtual boost::asio::awaitable<Status> write(std::string_view data) = 0;
  /// True once the peer has closed the connection (so that a stream with nothing to say ends, too).
  virtual bool closed() const = 0;
};

class Server {
 public:
  using Handler = std::function<boost::asio::awaitable<void>(const Request&, Responder&)>;

  struct Limits {
    std::size_t head_bytes = 64 * 1024;
    std::size_t body_bytes = 16 * 1024 * 1024;  ///< a longer body gets 413
  };

  Server(boost::asio::io_context& io, Handler handler, Limits limits);
  ~Server();

  /// Listens on a unix socket with file mode `mode`; replaces a stale socket file, refuses a live one.
  Status listen_unix(const std::string& path, unsigned mode);
  /// Listens on an address and port (0: any free one) with mutual TLS. Returns the port.
  Result<std::uint16_t> listen_tls(const std::string& address, std::uint16_t port, const Identity& identity);
  /// Closes listeners and connections. Running handlers see failing writes.
  void stop();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace yado::wire
