#pragma once
// What an Agent is made of. For agent.cpp and api.cpp only.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <deque>
#include <map>

#include "agent/agent.hpp"
#include "agent/core/agent_core.hpp"
#include "agent/heartbeat.hpp"
#include "agent/images.hpp"
#include "agent/instances.hpp"
#include "agent/memory_host.hpp"
#include "agent/promise.hpp"
#include "agent/side_calls.hpp"
#include "agent/state_directory.hpp"
#include "agent/workers.hpp"
#include "net/host_network.hpp"
#include "os/fd.hpp"
#include "wire/client.hpp"
#include "wire/listen.hpp"
#include "wire/server.hpp"
#include "wire/tls.hpp"

namespace yado::agent {

struct Agent::Impl : std::enable_shared_from_this<Agent::Impl> {
  Impl(boost::asio::io_context& context, Config wanted);

  // agent.cpp: start-up, in this order.
  boost::asio::awaitable<Status> run(std::function<void(std::uint16_t)> listening);
  boost::asio::awaitable<Status> set_up();
  Status bind_api();
  Status offer_memory();
  boost::asio::awaitable<void> check_criu();
  Status recover();
  boost::asio::awaitable<void> adopt_all();
  void stop();

  /// Hands a call to the core; the answer comes when the core gives it.
  boost::asio::awaitable<Result<CallReply>> call(AgentCall what);
  /// Takes the core's actions and carries them out in order, one after the other where it matters.
  void pump();
  boost::asio::awaitable<void> carry_out_all();
  boost::asio::awaitable<void> persist_fence(PersistFence fence);
  boost::asio::awaitable<void> persist_spec(PersistSpec spec);
  boost::asio::awaitable<bool> may_launch(WorkloadId workload, InstanceId instance);
  boost::asio::awaitable<void> do_launch(Launch wish, Instant since);
  boost::asio::awaitable<void> do_promote(Promote wish, Instant since);
  boost::asio::awaitable<void> do_freeze(Freeze wish);
  boost::asio::awaitable<void> do_kill(Kill wish);
  boost::asio::awaitable<void> do_side(Side side);
  void do_reply(Reply reply);

  void tell_images();
  std::string report();
  void heartbeat_answered(const HeartbeatAnswer& answer);
  void changed();
  boost::asio::awaitable<void> tell_exited(InstanceId id, WorkloadId workload, std::string how);
  boost::asio::awaitable<void> renew(InstanceId id, WorkloadId workload, Epoch epoch, std::uint64_t ticket);
  boost::asio::awaitable<void> watch_images();
  void spawn(boost::asio::awaitable<void> work);

  // api.cpp
  static boost::asio::awaitable<void> serve(std::shared_ptr<Impl> self, const wire::Request& request,
                                            wire::Responder& responder);
  boost::asio::awaitable<wire::Response> answer(const wire::Request& request);
  boost::asio::awaitable<wire::Response> answer_call(const wire::Request& request, std::string kind);
  boost::asio::awaitable<wire::Response> answer_image(const wire::Request& request, ImageId id, bool memory);
  boost::asio::awaitable<wire::Response> answer_use(const wire::Request& request, ImageId id);
  boost::asio::awaitable<wire::Response> answer_instance(const wire::Request& request, InstanceId id, std::string what);
  Status may_call(const std::string& peer, const AgentCall& what) const;

  boost::asio::io_context& io;
  Config config;
  std::string boot;
  AgentCore core;
  Workers workers{4};
  std::optional<StateDirectory> directory;
  std::optional<net::HostNetwork> network;
  wire::Identity identity;
  std::unique_ptr<Images> images;
  std::unique_ptr<Instances> instances;
  std::unique_ptr<SideCalls> sides;
  std::unique_ptr<pager::MemoryServer> memory;  ///< after what its archive uses
  Endpoint memory_endpoint;
  std::unique_ptr<wire::Client> control;
  std::unique_ptr<wire::Server> server;
  std::unique_ptr<Heartbeat> heartbeat;
  os::Fd listener;  ///< of the API until all is adopted: who calls it before waits
  std::uint16_t port = 0;

  CallId last_call = 0;
  std::map<CallId, Promise<Result<CallReply>>> waiting;
  std::deque<std::pair<Action, Instant>> todo;
  bool pumping = false;
  std::map<WorkloadId, Epoch> unsaved_fences;  ///< could not be made durable: nothing is launched under them
  boost::asio::steady_timer image_timer;
  bool stopped = false;
};

}  // namespace yado::agent
