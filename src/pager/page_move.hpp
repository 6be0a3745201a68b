#pragma once
// MOVE: copies of pages go from one memory server directly to another.

#include <functional>
#include <memory>

#include "pager/page_store.hpp"
#include "pager/server_link.hpp"

namespace yado::pager {

/// Everything on one executor. Destruction ends it, without a word; but it lives on, whoever has let go of it, until the other server has said WELCOME, or has not.
class PageMove : public std::enable_shared_from_this<PageMove> {
 public:
  struct What {
    boost::asio::any_io_executor executor;
    BlockPool& blocks;
    std::shared_ptr<const PageStore> store;
    PageStore::Owner owner;                         ///< who asked: once another one has taken over, it ends
    std::shared_ptr<const wire::Identity> identity; ///< null: only to a server on this host
    Hello hello;                                    ///< a mover's
    MoveRequest request;
    std::shared_ptr<ServerLink> link;               ///< that an earlier one had, of the same hello and to the same server; null: it is made
  };
  /// How many pages were there to be copied, or why they could not be: then some may have been. `link`: for the next one; null where it is of no use any more.
  using Done = std::function<void(Result<std::uint64_t>, std::shared_ptr<ServerLink> link)>;
  PageMove(What what, Done done) : what_(std::move(what)), done_(std::move(done)), link_(what_.link) {}
  PageMove(const PageMove&) = delete;
  PageMove& operator=(const PageMove&) = delete;
  ~PageMove();
  static void start(const std::shared_ptr<PageMove>& self);
  /// Nobody wants it any more, or is told.
  void end();

 private:
  static boost::asio::awaitable<void> connect(std::shared_ptr<PageMove> self);
  void pump();
  Status send_some();
  void tell(const Result<std::uint64_t>& result);

  What what_;
  Done done_;
  std::shared_ptr<ServerLink> link_;
  std::size_t run_ = 0;        ///< of the request: the one that is next,
  std::uint32_t in_run_ = 0;   ///< and how much of it is done
  unsigned under_way_ = 0;
  std::uint64_t moved_ = 0;
  std::optional<Error> failed_;
};

}  // namespace yado::pager
