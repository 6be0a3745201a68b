#pragma once
// The agent's end of a supervisor's socket. One thread: the one that runs the io_context.

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <nlohmann/json_fwd.hpp>

#include "agent/supervisor/protocol.hpp"
#include "base/error.hpp"
#include "os/pidfd.hpp"
#include "workload/instance.hpp"

namespace yado::supervisor {

struct Exec {
  os::ExitStatus status;
  std::string output;
  bool truncated = false;
};
struct Startup {
  nanoseconds listening{0}, settled{0};
};

/// What a supervisor says unasked. Every function may be empty.
struct Events {
  std::function<void(InstanceState)> state;
  std::function<void(std::uint64_t ticket, Epoch epoch)> renew;  ///< ask control, then call `renewed` or `refused`
  std::function<void(Epoch epoch)> lease_over;                   ///< it has frozen the instance
  std::function<void(std::string why)> stands;                   ///< still, although it runs; empty: it goes on
  std::function<void(std::string how, std::string last_log)> exited;
  std::function<void()> closed;  ///< the supervisor is gone; nothing is called after this
};

/// Destruction closes the connection; the supervisor and its instance go on. Calls under way then end with `canceled`.
class Client {
 public:
  /// Error `refused` or `not_found`: no supervisor is there.
  static Result<Client> connect(boost::asio::io_context& io, const std::filesystem::path& directory, Events events);
  Client(Client&&) noexcept;
  Client& operator=(Client&&) noexcept;
  ~Client();

  boost::asio::awaitable<Result<Description>> describe();
  boost::asio::awaitable<Status> start(Epoch epoch);
  boost::asio::awaitable<Status> restore(Epoch epoch, workload::ImageParts image, bool frozen);
  boost::asio::awaitable<Result<Startup>> wait_startup(milliseconds limit);
  boost::asio::awaitable<Status> freeze(Epoch epoch);
  boost::asio::awaitable<Status> thaw(Epoch epoch);
  /// The properties for the image's manifest.
  boost::asio::awaitable<Result<workload::Properties>> checkpoint(Epoch epoch, workload::PartDirectories parts, workload::NewImage image,
                                                                  bool leave_running);
  /// The same; the instance stands frozen afterwards, for `to` to go on with.
  boost::asio::awaitable<Result<workload::Properties>> hand_over(Epoch epoch, workload::PartDirectories parts, workload::Handover how);
  /// Answered when the memory lies so: what is not quite as asked for.
  boost::asio::awaitable<Result<std::string>> resplit(Epoch epoch, Split split);
  boost::asio::awaitable<Result<Exec>> exec(Epoch epoch, std::vector<std::string> command);
  boost::asio::awaitable<Status> signal(Epoch epoch, int number);
  boost::asio::awaitable<Result<os::CgroupUse>> stats();
  boost::asio::awaitable<Result<std::string>> log();
  /// A standby becomes the owner under `epoch`; `lease` 0: none needed. With `thaw` it answers when it runs.
  boost::asio::awaitable<Status> promote(Epoch epoch, milliseconds lease, bool thaw);
  boost::asio::awaitable<Status> set_lease(Epoch epoch, milliseconds lease);
  /// The supervisor ends after this.
  boost::asio::awaitable<Result<os::ExitStatus>> stop(Epoch epoch, milliseconds grace);

  // Answers to `renew`: sent at once, not waited for.
  Status renewed(std::uint64_t ticket, milliseconds ttl);
  Status refused();

  /// Any call of protocol.hpp. The supervisor answers every call or closes the connection, so there is no limit here:
  /// what may take long has one of its own.
  boost::asio::awaitable<Result<nlohmann::json>> call(std::string what, nlohmann::json fields);

 private:
  struct Connection;
  explicit Client(std::shared_ptr<Connection> connection);
  std::shared_ptr<Connection> connection_;
};

}  // namespace yado::supervisor
