#include "control/agents.hpp"

#include <nlohmann/json.hpp>

#include "api/answer.hpp"
#include "api/calls.hpp"

namespace yado::control {
namespace asio = boost::asio;

Result<std::shared_ptr<wire::Client>> Agents::client(const HostId& host, const Endpoint& agent) {
  if (agent.address.empty()) return fail(Errc::unavailable, "host {} has not said yet where its agent listens", host);
  Peer& peer = peers_[host];
  if (!peer.client || peer.endpoint != agent) {
    YADO_ASSIGN(wire::Client made,
                wire::Client::tls(io_, agent.address, agent.port, identity_, "agent:" + host.str()),
                fmt::format("agent of {}", host));
    peer = Peer{agent, std::make_shared<wire::Client>(std::move(made))};
  }
  return peer.client;
}

asio::awaitable<Result<nlohmann::json>> Agents::ask(HostId host, Endpoint agent, wire::Request request,
                                                    nanoseconds limit) {
  auto peer = client(host, agent);
  if (!peer) co_return std::unexpected(peer.error());
  const std::shared_ptr<wire::Client> kept = *peer;  // the host may move to another address meanwhile
  auto response = co_await kept->call(std::move(request), limit);
  if (!response) {
    // What is not HTTP may come from an agent that did what it was asked.
    const Errc code = response.error().code;
    co_return fail(code == Errc::corrupt || code == Errc::canceled ? Errc::unavailable : code, "agent of {}: {}", host,
                   response.error().message);
  }
  auto body = api::body_of(*response);
  if (!body && response->status / 100 == 2) co_return fail(Errc::unavailable, "agent of {}: {}", host, body.error().message);
  co_return body;
}

asio::awaitable<Result<CallReply>> Agents::call(HostId host, Endpoint agent, AgentCall what, std::string id,
                                                nanoseconds limit) {
  wire::Request request;
  request.method = "POST";
  request.target = fmt::format("/v1/calls/{}", name_of(what));
  request.headers.emplace_back("content-type", "application/json");
  request.headers.emplace_back("x-request-id", std::move(id));
  nlohmann::json json = what;
  request.body = api::dump(json);
  const std::string from = fmt::format("agent of {}", host);
  auto body = co_await ask(std::move(host), std::move(agent), std::move(request), limit);
  if (!body) co_return std::unexpected(body.error());
  auto reply = api::from_json_value<CallReply>(*body);
  if (!reply) co_return fail(Errc::unavailable, "{}: {}", from, reply.error().message);
  co_return reply;
}

}  // namespace yado::control
