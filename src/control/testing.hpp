#pragma once
// For control_test.cpp: a directory that goes, an agent that does as it is told, and everybody's clients. All of it
// runs in the test's one thread.

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <boost/asio/io_context.hpp>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "api/answer.hpp"
#include "api/calls.hpp"
#include "control/control.hpp"
#include "wire/client.hpp"
#include "wire/run.hpp"
#include "wire/server.hpp"

namespace yado::control::testing {

namespace asio = boost::asio;
using nlohmann::json;

class TemporaryDirectory {
 public:
  TemporaryDirectory() {
    std::string name = (std::filesystem::temp_directory_path() / "yado-control.XXXXXX").native();
    path_ = ::mkdtemp(name.data());
  }
  ~TemporaryDirectory() { std::filesystem::remove_all(path_); }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  TemporaryDirectory& operator=(const TemporaryDirectory&) = delete;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

/// Answers every call as `reply` says and remembers it.
class FakeAgent {
 public:
  FakeAgent(asio::io_context& io, const std::filesystem::path& state, const std::string& host, std::uint16_t control_port)
      : host_(host), server_(io, [this](const wire::Request& r, wire::Responder& p) { return serve(r, p); }, {}) {
    const auto directory = state / ("fake-" + host);
    EXPECT_TRUE(issue(state, "agent:" + host, directory));
    auto identity = wire::Identity::load(directory);
    EXPECT_TRUE(identity) << identity.error().text();
    port_ = server_.listen_tls("127.0.0.1", 0, *identity).value();
    auto client = wire::Client::tls(io, "127.0.0.1", control_port, *identity, "control:");
    EXPECT_TRUE(client);
    control_ = std::make_unique<wire::Client>(std::move(*client));
    report.host = HostId(host);
    report.boot = "boot-1";
    report.agent = {"127.0.0.1", port_};
    report.memory_free_bytes = std::uint64_t{1} << 30;
    report.checkpoint_works = false;
    reply = [this](const AgentCall& call) { return raised(call); };
  }

  HostReport report;
  std::function<Result<CallReply>(const AgentCall&)> reply;
  std::vector<AgentCall> calls;

  wire::Client& control() { return *control_; }

  asio::awaitable<Result<wire::Response>> beat() {
    ++report.sequence;
    wire::Request request;
    request.method = "POST";
    request.target = "/v1/agents/" + host_ + "/heartbeat";
    request.body = api::dump(json(report));
    co_return co_await control_->call(std::move(request), 10s);
  }

  std::size_t count(std::string_view kind) const {
    return static_cast<std::size_t>(std::ranges::count_if(calls, [&](const AgentCall& c) { return name_of(c) == kind; }));
  }

 private:
  Result<CallReply> raised(const AgentCall& call) {
    CallReply answer;
    answer.sequence = report.sequence;
    if (auto* raise = std::get_if<RaiseCall>(&call)) {
      answer.instance = raise->instance;
      answer.endpoint = {"127.0.0.1", 20'000};
      report.instances.push_back({.id = raise->instance, .workload = raise->workload, .purpose = Purpose::owner,
                                  .epoch = raise->epoch, .state = InstanceState::running, .endpoint = answer.endpoint});
    }
    if (auto* stop = std::get_if<StopCall>(&call))
      std::erase_if(report.instances, [&](const InstanceReport& one) { return one.id == stop->instance; });
    return answer;
  }

  asio::awaitable<void> serve(const wire::Request& request, wire::Responder& responder) {
    wire::Response response;
    const std::string prefix = "/v1/calls/";
    if (request.target.starts_with(prefix)) {
      auto call = api::parse_call(std::string_view(request.target).substr(prefix.size()), request.body);
      if (call) {
        calls.push_back(*call);
        auto answer = reply(*call);
        response = answer ? api::answer(json(*answer)) : api::answer(answer.error());
      } else {
        response = api::answer(call.error());
      }
    } else {
      json echo{{"target", request.target}, {"body", request.body}, {"peer", request.peer}};
      response = api::answer(echo);
    }
    auto sent = co_await responder.respond(std::move(response));
    (void)sent;
  }

  std::string host_;
  wire::Server server_;
  std::uint16_t port_ = 0;
  std::unique_ptr<wire::Client> control_;
};

}  // namespace yado::control::testing
