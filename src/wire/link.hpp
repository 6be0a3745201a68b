#pragma once
// One connection of a Client, and the time limit of the call that uses it.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <optional>
#include <string>

#include "base/time.hpp"
#include "wire/parser.hpp"
#include "wire/stream.hpp"

namespace yado::wire {

/// Where a client's peer is and who it must be.
struct Target {
  boost::asio::generic::stream_protocol::endpoint endpoint;
  std::string where;  ///< for error texts: "/run/yado/control.sock", "10.0.0.2:7001"
  std::string host;   ///< the Host line
  std::shared_ptr<boost::asio::ssl::context> tls;
  std::string expected_peer;
};

/// A time limit: when it passes, the stream that it guards is closed, so that whatever waits on it ends.
class Deadline {
 public:
  explicit Deadline(const boost::asio::any_io_executor& executor);
  Deadline(const Deadline&) = delete;
  Deadline& operator=(const Deadline&) = delete;
  ~Deadline();

  /// From now on, `limit`. Replaces what was set before.
  void set(nanoseconds limit);
  /// What to close; null for nothing.
  void guard(Stream* stream);
  bool passed() const;

 private:
  struct State;
  boost::asio::steady_timer timer_;
  std::shared_ptr<State> state_;
};

class Link {
 public:
  explicit Link(Stream stream);

  /// Connects and shakes hands. Errors: refused, unavailable, timed_out, permission (TLS, wrong name), canceled.
  static boost::asio::awaitable<Result<std::unique_ptr<Link>>> open(boost::asio::any_io_executor executor,
                                                                    std::shared_ptr<const Target> target,
                                                                    Deadline& deadline);

  boost::asio::awaitable<Status> write(std::span<const boost::asio::const_buffer> parts, const Deadline& deadline);
  /// The next event of the answer; reads as needed. A body piece is valid until the next call.
  boost::asio::awaitable<Result<Parser::Step>> next(const Deadline& deadline);

  Parser& parser() { return parser_; }
  Stream& stream() { return stream_; }
  /// Bytes of the answer seen so far in this call.
  bool answered() const { return answered_; }
  void begin_call(std::string_view method);
  /// Nothing is left over from the last call and the peer has said nothing since.
  bool reusable() const { return begin_ == end_ && parser_.idle() && stream_.is_quiet(); }
  /// Has carried a call before.
  bool used() const { return calls_ > 1; }

 private:
  Error broken(const boost::system::error_code& error, const Deadline& deadline) const;

  Stream stream_;
  Parser parser_;
  std::unique_ptr<char[]> input_;
  std::size_t begin_ = 0, end_ = 0;
  bool answered_ = false;
  std::uint64_t calls_ = 0;
};

}  // namespace yado::wire
