#include "pager/channel.hpp"

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cstring>

#include "base/check.hpp"

namespace yado::pager {
namespace asio = boost::asio;
namespace {
/// One gathering write: enough to keep a link busy, little enough for a new urgent frame to follow soon.
constexpr std::size_t most_write_bytes = 512 * 1024;
constexpr auto never = asio::steady_timer::time_point::max();
}  // namespace

Channel::Channel(std::shared_ptr<wire::Stream> stream, asio::any_io_executor executor, BlockPool& blocks)
    : stream_(std::move(stream)), blocks_(blocks), block_(blocks.take()), something_to_send_(executor, never),
      less_to_send_(executor, never) {
  YADO_CHECK(blocks.block_bytes() >= channel_block_bytes, "blocks of {} bytes", blocks.block_bytes());
}

Result<std::optional<Frame>> Channel::next_in_block() {
  if (end_ - begin_ < header_bytes) return std::nullopt;
  const std::span<const std::byte, header_bytes> bytes(block_.get() + begin_, header_bytes);
  auto header = parse_header(bytes);
  if (!header) return std::unexpected(header.error());
  if (end_ - begin_ < header_bytes + header->body_bytes) return std::nullopt;
  const Bytes body(block_.get() + begin_ + header_bytes, header->body_bytes);
  if (auto good = check_frame(bytes, body); !good) return std::unexpected(good.error());
  begin_ += header_bytes + body.size();
  return Frame{*header, body, block_};
}

/// Frames that were handed out still lie in the block: what cannot go on behind them moves to another one.
void Channel::make_space(std::size_t bytes) {
  if (begin_ == end_ && block_.use_count() == 1) begin_ = end_ = 0;
  if (begin_ + bytes <= blocks_.block_bytes()) return;
  auto next = blocks_.take();
  std::memcpy(next.get(), block_.get() + begin_, end_ - begin_);
  block_ = std::move(next);
  end_ -= begin_;
  begin_ = 0;
}

asio::awaitable<Result<Frame>> Channel::receive(std::shared_ptr<Channel> self) {
  for (;;) {
    auto frame = self->next_in_block();
    if (!frame) co_return std::unexpected(frame.error());
    if (*frame) co_return std::move(**frame);
    std::size_t wanted = header_bytes;
    if (self->end_ - self->begin_ >= header_bytes) {
      const std::span<const std::byte, header_bytes> bytes(self->block_.get() + self->begin_, header_bytes);
      wanted += parse_header(bytes)->body_bytes;
    }
    self->make_space(wanted);
    if (self->closed_) co_return fail(Errc::unavailable, "the connection was closed");
    const asio::mutable_buffer space(self->block_.get() + self->end_, self->blocks_.block_bytes() - self->end_);
    const wire::IoResult got = co_await self->stream_->read_some(space);
    if (got.error) co_return fail(Errc::unavailable, "{}", self->stream_->explain(got.error));
    self->end_ += got.bytes;
  }
}

void Channel::send(Operation operation, std::uint64_t id, std::vector<std::byte> head, std::vector<Bytes> data,
                   std::shared_ptr<const void> hold, std::uint16_t flags) {
  if (closed_) return;
  Outgoing frame;
  std::vector<Bytes> parts{Bytes(head)};
  parts.insert(parts.end(), data.begin(), data.end());
  frame.header = make_header(operation, id, parts, flags);
  frame.bytes = header_bytes;
  for (const Bytes part : parts) frame.bytes += part.size();
  frame.head = std::move(head);
  frame.data = std::move(data);
  frame.hold = std::move(hold);
  unsent_bytes_ += frame.bytes;
  out_.push_back(std::move(frame));
  something_to_send_.cancel();
}

asio::awaitable<void> Channel::write_loop(std::shared_ptr<Channel> self) {
  while (!self->closed_) {
    if (self->out_.empty()) {
      co_await self->something_to_send_.async_wait(asio::as_tuple(asio::use_awaitable));
      continue;
    }
    std::vector<asio::const_buffer> buffers;
    std::size_t frames = 0, bytes = 0;
    for (const Outgoing& frame : self->out_) {
      if (frames > 0 && bytes + frame.bytes > most_write_bytes) break;
      buffers.push_back(asio::buffer(frame.header));
      if (!frame.head.empty()) buffers.push_back(asio::buffer(frame.head));
      for (const Bytes part : frame.data) buffers.emplace_back(part.data(), part.size());
      bytes += frame.bytes;
      ++frames;
    }
    const auto error = co_await self->stream_->write(buffers);
    if (error) {
      self->close();
      break;
    }
    self->out_.erase(self->out_.begin(), self->out_.begin() + static_cast<long>(frames));
    self->unsent_bytes_ -= bytes;
    self->less_to_send_.cancel();
  }
}

asio::awaitable<void> Channel::drained(std::shared_ptr<Channel> self, std::size_t most) {
  while (self->unsent_bytes_ > most && !self->closed_)
    co_await self->less_to_send_.async_wait(asio::as_tuple(asio::use_awaitable));
}

void Channel::close() {
  closed_ = true;
  stream_->close();
  something_to_send_.cancel();
  less_to_send_.cancel();
}

}  // namespace yado::pager
