#pragma once
// Calls to agents: one pooled client per host, made anew when the host's address changes.

#include <map>
#include <memory>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <nlohmann/json_fwd.hpp>

#include "base/error.hpp"
#include "model/calls.hpp"
#include "wire/client.hpp"

namespace yado::control {

class Agents {
 public:
  Agents(boost::asio::io_context& io, wire::Identity identity) : io_(io), identity_(std::move(identity)) {}

  /// `id` makes a repetition on a fresh connection harmless. An answer that leaves open whether the call was carried
  /// out is `unavailable` or `timed_out`, never anything else: the core waits for leases because of that.
  boost::asio::awaitable<Result<CallReply>> call(HostId host, Endpoint agent, AgentCall what, std::string id,
                                                 nanoseconds limit);
  /// Anything else of the agent's API.
  boost::asio::awaitable<Result<nlohmann::json>> ask(HostId host, Endpoint agent, wire::Request request,
                                                     nanoseconds limit);

 private:
  struct Peer {
    Endpoint endpoint;
    std::shared_ptr<wire::Client> client;
  };
  Result<std::shared_ptr<wire::Client>> client(const HostId& host, const Endpoint& agent);

  boost::asio::io_context& io_;
  wire::Identity identity_;
  std::map<HostId, Peer> peers_;
};

}  // namespace yado::control
