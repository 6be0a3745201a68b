#pragma once
// An HTTP/1.1 client of one peer: keep-alive, pooled, every call under a time limit that the caller names.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "base/time.hpp"
#include "wire/http.hpp"
#include "wire/tls.hpp"

namespace yado::wire {

/// Any number of calls may be under way at once; each has a connection of its own while it lasts. Calls that are under
/// way when the Client is destroyed go on to their end. A coroutine that is cancelled in a call gets `canceled`.
class Client {
 public:
  /// A longer body of an answer to call() is an error (corrupt): such things are for stream().
  static constexpr std::size_t longest_body_bytes = 64 * 1024 * 1024;

  static Client unix_socket(boost::asio::io_context& io, std::string path);
  /// `address` is numeric (IPv4 or IPv6). `expected_peer`: the common name the peer's certificate must carry; a prefix
  /// when it ends in ':'.
  static Result<Client> tls(boost::asio::io_context& io, std::string address, std::uint16_t port,
                            const Identity& identity, std::string expected_peer);
  static Client plain(boost::asio::io_context& io, std::string address, std::uint16_t port);
  Client(Client&&) noexcept;
  Client& operator=(Client&&) noexcept;
  ~Client();

  /// Errors: refused (nobody listens), timed_out, unavailable (closed under way), corrupt (not HTTP), permission (TLS:
  /// one side does not accept the other), invalid_argument (no valid request; nothing was sent).
  /// An answer with any status is a success here. A kept connection that turns out to be closed before any byte of
  /// the answer is replaced once for GET and for requests that carry "x-request-id" (repeating those is harmless).
  boost::asio::awaitable<Result<Response>> call(Request request, nanoseconds limit);

  /// Streams the body: `sink` gets pieces as they arrive and may refuse by an error. `limit` bounds the time until the
  /// head; `quiet_limit` the time between two pieces. Returns the head (status, headers) when the body ended.
  /// Only the body of a 2xx answer goes to `sink`: that of any other comes back in the Response, as from call().
  boost::asio::awaitable<Result<Response>> stream(Request request, nanoseconds limit, nanoseconds quiet_limit,
                                                  std::function<Status(std::string_view)> sink);

  /// Sends a body of known length piece by piece: `source` gives the next piece, empty = end. `limit` bounds the whole.
  /// Never repeated by itself, as `source` cannot start again.
  boost::asio::awaitable<Result<Response>> upload(Request request, std::uint64_t body_bytes, nanoseconds limit,
                                                  std::function<Result<std::string>()> source);

 private:
  struct Impl;
  explicit Client(std::shared_ptr<Impl> impl);
  std::shared_ptr<Impl> impl_;
};

}  // namespace yado::wire
