#pragma once
// The memory servers of one memory, which come and go while it is in use. What they are told lives on the network's thread;
// marked calls come from any other one and wait.
//
// One that falls silent while the others answer, and have all that it has, is given up long before its link's patience ends: the guest
// waits for it meanwhile. Whoever is lost and still wanted is taken up again as soon as it answers, with nothing on it: until then, or until
// somebody names others, the memory does with less redundancy.

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/post.hpp>
#include <condition_variable>
#include <functional>
#include <future>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "pager/drain.hpp"
#include "pager/pager.hpp"
#include "pager/server_link.hpp"
#include "pager/service.hpp"
#include "pager/split_save.hpp"

namespace yado::pager {

class Parity;

class ServerSet {
 public:
  /// By its number in Copies, or Parity.
  struct Member {
    std::shared_ptr<ServerLink> link;  ///< null: the image on this host
    std::shared_ptr<ServerLink> parity;  ///< its session for parity, where there is one
    ServiceConfig::Server told;
    bool leaving = false;              ///< is being emptied
    bool gone = false;                 ///< was emptied, its session has ended
  };
  /// Connects to one, on any thread but the network's: a member that uses it alone.
  using Connect = std::function<Result<Member>(const ServiceConfig::Server&)>;
  /// `memory` was made of these, in their order, and on `network`; both outlive this.
  ServerSet(boost::asio::any_io_executor network, RemoteMemory& memory, std::vector<Member> members, Connect connect);
  ~ServerSet() { stop_taking_up(); }
  ServerSet(const ServerSet&) = delete;
  ServerSet& operator=(const ServerSet&) = delete;

  const std::vector<Member>& members() const { return members_; }  ///< on the network's thread

  // ---- from other threads ----
  /// Pages that find no room elsewhere come to `pager`. Those that were to leave from the start begin to. `missing` were wanted and did not
  /// answer: they are taken up when they do.
  void start(Pager& pager, const std::vector<ServiceConfig::Server>& missing = {});
  /// On the network's thread whenever one has died and what was asked of it is answered; now, if one is dead already.
  void on_death(std::function<void()> action);
  /// These are to hold the memory from now on: the missing ones are connected, all others are emptied. `just_before` is called when nothing can
  /// fail any more, in front of the first page that goes (it may come here). Returns what is not as asked
  /// for, for people. Errors, and nothing has changed: conflict (a checkpoint is under way), no_space (too many), unsupported (too few for parity), those
  /// of connecting.
  Result<std::vector<std::string>> change(const std::vector<ServiceConfig::Server>& wanted, const std::function<void()>& just_before);
  /// Waits until nobody is being emptied. Error no_space: since the last change somebody could not be, and stays.
  Status drained();
  /// As long as it is there, the set does not change: for a checkpoint, or a move.
  class Unchanged {
   public:
    Unchanged(Unchanged&& other) noexcept : set_(std::exchange(other.set_, nullptr)), servers_(std::move(other.servers_)) {}
    ~Unchanged();
    const std::vector<SplitSave::Server>& servers() const { return servers_; }

   private:
    friend ServerSet;
    Unchanged(ServerSet& set, std::vector<SplitSave::Server> servers) : set_(&set), servers_(std::move(servers)) {}
    ServerSet* set_;
    std::vector<SplitSave::Server> servers_;
  };
  /// Waits until nobody is being emptied. Error conflict: somebody has it unchanged already.
  Result<Unchanged> hold_unchanged();
  /// Nobody needs the pages any more. Waits for each server's answer, or death.
  void end_sessions();

 private:
  /// Runs it there and waits.
  template <class Body>
  auto on_network(Body body) {
    const auto task = std::make_shared<std::packaged_task<decltype(body())()>>(std::move(body));
    auto result = task->get_future();
    boost::asio::post(network_, [task] { (*task)(); });
    return result.get();
  }
  std::optional<std::size_t> member_for(const ServiceConfig::Server& server) const;
  struct Plan {
    std::vector<ServiceConfig::Server> missing;
    std::vector<std::size_t> stay, were_leaving;
    std::vector<std::pair<std::size_t, ServiceConfig::Server>> want_more, want_less;  ///< quota, of those that stay
  };
  Result<Plan> plan(const std::vector<ServiceConfig::Server>& wanted);
  Result<std::vector<Member>> connect_all(const std::vector<ServiceConfig::Server>& missing);
  void end_all(std::vector<Member> members);
  Status set_quota(std::size_t number, std::uint64_t bytes);
  void add(Member member);
  // server_set_lost.cpp
  void watch(std::size_t number);
  void silent(std::size_t number);
  void lost(std::size_t number);
  void tell_of_death();
  void take_up_later(ServiceConfig::Server server);
  void take_up_lost(const std::stop_token& stop);
  bool take_up(const ServiceConfig::Server& server);
  void stop_taking_up();
  bool is_lost(const ServiceConfig::Server& server) const;  // mutex_ is held
  static bool same_place(const ServiceConfig::Server& one, const ServiceConfig::Server& other);

  void drain(std::size_t number, bool bring_first);
  bool keep(std::size_t number);
  void drained(std::size_t number, const Status& status);
  void move(const Copies::Moving& moving, PageServer::Done done);
  void note(const std::function<void()>& change);

  boost::asio::any_io_executor network_;
  RemoteMemory& memory_;
  Copies* copies_;
  Parity* parity_;                               // of these two the one that memory_ is
  Connect connect_;
  Pager* pager_ = nullptr;                       // the network's thread
  std::function<void()> on_death_;               // the network's thread
  std::vector<Member> members_;                  // the network's thread
  std::vector<std::pair<std::size_t, std::unique_ptr<Drain>>> drains_;  // the network's thread
  bool held_ = false;                            // the network's thread: somebody has it Unchanged

  std::mutex change_mutex_;                      ///< one change at a time
  std::mutex mutex_;
  std::condition_variable something_ended_;
  unsigned leaving_ = 0, closing_ = 0;           // guarded by mutex_
  std::vector<std::string> could_not_leave_;     // guarded by mutex_
  std::vector<ServiceConfig::Server> lost_;      // guarded by mutex_: wanted, and without a session
  std::optional<ServiceConfig::Server> taking_up_;  // guarded by mutex_: of the lost the one that is being connected
  bool ending_ = false;                          // guarded by mutex_: nobody is taken up any more
  std::condition_variable_any something_lost_;
  std::jthread taking_up_thread_;                // guarded by mutex_
};

}  // namespace yado::pager
