#pragma once
// Another main host is to go on with this memory: every page that is here is given to the servers, too, while the workload runs; then it
// stands still for what was written last, and the servers hold all of it. Its heir opens their sessions under a later epoch (Role::heir).
//
//   WriteBack back(…);  back.begin();  back.round() …  [it stands still, for good]  back.finish();
//
// What a server had of pages that leave by themselves meanwhile is their eviction's business; here counts only what is here at the end.
// Destruction at any time leaves a memory that goes on as before. One thread, not the network's.

#include <condition_variable>
#include <mutex>
#include <optional>

#include "pager/pager.hpp"
#include "pager/split_save.hpp"

namespace yado::pager {

class WriteBack {
 public:
  struct Options {
    std::optional<std::size_t> landing;  ///< not with parity: the server on the next main host: what is here belongs there, as far as it has room
    std::uint64_t local_limit = 0;       ///< in pages: after a move that came to nothing
    std::uint64_t seed = 0;              ///< of the sums
  };
  WriteBack(Pager& pager, RemoteMemory& remote, boost::asio::any_io_executor network, std::vector<SplitSave::Server> servers, Options options);
  ~WriteBack();
  WriteBack(const WriteBack&) = delete;
  WriteBack& operator=(const WriteBack&) = delete;

  /// Errors: conflict (a checkpoint is under way).
  Status begin();
  /// Errors: no_space, unavailable.
  Result<Pager::Round> round();
  /// Afterwards every page is zero, or its newest content is on a server, and no server has an older one.
  Status finish();

 private:
  struct Block;
  Status add(PageNumber page, const std::byte* content);
  void send();
  Status wait_for_stores();
  Status all_sent();
  Error why_missing(PageNumber page) const;
  Result<std::vector<PageNumber>> missing();

  Pager& pager_;
  RemoteMemory& remote_;
  boost::asio::any_io_executor network_;
  std::vector<SplitSave::Server> servers_;
  Options options_;
  std::shared_ptr<Block> filling_;
  bool begun_ = false;
  std::mutex mutex_;
  std::condition_variable stored_;
  unsigned under_way_ = 0;  // guarded by mutex_
  Status failed_;           // guarded by mutex_
};

}  // namespace yado::pager
