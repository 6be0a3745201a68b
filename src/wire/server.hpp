#pragma once
// An HTTP/1.1 server for the roles' own APIs (not the gate's data path, which streams both ways: gate/).
// One io_context, one thread; a handler is a coroutine and may suspend for as long as it likes.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "os/fd.hpp"
#include "wire/http.hpp"
#include "wire/tls.hpp"

namespace yado::wire {

/// How a handler answers: either one `respond`, or `start` and then any number of `write`s, one at a time. A handler
/// that returns without answering makes the server answer 500. Writes fail once the peer is gone; the handler then
/// returns. A handler that throws after `start` breaks the answer off, as abort() does.
class Responder {
 public:
  virtual ~Responder() = default;
  virtual boost::asio::awaitable<Status> respond(Response response) = 0;
  /// A chunked answer of unknown length (event streams, files); with a "content-length" among the headers one of that
  /// length, which is broken off when the handler returns before having written all of it.
  virtual boost::asio::awaitable<Status> start(int status, Headers headers) = 0;
  virtual boost::asio::awaitable<Status> write(std::string_view data) = 0;
  /// True once the peer has closed the connection (so that a stream with nothing to say ends, too).
  virtual bool closed() const = 0;
  /// Ends a started answer so that the peer sees that it is not complete.
  virtual void abort() {}
  /// Calls `action` when the peer closes while the handler runs (at once if it has): for a handler that waits for
  /// something else, to cancel that wait. One action per request.
  virtual void on_closed(std::function<void()> action) { (void)action; }
};

class Server {
 public:
  using Handler = std::function<boost::asio::awaitable<void>(const Request&, Responder&)>;

  struct Limits {
    std::size_t head_bytes = 64 * 1024;         ///< a longer head gets 431
    std::size_t body_bytes = 16 * 1024 * 1024;  ///< a longer body gets 413
  };

  /// What `handler` uses must live until `io` has run out of the server's work after stop().
  Server(boost::asio::io_context& io, Handler handler, Limits limits);
  /// stop().
  ~Server();

  /// Listens on a unix socket with file mode `mode`; replaces a stale socket file, refuses a live one.
  Status listen_unix(const std::string& path, unsigned mode);
  /// Listens on a numeric address and port (0: any free one) with mutual TLS. Returns the port.
  Result<std::uint16_t> listen_tls(const std::string& address, std::uint16_t port, const Identity& identity);
  /// The same on sockets that are bound and listen already (socket activation); a unix socket's file is left alone.
  Status listen_unix(os::Fd listener);
  Status listen_tls(os::Fd listener, const Identity& identity);
  /// Closes listeners and connections. Running handlers see failing writes; one that is suspended in something else
  /// is cancelled: its co_await throws boost::system::system_error(operation_aborted), which it should let pass.
  /// After that, `io` has no work of the server any more.
  void stop();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace yado::wire
