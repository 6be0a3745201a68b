#pragma once
// One connected byte stream: a unix socket, TCP, or TLS over TCP. The only place that knows which.
// Asio's templates for reading and writing are compiled in stream.cpp alone.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "base/error.hpp"

namespace yado::wire {

struct IoResult {
  boost::system::error_code error;
  std::size_t bytes = 0;
};

class Stream {
 public:
  using Socket = boost::asio::generic::stream_protocol::socket;

  /// `tls`: null for a plain stream.
  Stream(Socket socket, std::shared_ptr<boost::asio::ssl::context> tls);

  boost::asio::awaitable<boost::system::error_code> handshake(boost::asio::ssl::stream_base::handshake_type side);
  /// Why a handshake failed or a peer broke off, in words for an operator; says which certificate check failed.
  std::string explain(const boost::system::error_code& error) const;
  /// True when `error` is the peer's TLS alert: it did not accept what we showed.
  static bool is_alert(const boost::system::error_code& error);
  /// The common name in the peer's certificate; empty without TLS.
  std::string peer_name() const;

  boost::asio::awaitable<IoResult> read_some(boost::asio::mutable_buffer buffer);
  /// The same, for a read that goes on while a coroutine does something else.
  void read_some(boost::asio::mutable_buffer buffer, std::function<void(boost::system::error_code, std::size_t)> done);
  /// Writes all of `buffers`.
  boost::asio::awaitable<boost::system::error_code> write(std::span<const boost::asio::const_buffer> buffers);

  /// Tells the peer that nothing more comes; reading goes on.
  void shutdown_send();
  /// Ends everything under way with operation_aborted.
  void close();
  bool is_open() const;
  /// False when an idle connection has something to read: an end, an error, or bytes nobody asked for.
  bool is_quiet() const;

  Socket& socket();
  const Socket& socket() const;

 private:
  using TlsStream = boost::asio::ssl::stream<Socket>;
  std::shared_ptr<boost::asio::ssl::context> context_;  // outlives the stream made from it
  std::unique_ptr<Socket> plain_;
  std::unique_ptr<TlsStream> tls_;
};

/// For a TCP socket: no waiting for more to send, and a peer whose machine died is noticed although nothing is sent.
void tune_tcp(Stream::Socket& socket);

}  // namespace yado::wire
