#include "gate/peer.hpp"

#include <netinet/in.h>
#include <netinet/tcp.h>

#include <boost/asio/as_tuple.hpp>
#include <cstring>

namespace yado::gate {
namespace asio = boost::asio;
using boost::system::error_code;
namespace {

/// After that many bytes without a wait, the other connections get a turn: a reader whose peer is always faster would
/// keep everybody else waiting.
constexpr std::size_t bytes_per_turn = 1024 * 1024;

void set(int fd, int level, int option, int value) { ::setsockopt(fd, level, option, &value, sizeof value); }

}  // namespace

Peer::Peer(Socket socket, std::size_t buffer_bytes)
    : socket_(std::move(socket)), buffer_(new char[buffer_bytes]), capacity_(buffer_bytes) {}

void Peer::tune() {
  error_code ignored;
  socket_.non_blocking(true, ignored);
  const int fd = socket_.native_handle();
  set(fd, IPPROTO_TCP, TCP_NODELAY, 1);
  set(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set(fd, IPPROTO_TCP, TCP_KEEPIDLE, 15);
  set(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

// ---- reading -------------------------------------------------------------------------------------------------------

void Peer::make_room() {
  if (reading_) return;  // the kernel writes behind end_
  if (begin_ == end_) {
    begin_ = end_ = 0;
  } else if (begin_ > 0 && capacity_ - end_ < capacity_ / 2) {
    std::memmove(buffer_.get(), buffer_.get() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
}

/// A full buffer says that more is there: take it without a trip through the event loop.
bool Peer::read_at_once() {
  if (reading_ || !filled_ || error_) return false;
  if (in_this_turn_ >= bytes_per_turn) {
    in_this_turn_ = 0;
    return false;
  }
  error_code error;
  const std::size_t room = capacity_ - end_;
  const std::size_t bytes = socket_.read_some(asio::buffer(buffer_.get() + end_, room), error);
  filled_ = !error && bytes == room;
  if (error == asio::error::would_block || error == asio::error::try_again) return false;
  error_ = error;
  end_ += bytes;
  in_this_turn_ += bytes;
  return true;
}

Task<bool> Peer::more() {
  make_room();
  const std::uint64_t interrupts = interrupts_;
  if (unread().empty()) read_at_once();
  while (unread().empty() && !error_ && interrupts == interrupts_) {
    watch();
    co_await readable_.wait();
  }
  co_return !unread().empty() && interrupts == interrupts_;
}

void Peer::interrupt() {
  ++interrupts_;
  readable_.wake();
}

void Peer::watch() {
  if (reading_ || error_ || end_ == capacity_) return;
  reading_ = true;
  socket_.async_read_some(
      asio::buffer(buffer_.get() + end_, capacity_ - end_),
      [self = shared_from_this()](const error_code& error, std::size_t bytes) { self->read_done(error, bytes); });
}

void Peer::read_done(const error_code& error, std::size_t bytes) {
  reading_ = false;
  filled_ = !error && bytes == capacity_ - end_;
  end_ += bytes;
  if (error) error_ = error;
  if (readable_.has_waiter()) return readable_.wake_now();
  if (watcher_ != nullptr) watcher_->unasked(*this);
}

// ---- writing -------------------------------------------------------------------------------------------------------

Task<error_code> Peer::write(std::string_view first, std::string_view second) {
  while (!first.empty() || !second.empty()) {
    const std::array<asio::const_buffer, 2> parts{asio::buffer(first), asio::buffer(second)};
    error_code error;
    const std::size_t bytes = socket_.write_some(parts, error);
    const std::size_t of_first = std::min(bytes, first.size());
    first.remove_prefix(of_first);
    second.remove_prefix(bytes - of_first);
    if (error == asio::error::would_block || error == asio::error::try_again) {
      if (stall_guard_ != nullptr) stall_guard_->arm(*stall_limit_);
      auto [failed] = co_await socket_.async_wait(asio::socket_base::wait_write, asio::as_tuple(use_task));
      if (stall_guard_ != nullptr) stall_guard_->disarm();
      if (failed) co_return failed;
    } else if (error) {
      co_return error;
    }
  }
  co_return error_code{};
}

// ---- the end -------------------------------------------------------------------------------------------------------

void Peer::shutdown_send() {
  error_code ignored;
  socket_.shutdown(asio::socket_base::shutdown_send, ignored);
}

void Peer::close() {
  error_code ignored;
  socket_.close(ignored);
  if (!error_) error_ = asio::error::operation_aborted;
  readable_.wake();
}

void Peer::reset() {
  error_code ignored;
  if (socket_.is_open()) socket_.set_option(asio::socket_base::linger(true, 0), ignored);
  close();
}

}  // namespace yado::gate
