#pragma once
// One memory server is emptied while its pages are in use. Pure but for its two ways; the thread of its Copies.
//
//   pages in the memory file   their copies are dropped
//   all others                 MOVE to servers that have room; what finds none comes into the memory file, as far as there is room
//   zero pages                 are nowhere

#include <functional>
#include <deque>
#include <map>
#include <vector>

#include "pager/remote_memory.hpp"

namespace yado::pager {

class Drain {
 public:
  struct Ways {
    /// MOVE of these pages, which the target was just told to drop: whatever an earlier move left there is gone.
    std::function<void(const Copies::Moving&, PageServer::Done)> move;
    /// Fetches pages nobody waits for: how many of them, from the first on, are coming or there already; the others find no room.
    std::function<std::size_t(const std::vector<PageNumber>&)> bring;
    bool bring_first = false;  ///< into the memory file rather than to another server
  };
  /// Called once: nothing is left there, or it died. Error no_space: what is left found no room anywhere.
  using Done = std::function<void(Status)>;

  /// From here on nothing new is put there. Wants go_on() now, and whenever Copies has settled something.
  Drain(Copies& copies, std::size_t server, Ways ways, Done done);
  Drain(const Drain&) = delete;
  Drain& operator=(const Drain&) = delete;
  void go_on();
  /// The server stays after all; moves under way end as they may. `done` is not called any more.
  void cancel();
  /// Nothing that was asked for it is under way any more: it may be destroyed.
  bool at_rest() const { return over_ && moves_under_way_ == 0; }

 private:
  void step();
  void place_some();
  std::vector<PageNumber> begin_moves(const std::vector<PageNumber>& pages, Copies::Servers avoided);
  void look_at(const std::vector<PageNumber>& pages);
  void move_some();
  void bring_some();
  void bring(std::vector<PageNumber> pages);
  void move(Copies::Moving moving);
  void moved(const Copies::Moving& moving, const Status& status);
  void finish();
  void end(const Status& status);

  Copies& copies_;
  const std::size_t server_;
  Ways ways_;
  Done done_;
  PageNumber next_ = 0;              ///< pages before it were looked at
  std::vector<PageNumber> later_;    ///< busy, or to be moved once more
  std::deque<PageNumber> to_move_;   ///< to other servers: gathered while moves are under way, because a small one takes as long as a large one
  std::deque<PageNumber> to_bring_;  ///< into the memory file
  std::vector<PageNumber> coming_;   ///< on their way here
  std::vector<PageNumber> stuck_;    ///< nobody had room
  std::map<std::size_t, unsigned> failures_;  ///< of moves in a row, by target
  Copies::Servers avoided_ = 0;
  std::optional<Error> why_avoided_;
  unsigned moves_under_way_ = 0;
  bool running_ = false, again_ = false, over_ = false;
};

}  // namespace yado::pager
