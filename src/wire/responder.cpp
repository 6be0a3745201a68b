#include "wire/responder.hpp"

#include <array>

#include "base/check.hpp"
#include "wire/message.hpp"

namespace yado::wire {
namespace asio = boost::asio;

asio::awaitable<Status> ConnectionResponder::respond(Response response) {
  YADO_CHECK(state_ == State::none, "a second answer to {} {}", connection_.request_.method,
             connection_.request_.target);
  state_ = State::done;
  const bool bodyless = response.status == 204 || response.status == 304;
  Framing framing;
  if (!bodyless) framing.content_length = response.body.size();
  framing.close = !connection_.keep_alive_;
  auto head = response_head(response.status, response.headers, framing);
  if (!head) {
    state_ = State::none;  // nothing went out: the server answers 500
    co_return context(head.error(), "answer");
  }
  const bool with_body = !bodyless && connection_.head_.method != "HEAD";
  const std::array<asio::const_buffer, 2> parts{asio::buffer(*head), asio::buffer(response.body)};
  co_return co_await connection_.send(std::span(parts).first(with_body ? 2 : 1));
}

asio::awaitable<Status> ConnectionResponder::start(int status, Headers headers) {
  YADO_CHECK(state_ == State::none, "a second answer to {} {}", connection_.request_.method,
             connection_.request_.target);
  Framing framing;
  if (const std::string_view length = find(headers, "content-length"); !length.empty()) {
    std::uint64_t bytes = 0;
    for (char c : length) {
      if (c < '0' || c > '9') co_return fail(Errc::invalid_argument, "content-length \"{}\" is not a number", length);
      bytes = bytes * 10 + static_cast<std::uint64_t>(c - '0');
    }
    framing.content_length = left_ = bytes;
    state_ = State::counted;
  } else if (connection_.head_.minor >= 1) {
    framing.chunked = true;
    state_ = State::chunked;
  } else {
    connection_.keep_alive_ = false;  // HTTP/1.0 knows no chunks: the close is the end
    state_ = State::until_close;
  }
  framing.close = !connection_.keep_alive_;
  auto head = response_head(status, headers, framing);
  if (!head) {
    state_ = State::none;
    co_return context(head.error(), "answer");
  }
  if (connection_.head_.method == "HEAD") left_ = 0, silent_ = true;
  const std::array<asio::const_buffer, 1> parts{asio::buffer(*head)};
  co_return co_await connection_.send(parts);
}

asio::awaitable<Status> ConnectionResponder::write(std::string_view data) {
  if (!streaming()) co_return fail(Errc::invalid_argument, "write() without a successful start()");
  if (!connection_.stream_.is_open()) co_return fail(Errc::unavailable, "the peer closed the connection");
  if (data.empty() || silent_) co_return Status{};  // an empty chunk would be the end
  if (state_ == State::chunked) {
    const std::string size = fmt::format("{:x}\r\n", data.size());
    const std::array<asio::const_buffer, 3> parts{asio::buffer(size), asio::buffer(data), asio::buffer("\r\n", 2)};
    co_return co_await connection_.send(parts);
  }
  if (state_ == State::counted) {
    if (data.size() > left_) co_return fail(Errc::invalid_argument, "more body than the announced content-length");
    left_ -= data.size();
  }
  const std::array<asio::const_buffer, 1> parts{asio::buffer(data)};
  co_return co_await connection_.send(parts);
}

bool ConnectionResponder::closed() const { return connection_.closed_; }

void ConnectionResponder::abort() { connection_.close(); }

void ConnectionResponder::on_closed(std::function<void()> action) {
  if (connection_.closed_) return action();
  connection_.on_closed_ = std::move(action);
}

asio::awaitable<void> ConnectionResponder::finish(bool failed) {
  if (state_ == State::none) {
    Response response;
    response.status = 500;
    response.headers.emplace_back("content-type", "text/plain");
    response.body = failed ? "the handler of this request failed\n" : "this request got no answer\n";
    auto sent = co_await respond(std::move(response));
    if (!sent) connection_.close();
    co_return;
  }
  // A body that breaks off must not look complete.
  if (streaming() && (failed || (state_ == State::counted && left_ > 0))) {
    connection_.close();
    co_return;
  }
  if (state_ == State::chunked && !silent_) {
    const std::array<asio::const_buffer, 1> parts{asio::buffer("0\r\n\r\n", 5)};
    auto sent = co_await connection_.send(parts);
    if (!sent) connection_.close();
  }
}

bool ConnectionResponder::streaming() const {
  return state_ == State::counted || state_ == State::chunked || state_ == State::until_close;
}

}  // namespace yado::wire
