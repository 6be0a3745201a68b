#pragma once
// Frames over one connected stream: either side of a connection. Everything on the stream's own executor, one thread.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "pager/block_pool.hpp"
#include "pager/protocol.hpp"
#include "wire/stream.hpp"

namespace yado::pager {

struct Frame {
  Header header;
  Bytes body;                               ///< a view into `hold`
  std::shared_ptr<const std::byte[]> hold;  ///< may be kept, on any thread
};

/// Large enough for any frame and what was read behind it.
constexpr std::size_t channel_block_bytes = most_frame_bytes + 256 * 1024;

class Channel : public std::enable_shared_from_this<Channel> {
 public:
  /// `blocks` of channel_block_bytes; they outlive the executor's context.
  Channel(std::shared_ptr<wire::Stream> stream, boost::asio::any_io_executor executor, BlockPool& blocks);

  /// The next frame, checked. Errors: corrupt, unsupported (its bytes are no frame: say so and close), unavailable.
  static boost::asio::awaitable<Result<Frame>> receive(std::shared_ptr<Channel> self);

  /// Queues a frame whose body is `head` followed by `data`, which `hold` keeps alive. Ignored once closed.
  void send(Operation operation, std::uint64_t id, std::vector<std::byte> head, std::vector<Bytes> data = {},
            std::shared_ptr<const void> hold = nullptr, std::uint16_t flags = 0);
  /// Sends what is queued, until it is closed. Spawn it once.
  static boost::asio::awaitable<void> write_loop(std::shared_ptr<Channel> self);
  std::size_t unsent_bytes() const { return unsent_bytes_; }
  /// Waits until at most so many bytes are unsent, or it is closed.
  static boost::asio::awaitable<void> drained(std::shared_ptr<Channel> self, std::size_t most);

  void close();
  bool closed() const { return closed_; }

 private:
  struct Outgoing {
    std::array<std::byte, header_bytes> header;
    std::vector<std::byte> head;
    std::vector<Bytes> data;
    std::shared_ptr<const void> hold;
    std::size_t bytes = 0;
  };
  Result<std::optional<Frame>> next_in_block();
  void make_space(std::size_t bytes);

  std::shared_ptr<wire::Stream> stream_;  ///< kept while anything of it is under way
  BlockPool& blocks_;
  std::shared_ptr<std::byte[]> block_;
  std::size_t begin_ = 0, end_ = 0;  ///< what was read and not taken, in block_
  std::deque<Outgoing> out_;
  std::size_t unsent_bytes_ = 0;
  boost::asio::steady_timer something_to_send_, less_to_send_;
  bool closed_ = false;
};

}  // namespace yado::pager
