#include "wire/connection.hpp"

#include <algorithm>
#include <array>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/check.hpp"
#include "base/log.hpp"
#include "wire/message.hpp"
#include "wire/responder.hpp"

namespace yado::wire {
namespace asio = boost::asio;
using boost::system::error_code;
namespace {

constexpr std::size_t input_bytes = 32 * 1024;
/// A peer that connects and says nothing holds a file descriptor; a TLS handshake takes two round trips.
constexpr auto handshake_limit = std::chrono::seconds(10);
/// How long a refused peer may go on sending, so that it gets to read why (a close with unread input is a reset).
constexpr auto drain_limit = std::chrono::seconds(2);

constexpr auto as_result = asio::as_tuple(asio::use_awaitable);
constexpr auto never = asio::steady_timer::time_point::max();

/// Calls `action` at `limit` unless destroyed before.
class Alarm {
 public:
  template <class Action>
  Alarm(const asio::any_io_executor& executor, std::chrono::nanoseconds limit, Action action) : timer_(executor) {
    timer_.expires_after(limit);
    timer_.async_wait([action = std::move(action), off = off_](const error_code&) {
      if (!*off) action();
    });
  }
  Alarm(const Alarm&) = delete;
  Alarm& operator=(const Alarm&) = delete;
  ~Alarm() { *off_ = true; }  // an expiry that is queued already must do nothing, too

 private:
  asio::steady_timer timer_;
  std::shared_ptr<bool> off_ = std::make_shared<bool>(false);
};

}  // namespace

Connection::Connection(Stream stream, std::string from, bool tls, Server::Limits limits,
                       std::shared_ptr<const Server::Handler> handler)
    : stream_(std::move(stream)),
      from_(std::move(from)),
      tls_(tls),
      limits_(limits),
      handler_(std::move(handler)),
      parser_(Parser::Kind::request, limits.head_bytes),
      input_(std::make_unique_for_overwrite<char[]>(input_bytes)),
      read_event_(stream_.socket().get_executor(), never) {}

asio::awaitable<void> Connection::serve(std::shared_ptr<Connection> self) {
  bool going_on = co_await self->shake_hands();
  while (going_on) {
    const Next next = co_await self->read_request();
    if (next == Next::none) break;
    co_await self->answer();
    going_on = self->keep_alive_ && self->stream_.is_open();  // also after the peer's end: more may have come before it
  }
  self->close();
}

asio::awaitable<bool> Connection::shake_hands() {
  peer_ = "local";
  if (!tls_) co_return true;
  bool late = false;
  error_code error;
  {
    const Alarm alarm(stream_.socket().get_executor(), handshake_limit, [this, self = shared_from_this(), &late] {
      late = true;
      stream_.close();
    });
    error = co_await stream_.handshake(asio::ssl::stream_base::server);
  }
  if (error) {
    if (late)
      log::warn("{}: no TLS handshake within {} s: closed", from_, handshake_limit.count());
    else if (error == asio::error::connection_reset || error == asio::error::eof)
      log::debug("{}: left before the TLS handshake", from_);  // a gate's liveness probe does
    else if (error != asio::error::operation_aborted)
      log::warn("{}: TLS handshake failed: {}", from_, stream_.explain(error));
    co_return false;
  }
  peer_ = stream_.peer_name();
  if (peer_.empty()) log::warn("{}: the peer's certificate has no common name: closed", from_);
  co_return !peer_.empty();
}

asio::awaitable<Connection::Next> Connection::read_request() {
  request_ = Request{};
  for (;;) {
    auto step = parser_.next(unread());
    if (!step) {
      co_await refuse(parser_.refusal_status(), std::move(step.error().message));
      co_return Next::none;
    }
    begin_ += step->consumed;
    switch (step->event) {
      case Parser::Event::need_more:
        if (const bool more = co_await fill(); !more) co_return Next::none;
        break;
      case Parser::Event::head:
        if (const bool wanted = co_await take_head(); !wanted) co_return Next::none;
        break;
      case Parser::Event::body:
        if (request_.body.size() + step->body.size() > limits_.body_bytes) {
          co_await refuse(413, fmt::format("the body is longer than {} bytes", limits_.body_bytes));
          co_return Next::none;
        }
        request_.body.append(step->body);
        break;
      case Parser::Event::end:
        co_return Next::request;
    }
  }
}

/// What a head alone decides: refusals before the body is sent, and the go-ahead for one.
asio::awaitable<bool> Connection::take_head() {
  head_ = std::move(parser_.head());
  keep_alive_ = head_.keep_alive;
  request_.method = head_.method;
  request_.target = std::move(head_.target);
  request_.headers = std::move(head_.headers);
  request_.peer = peer_;
  if (head_.method == "CONNECT") {
    co_await refuse(501, "CONNECT is not offered here");
    co_return false;
  }
  if (head_.body == BodyKind::length) {
    if (head_.content_length > limits_.body_bytes) {
      co_await refuse(413, fmt::format("the body is longer than {} bytes", limits_.body_bytes));
      co_return false;
    }
    request_.body.reserve(static_cast<std::size_t>(head_.content_length));
  }
  if (head_.body != BodyKind::none && head_.minor >= 1 && find(request_.headers, "expect") == "100-continue") {
    const std::array<asio::const_buffer, 1> parts{asio::buffer("HTTP/1.1 100 Continue\r\n\r\n", 25)};
    auto sent = co_await send(parts);
    co_return sent.has_value();
  }
  co_return true;
}

asio::awaitable<void> Connection::answer() {
  ConnectionResponder responder(*this);
  watching_ = true;
  start_read();
  bool failed = false;
  try {
    co_await (*handler_)(request_, responder);
  } catch (const boost::system::system_error& error) {
    failed = true;
    // stop() ends a suspended handler this way; nothing is wrong with it.
    if (error.code() != asio::error::operation_aborted)
      log::error("{} {} from {}: {}", request_.method, request_.target, peer_, error.what());
  } catch (const std::exception& error) {
    failed = true;
    log::error("{} {} from {}: {}", request_.method, request_.target, peer_, error.what());
  }
  watching_ = false;
  on_closed_ = nullptr;
  co_await responder.finish(failed);
}

asio::awaitable<void> Connection::refuse(int status, std::string why) {
  Headers headers;
  headers.emplace_back("content-type", "text/plain");
  why += '\n';
  Framing framing;
  framing.content_length = why.size();
  framing.close = true;
  auto head = response_head(status, headers, framing);
  if (!head) co_return;
  const std::array<asio::const_buffer, 2> parts{asio::buffer(*head), asio::buffer(why)};
  auto sent = co_await send(parts);
  if (sent) co_await drain();
}

asio::awaitable<void> Connection::drain() {
  const Alarm alarm(stream_.socket().get_executor(), drain_limit, [this, self = shared_from_this()] { close(); });
  stream_.shutdown_send();
  for (bool more = true; more;) {
    begin_ = end_;
    more = co_await fill();
  }
}

asio::awaitable<Status> Connection::send(std::span<const asio::const_buffer> parts) {
  if (!stream_.is_open()) co_return fail(Errc::unavailable, "write to {}: the connection is closed", from_);
  YADO_CHECK(!writing_, "two writes at once to {}", from_);
  writing_ = true;
  const error_code error = co_await stream_.write(parts);
  writing_ = false;
  if (!error) co_return Status{};
  const std::string why = stream_.explain(error);
  close();
  co_return fail(Errc::unavailable, "write to {}: {}", from_, why);
}

/// True when there is more input than before; false at its end.
asio::awaitable<bool> Connection::fill() {
  const std::size_t before = end_ - begin_;
  start_read();
  while (reading_ && end_ - begin_ == before) {
    co_await read_event_.async_wait(as_result);
  }
  co_return end_ - begin_ > before;
}

void Connection::start_read() {
  if (reading_ || closed_) return;
  if (begin_ == end_) {
    begin_ = end_ = 0;
  } else if (begin_ > 0 && end_ == input_bytes) {
    std::copy(input_.get() + begin_, input_.get() + end_, input_.get());
    end_ -= begin_;
    begin_ = 0;
  }
  if (end_ == input_bytes) return;
  reading_ = true;
  stream_.read_some(
      asio::buffer(input_.get() + end_, input_bytes - end_),
      [self = shared_from_this()](const error_code& error, std::size_t bytes) { self->read_done(error, bytes); });
}

void Connection::read_done(const error_code& error, std::size_t bytes) {
  reading_ = false;
  end_ += bytes;
  if (error) {
    // A unix peer that only stopped sending (nc -N) may still read; the kernel fails our writes if it does not.
    if (tls_ || error != asio::error::eof) stream_.close();
    lost();
  } else if (watching_) {
    start_read();
  }
  read_event_.cancel();
}

void Connection::lost() {
  closed_ = true;
  if (auto action = std::exchange(on_closed_, nullptr)) action();
}

void Connection::close() {
  stream_.close();
  lost();
}

}  // namespace yado::wire
