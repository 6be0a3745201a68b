#pragma once
// One TCP connection of the gate, to a client or to an instance: a bounded buffer of what came in, at most one read
// under way, and writes that are tried at once and wait only when the kernel takes no more.
//
// The read stays under way while nobody waits for it: that is how a peer that closes is noticed at once. What it reads
// meanwhile (a pipelined request) fills the buffer; with a full buffer it rests, and that is the back-pressure.
//
// Views into unread() stay valid until the next more(): only that moves bytes.

#include <array>
#include <boost/asio/buffer.hpp>
#include <memory>
#include <string_view>

#include "gate/task.hpp"
#include "gate/time_limit.hpp"

namespace yado::gate {

class Peer : public std::enable_shared_from_this<Peer> {
 public:
  /// Told of what happens on the connection while no coroutine waits for it.
  class Watcher {
   public:
    virtual void unasked(Peer& peer) = 0;  ///< something arrived, or the connection ended: see ended()

   protected:
    ~Watcher() = default;
  };

  Peer(Socket socket, std::size_t buffer_bytes);
  virtual ~Peer() = default;

  Socket& socket() { return socket_; }
  /// Non-blocking, no waiting for more to send, a dead peer noticed although nothing is sent. Once, after connecting.
  void tune();

  std::string_view unread() const { return {buffer_.get() + begin_, end_ - begin_}; }
  void consume(std::size_t bytes) { begin_ += bytes; }
  /// Waits until more arrives. False: the connection ended, or interrupt() was called.
  Task<bool> more();
  /// Ends the wait of more().
  void interrupt();
  /// Keeps a read under way.
  void watch();
  void set_watcher(Watcher* watcher) { watcher_ = watcher; }
  bool ended() const { return static_cast<bool>(error_); }
  /// Why: eof when the peer closed.
  const boost::system::error_code& error() const { return error_; }

  /// Writes all of both. A write that has to wait is bounded by what set_stall_guard() named.
  Task<boost::system::error_code> write(std::string_view first, std::string_view second = {});
  void set_stall_guard(TimeLimit::Guard* guard, TimeLimit* limit) { stall_guard_ = guard, stall_limit_ = limit; }

  void shutdown_send();
  void close();
  /// RST: nothing that is still unsent leaves, and the peer cannot take what it got for the whole.
  void reset();
  bool is_open() const { return socket_.is_open(); }

 private:
  void make_room();
  bool read_at_once();
  void read_done(const boost::system::error_code& error, std::size_t bytes);

  Socket socket_;
  std::unique_ptr<char[]> buffer_;
  std::size_t capacity_;
  std::size_t begin_ = 0, end_ = 0;
  bool reading_ = false;
  std::size_t in_this_turn_ = 0;
  bool filled_ = false;  // the last read took all the room there was: more is likely there already
  std::uint64_t interrupts_ = 0;
  boost::system::error_code error_;
  Signal readable_;
  Watcher* watcher_ = nullptr;
  TimeLimit::Guard* stall_guard_ = nullptr;
  TimeLimit* stall_limit_ = nullptr;
};

}  // namespace yado::gate
