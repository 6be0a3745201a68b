#pragma once
// The servers' side of one pager: a thread with the connections to them, what they hold of the memory, and whose memory it is.
//
//   network.cpp            connections, and the memory that is made of them
//   network_restore.cpp    what it is made of at first: an image, or sessions that are inherited
//   network_heritage.cpp   taken over from the host before, left to the next one, or taken back

#include <atomic>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "image/page_chain.hpp"
#include "pager/block_pool.hpp"
#include "pager/image_server.hpp"
#include "pager/pager.hpp"
#include "pager/parity.hpp"
#include "pager/server_set.hpp"
#include "pager/service.hpp"
#include "pager/split_save.hpp"

namespace yado::pager {

/// One remote memory with everything that hangs on it. Of the network's thread, except for what says otherwise. `config` outlives it.
class Network {
 public:
  explicit Network(const ServiceConfig& config);
  ~Network();
  Network(const Network&) = delete;
  Network& operator=(const Network&) = delete;

  /// Connects to every server, has it load its share, and finds out who has what. On the caller's thread.
  Status open(std::uint64_t seed);

  RemoteMemory& memory() { return *memory_; }
  std::uint64_t seed() const { return seed_; }  ///< of the sums
  boost::asio::any_io_executor executor() { return io_.get_executor(); }
  ServerSet& servers() { return *servers_; }
  /// Of a memory that is owned: from here on its servers may come and go (ServerSet::start), and whoever takes pages along that nobody else has ends
  /// it, if there is something to go back to (Pager::end_if_lost). From another thread.
  void start(Pager& pager);
  const std::shared_ptr<const image::PageChain>& chain() const { return chain_; }
  std::uint64_t pages() const { return config_.memory_bytes / page_bytes; }

  /// For SplitSave.
  Result<SplitSave::Holder> holder(PageNumber page) const;

  /// Runs it on the network's thread and waits.
  template <class Body>
  auto run(Body body) {
    std::promise<decltype(body())> result;
    boost::asio::post(io_, [&] { result.set_value(body()); });
    return result.get_future().get();
  }

  /// From another thread: with parity a page that is being computed or taken in lies nowhere as it is. Who waits until none is has less to compute.
  void wait_for_redundancy();
  /// The same. Error unavailable: what a lost host had is only in the parity, of which another main host would know nothing.
  Status may_leave();
  /// For main host `to`. What its own server has is meant for its local memory, but not with parity. From now on own() decides who goes on.
  Result<std::vector<ServiceConfig::Server>> leave_to(const std::string& to);
  bool owns() const { return holding_ != Holding::read; }
  /// In front of the guest's next step: what is to be inherited is, and what was left is taken back. True: it was only read until now. From another thread.
  Result<bool> own(std::uint64_t epoch, const Pager& pager);

 private:
  struct Session {
    std::string name;
    std::uint64_t pages;
  };
  /// owned: nobody else may want it. read: it is another host's still. left: another host may go on with it.
  enum class Holding { owned, read, left };

  void make_memory(const std::vector<ServerSet::Member>& members);
  void take_in_loaded();
  bool with_parity() const { return config_.parity && !config_.servers.empty(); }
  unsigned columns() const;
  Status connect_all(std::vector<ServerSet::Member>& members);
  Result<ServerSet::Member> connect_member(const ServiceConfig::Server& server, Role role, std::optional<nanoseconds> within = {});
  Result<ServerSet::Member> connect_new(const ServiceConfig::Server& server);
  Result<std::shared_ptr<ServerLink>> connect_parity(const ServiceConfig::Server& server, Role role);
  Result<std::shared_ptr<ServerLink>> connect(const ServiceConfig::Server& server, Role role, const Session& session, std::optional<nanoseconds> within = {});

  Result<std::shared_ptr<const image::PageChain>> open_chain() const;
  Status adopt();
  Status list_of(std::size_t server, PageBits& had);
  std::future<Result<std::uint64_t>> ask_to_load(std::size_t server);
  /// `call(link, told)` on the network's thread.
  template <class T, class Call>
  std::future<Result<T>> ask(std::size_t server, Call call);

  std::vector<ServerSet::Member> living();
  Status inherit_all(std::uint64_t epoch);
  Status take_back(std::uint64_t epoch, const PageBits& here);

  const ServiceConfig& config_;
  std::uint64_t seed_ = 0;
  std::mutex own_mutex_;
  std::atomic<Holding> holding_ = Holding::owned;  // changed with own_mutex_
  std::atomic<std::uint64_t> epoch_;               // the same
  wire::Identity identity_;
  BlockPool blocks_{channel_block_bytes};  // outlives the context
  boost::asio::io_context io_{1};
  boost::asio::executor_work_guard<boost::asio::io_context::executor_type> busy_ = boost::asio::make_work_guard(io_);
  std::thread thread_;
  std::shared_ptr<const image::PageChain> chain_;
  std::unique_ptr<ImageServer> image_;
  std::optional<std::size_t> image_number_;  ///< in Copies
  std::unique_ptr<RemoteMemory> memory_;
  Parity* parity_ = nullptr;   ///< the same, if it is one …
  Copies* copies_ = nullptr;   ///< … or the other
  std::unique_ptr<ServerSet> servers_;
  std::vector<ServiceConfig::Server> missing_;
};

}  // namespace yado::pager
