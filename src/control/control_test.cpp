#include "control/control.hpp"

#include <sys/stat.h>

#include <sstream>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include "control/testing.hpp"
#include "state/sqlite/sqlite.hpp"

namespace yado::control {
namespace {

using namespace testing;

/// A disk that is full whenever the test says so.
class FullDisk : public state::Store {
 public:
  FullDisk(std::unique_ptr<state::Store> real, const bool& full) : real_(std::move(real)), full_(full) {}
  Status put_workload(std::string_view name, std::string_view record) override {
    return full_ ? full() : real_->put_workload(name, record);
  }
  Status remove_workload(std::string_view name) override { return full_ ? full() : real_->remove_workload(name); }
  Result<std::vector<std::string>> workloads() override { return real_->workloads(); }
  Status put_meta(std::string_view key, std::string_view value) override {
    return full_ ? full() : real_->put_meta(key, value);
  }
  Result<std::optional<std::string>> meta(std::string_view key) override { return real_->meta(key); }
  Status append_event(std::uint64_t sequence, std::string_view line, std::uint64_t first_kept) override {
    return full_ ? full() : real_->append_event(sequence, line, first_kept);
  }
  Result<std::vector<std::pair<std::uint64_t, std::string>>> events(std::size_t limit) override {
    return real_->events(limit);
  }

 private:
  static Status full() { return fail(Errc::no_space, "write: No space left on device"); }

  std::unique_ptr<state::Store> real_;
  const bool& full_;
};

WorkloadSpec spec_of_site() {
  WorkloadSpec spec;
  spec.name = WorkloadId("site");
  spec.container.root = "/srv/site";
  spec.container.command = {"serve"};
  spec.service.hosts = {"site.test"};
  spec.service.port = 8000;
  spec.policy.standby = StandbyLevel::cold;
  return spec;
}

class ControlTest : public ::testing::Test {
 protected:
  void SetUp() override { start(); }
  void TearDown() override {
    agents_.clear();
    stop();
  }

  void start() {
    ControlOptions options;
    options.state = directory_.path() / "state";
    options.socket = socket();
    // Hosts of this test are silent when the test says so, not when the machine is slow.
    options.settings.heartbeat = std::chrono::minutes(1);
    std::filesystem::create_directories(options.state);
    auto store = state::open_sqlite(options.state / "control.db");
    ASSERT_TRUE(store) << store.error().text();
    auto control = Control::start(io_, options, std::make_unique<FullDisk>(std::move(*store), full_));
    ASSERT_TRUE(control) << control.error().text();
    control_ = std::make_unique<Control>(std::move(*control));
    people_ = std::make_unique<wire::Client>(wire::Client::unix_socket(io_, socket()));
  }
  void stop() {
    people_.reset();
    control_.reset();
    io_.restart();
    io_.run();
  }

  std::string socket() const { return (directory_.path() / "control.sock").native(); }
  std::filesystem::path state() const { return directory_.path() / "state"; }

  FakeAgent& join(const std::string& host) {
    agents_.push_back(std::make_unique<FakeAgent>(io_, state(), host, control_->port()));
    EXPECT_EQ(beat(*agents_.back()).status, 200);
    return *agents_.back();
  }
  wire::Response beat(FakeAgent& agent) {
    auto response = wire::run(io_, agent.beat());
    EXPECT_TRUE(response) << response.error().text();
    return response ? *response : wire::Response{};
  }

  static asio::awaitable<Result<wire::Response>> call(wire::Client& client, std::string method, std::string target,
                                                      std::string body) {
    wire::Request request;
    request.method = std::move(method);
    request.target = std::move(target);
    request.body = std::move(body);
    co_return co_await client.call(std::move(request), 30s);
  }
  wire::Response raw(wire::Client& client, std::string method, std::string target, std::string body = "") {
    auto response = wire::run(io_, call(client, std::move(method), std::move(target), std::move(body)));
    EXPECT_TRUE(response) << response.error().text();
    return response ? *response : wire::Response{.status = 599};
  }
  json ask(std::string method, std::string target, std::string body = "", int status = 200) {
    const wire::Response response = raw(*people_, std::move(method), std::move(target), std::move(body));
    EXPECT_EQ(response.status, status) << response.body;
    return json::parse(response.body, nullptr, false);
  }
  json deploy(const WorkloadSpec& spec, int status = 200) {
    return ask("PUT", "/v1/workloads/" + spec.name.str(), api::dump(json(spec)), status);
  }
  std::vector<json> events(const std::string& query = "") {
    const wire::Response response = raw(*people_, "GET", "/v1/events" + query);
    std::vector<json> all;
    std::istringstream lines(response.body);
    for (std::string line; std::getline(lines, line);) all.push_back(json::parse(line));
    return all;
  }
  wire::Client as(const std::string& name) {
    const auto directory = state() / ("as-" + name.substr(name.find(':') + 1));
    EXPECT_TRUE(issue(state(), name, directory));
    auto client = wire::Client::tls(io_, "127.0.0.1", control_->port(), *wire::Identity::load(directory), "control:");
    return std::move(*client);
  }

  TemporaryDirectory directory_;
  bool full_ = false;
  asio::io_context io_;
  std::unique_ptr<Control> control_;
  std::unique_ptr<wire::Client> people_;
  std::vector<std::unique_ptr<FakeAgent>> agents_;
};

// ---- what goes wrong -----------------------------------------------------------------------------------------------

TEST_F(ControlTest, BadInputIsRefusedWithTheFieldThatIsWrong) {
  EXPECT_EQ(ask("PUT", "/v1/workloads/site", "{", 400)["error"]["code"], "invalid-argument");
  json spec = spec_of_site();
  spec["service"]["port"] = 70000;
  const json answer = ask("PUT", "/v1/workloads/site", spec.dump(), 400);
  EXPECT_NE(answer["error"]["message"].get<std::string>().find("service.port"), std::string::npos) << answer;
  spec = spec_of_site();
  spec["service"]["hosts"] = json::array();  // well-formed, and against docs/spec.md
  EXPECT_EQ(ask("PUT", "/v1/workloads/site", spec.dump(), 400)["error"]["number"], 1);
  EXPECT_EQ(ask("PUT", "/v1/workloads/other", json(spec_of_site()).dump(), 400)["error"]["retryable"], false);
  EXPECT_TRUE(ask("GET", "/v1/workloads")["workloads"].empty());
  ask("GET", "/v1/events?since=x", "", 400);
}

TEST_F(ControlTest, WhatThereIsNotIsNotFound) {
  for (const char* target : {"/", "/v1/", "/v1/nothing", "/v2/workloads", "/v1/workloads/none", "/v1/workloads/a/b/c"})
    EXPECT_EQ(ask("GET", target, "", 404)["error"]["code"], "not-found") << target;
  ask("POST", "/v1/workloads/none/stop", "", 404);
  ask("POST", "/v1/workloads/none/move", "", 404);
  ask("POST", "/v1/workloads/none/exec", R"({"command":["id"]})", 404);
  ask("DELETE", "/v1/workloads/none", "", 404);
  ask("PUT", "/v1/workloads/NoName", "{}", 404);
}

TEST_F(ControlTest, NobodyMayDoWhatIsNotHis) {
  FakeAgent& h1 = join("h1");
  wire::Client gate = as("gate:g1"), control = as("control:c2");
  const std::string beat = json(h1.report).dump();
  EXPECT_EQ(raw(h1.control(), "POST", "/v1/agents/h2/heartbeat", beat).status, 403);
  EXPECT_EQ(raw(h1.control(), "PUT", "/v1/workloads/site", json(spec_of_site()).dump()).status, 403);
  EXPECT_EQ(raw(h1.control(), "POST", "/v1/workloads/site/ask", "{}").status, 403);
  EXPECT_EQ(raw(h1.control(), "GET", "/v1/routes").status, 403);
  EXPECT_EQ(raw(gate, "POST", "/v1/agents/h1/heartbeat", beat).status, 403);
  EXPECT_EQ(raw(gate, "POST", "/v1/leases/renew", "{}").status, 403);
  EXPECT_EQ(raw(gate, "DELETE", "/v1/workloads/site").status, 403);
  EXPECT_EQ(raw(gate, "GET", "/v1/workloads").status, 403);
  EXPECT_EQ(raw(control, "GET", "/v1/routes").status, 403);
  EXPECT_EQ(raw(control, "POST", "/v1/events", R"({"kind":"x"})").status, 403);
  EXPECT_EQ(raw(control, "GET", "/v1/version").status, 200);
  EXPECT_EQ(raw(gate, "GET", "/v1/routes").status, 200);
}

TEST_F(ControlTest, AHeartBeatOfAnotherNameIsRefused) {
  FakeAgent& h1 = join("h1");
  h1.report.host = HostId("h2");
  EXPECT_EQ(beat(h1).status, 400);
}

TEST_F(ControlTest, WithoutHostsADeploySaysWhyNothingRuns) {
  const json answer = deploy(spec_of_site(), 503);
  EXPECT_NE(answer["error"]["message"].get<std::string>().find("no host"), std::string::npos) << answer;
  EXPECT_EQ(ask("GET", "/v1/workloads/site")["state"], "asleep");
}

TEST_F(ControlTest, AFullDiskStopsDecisionsAndLosesNone) {
  FakeAgent& h1 = join("h1");
  full_ = true;
  const json answer = deploy(spec_of_site(), 507);
  EXPECT_NE(answer["error"]["message"].get<std::string>().find("No space left"), std::string::npos) << answer;
  EXPECT_EQ(h1.calls.size(), 0u) << "nothing may be done under an epoch that is not durable";
  deploy(spec_of_site(), 507);
  EXPECT_TRUE(ask("GET", "/v1/routes")["routes"].empty()) << "nor may anybody be told of it";
  EXPECT_TRUE(ask("GET", "/v1/version").contains("trouble"));
  EXPECT_EQ(beat(h1).status, 200) << "hosts are not to be taken for dead meanwhile";
  full_ = false;
  // Repeated by itself, without a new request for it.
  while (ask("GET", "/v1/workloads/site")["state"] != "up") io_.run_one();
  EXPECT_EQ(h1.count("raise"), 1u);
  EXPECT_FALSE(ask("GET", "/v1/version").contains("trouble"));
}

// ---- what goes right -----------------------------------------------------------------------------------------------

TEST_F(ControlTest, TheSocketIsForItsOwnerOnly) {
  struct stat file {};
  ASSERT_EQ(::stat(socket().c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777, 0600u);
  ASSERT_EQ(::stat(state().c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 0777, 0700u);
}

TEST_F(ControlTest, DeployRaisesAndPushesTheRoute) {
  FakeAgent& h1 = join("h1");
  wire::Client gate = as("gate:g1");
  std::vector<json> tables;
  wire::Request follow;
  follow.target = "/v1/routes?follow=1";
  auto take = [&](std::string_view text) -> Status {
    if (text != "\n") tables.push_back(json::parse(text));
    return {};
  };
  asio::co_spawn(io_, gate.stream(std::move(follow), 30s, 30s, take), asio::detached);

  const json route = deploy(spec_of_site())["route"];
  EXPECT_EQ(route["state"], "up");
  EXPECT_EQ(route["host"], "h1");
  EXPECT_EQ(route["endpoint"]["port"], 20'000);
  ASSERT_EQ(h1.calls.size(), 1u);
  const auto& raise = std::get<RaiseCall>(h1.calls[0]);
  EXPECT_EQ(raise.spec, spec_of_site());
  EXPECT_EQ(raise.epoch.value(), route["epoch"]);

  while (tables.empty() || tables.back()["routes"].empty() || tables.back()["routes"][0]["state"] != "up") io_.run_one();
  EXPECT_EQ(tables.back()["routes"][0], route);
  for (std::size_t i = 1; i < tables.size(); ++i) EXPECT_GT(tables[i]["version"], tables[i - 1]["version"]);

  // A heart-beat that changes nothing pushes nothing.
  const std::size_t pushed = tables.size();
  beat(h1);
  ask("GET", "/v1/hosts");
  EXPECT_EQ(tables.size(), pushed);
}

TEST_F(ControlTest, ManyAsksShareOneRelocation) {
  FakeAgent& h1 = join("h1");
  FakeAgent& h2 = join("h2");
  const json before = deploy(spec_of_site())["route"];
  FakeAgent& other = before["host"] == "h1" ? h2 : h1;
  wire::Client gate = as("gate:g1");
  const json question{{"observed", before["epoch"]}, {"evidence", "silent"}, {"suspect", before["host"]}};
  std::vector<json> answers;
  for (int i = 0; i < 20; ++i) {
    auto done = [&](std::exception_ptr, Result<wire::Response> response) { answers.push_back(json::parse(response->body)); };
    asio::co_spawn(io_, call(gate, "POST", "/v1/workloads/site/ask", question.dump()), done);
  }
  io_.restart();
  while (answers.size() < 20) io_.run_one();
  EXPECT_EQ(other.count("raise"), 1u);
  for (const json& answer : answers) {
    ASSERT_TRUE(answer.contains("route")) << answer;
    EXPECT_EQ(answer["route"]["host"], other.report.host.str());
    EXPECT_GT(answer["route"]["epoch"], before["epoch"]);
    EXPECT_EQ(answer["fenced"], false);
  }
}

TEST_F(ControlTest, RestartLosesNothing) {
  join("h1");
  const json before = deploy(spec_of_site())["route"];
  const json told = ask("GET", "/v1/workloads/site");
  const std::uint64_t seen = events().back()["seq"];
  agents_.clear();
  stop();
  start();
  const json after = ask("GET", "/v1/workloads/site");
  for (const char* key : {"state", "epoch", "owner", "spec", "revision"}) EXPECT_EQ(after[key], told[key]) << key;
  EXPECT_EQ(ask("GET", "/v1/routes")["routes"][0]["endpoint"], before["endpoint"]);
  EXPECT_GT(events().back()["seq"], seen) << "event numbers go on";
  EXPECT_EQ(events("?limit=1000").front()["seq"], 1);

  // The host's first report does not name the owner: it is gone. The new one's epoch is higher than any before.
  FakeAgent& h1 = join("h1");
  json now;
  do now = ask("GET", "/v1/workloads/site");
  while (now["state"] != "up" || now["epoch"] == before["epoch"]);
  EXPECT_GT(now["epoch"], before["epoch"]);
  EXPECT_EQ(h1.count("raise"), 1u);
}

TEST_F(ControlTest, StopStartAndRemove) {
  FakeAgent& h1 = join("h1");
  deploy(spec_of_site());
  ask("POST", "/v1/workloads/site/stop");
  EXPECT_EQ(ask("GET", "/v1/workloads/site")["state"], "stopped");
  ask("POST", "/v1/workloads/site/move", "", 409);
  deploy(spec_of_site());
  EXPECT_EQ(h1.count("stop"), 1u);
  EXPECT_EQ(h1.count("raise"), 2u);
  ask("DELETE", "/v1/workloads/site");
  ask("GET", "/v1/workloads/site", "", 404);
  EXPECT_TRUE(ask("GET", "/v1/routes")["routes"].empty());
}

TEST_F(ControlTest, ADryRunChangesNothing) {
  FakeAgent& h1 = join("h1");
  WorkloadSpec spec = spec_of_site();
  json plan = ask("PUT", "/v1/workloads/site?dry_run=1", json(spec).dump());
  EXPECT_EQ(plan["change"], "create");
  EXPECT_EQ(plan["hosts"][0]["host"], "h1");
  EXPECT_EQ(plan["hosts"][0]["way"], "cold");
  EXPECT_TRUE(h1.calls.empty());
  ask("GET", "/v1/workloads/site", "", 404);
  deploy(spec);
  EXPECT_EQ(ask("PUT", "/v1/workloads/site?dry_run=1", json(spec).dump())["change"], "nothing");
  spec.policy.relocations = 3;
  EXPECT_EQ(ask("PUT", "/v1/workloads/site?dry_run=1", json(spec).dump())["change"], "policy");
  spec.container.command.push_back("--fast");
  spec.policy.placement = {HostId("h9")};
  plan = ask("PUT", "/v1/workloads/site?dry_run=1", json(spec).dump());
  EXPECT_EQ(plan["change"], "replace");
  EXPECT_EQ(plan["left_out"][0]["host"], "h1");
}

TEST_F(ControlTest, ExecAndLogsAreForwardedToTheOwner) {
  join("h1");
  ask("POST", "/v1/workloads/site/exec", R"({"command":["id"]})", 404);
  deploy(spec_of_site());
  const json owner = ask("GET", "/v1/workloads/site")["owner"];
  const json echo = ask("POST", "/v1/workloads/site/exec", R"({"command":["id"]})");
  EXPECT_EQ(echo["target"], "/v1/instances/" + owner["instance"].get<std::string>() + "/exec");
  EXPECT_EQ(echo["peer"], "control:c1");
  EXPECT_EQ(json::parse(echo["body"].get<std::string>())["command"][0], "id");
  ask("POST", "/v1/workloads/site/exec", R"({"command":[]})", 400);
  const json logs = ask("GET", "/v1/workloads/site/logs?lines=7");
  EXPECT_TRUE(logs["target"].get<std::string>().ends_with("/logs?lines=7"));
}

TEST_F(ControlTest, EventsAreNumberedAndFollowed) {
  join("h1");
  const std::uint64_t before = events().back()["seq"];
  std::vector<json> followed;
  wire::Request follow;
  follow.target = "/v1/events?follow=1&since=" + std::to_string(before);  // whenever it gets there
  auto take = [&](std::string_view text) -> Status {
    std::istringstream lines{std::string(text)};
    for (std::string line; std::getline(lines, line);)
      if (!line.empty()) followed.push_back(json::parse(line));
    return {};
  };
  asio::co_spawn(io_, people_->stream(std::move(follow), 30s, 30s, take), asio::detached);
  deploy(spec_of_site());
  while (followed.empty() || followed.back()["kind"] != "ready") io_.run_one();
  std::vector<std::string> kinds;
  for (const json& event : followed) kinds.push_back(event["kind"]);
  EXPECT_EQ(kinds, (std::vector<std::string>{"deploy", "grant", "raise", "ready"}));
  EXPECT_EQ(events("?since=" + std::to_string(before)), followed);
  EXPECT_EQ(events("?limit=1").size(), 1u);
  EXPECT_EQ(events("?limit=1").back(), followed.back());
  for (const json& event : followed) {
    EXPECT_EQ(event["workload"], "site");
    EXPECT_GT(event["at_ns"], 0);
    EXPECT_GT(event["at_ms"], 0);
  }

  wire::Client gate = as("gate:g1");
  EXPECT_EQ(raw(gate, "POST", "/v1/events", R"({"kind":"switch","workload":"site","epoch":256,"at_ns":12345})").status, 200);
  EXPECT_EQ(events("?limit=1").back()["at_ns"], 12345);
  EXPECT_EQ(events("?limit=1").back()["fields"]["by"], "gate:g1");
  EXPECT_EQ(raw(gate, "POST", "/v1/events", R"({"workload":"site"})").status, 400);
}

TEST_F(ControlTest, OnlyTheOwnersLeaseIsRenewed) {
  FakeAgent& h1 = join("h1");
  WorkloadSpec spec = spec_of_site();
  spec.policy.consistency = Consistency::exclusive;
  const json route = deploy(spec)["route"];
  const json owner = ask("GET", "/v1/workloads/site")["owner"];
  json renewal{{"workload", "site"}, {"instance", owner["instance"]}, {"epoch", route["epoch"]}};
  const wire::Response renewed = raw(h1.control(), "POST", "/v1/leases/renew", renewal.dump());
  EXPECT_EQ(renewed.status, 200) << renewed.body;
  EXPECT_EQ(json::parse(renewed.body)["ttl_ms"], 5000);
  renewal["epoch"] = 1;
  EXPECT_EQ(raw(h1.control(), "POST", "/v1/leases/renew", renewal.dump()).status, 409);
}

TEST_F(ControlTest, AWorkloadSleepsWhenEveryConnectedGateSaysSo) {
  FakeAgent& h1 = join("h1");
  WorkloadSpec spec = spec_of_site();
  spec.policy.lifetime = 5s;
  const json route = deploy(spec)["route"];
  wire::Client first = as("gate:g1");
  auto second = std::make_unique<wire::Client>(as("gate:g2"));
  int streams = 0;
  bool enough = false;
  for (wire::Client* gate : {&first, second.get()}) {
    wire::Request follow;
    follow.target = "/v1/routes?follow=1";
    auto take = [&, gate, told = false](std::string_view) mutable -> Status {
      if (!std::exchange(told, true)) ++streams;
      if (enough && gate == second.get()) return fail(Errc::canceled, "this gate goes");
      return {};
    };
    asio::co_spawn(io_, gate->stream(std::move(follow), 30s, 30s, take), asio::detached);
  }
  io_.restart();
  while (streams < 2) io_.run_one();
  const std::string idle = json{{"observed", route["epoch"]}}.dump();
  const std::string busy = json{{"observed", route["epoch"]}, {"idle", false}}.dump();
  EXPECT_EQ(raw(first, "POST", "/v1/workloads/site/idle", idle).status, 200);
  EXPECT_EQ(ask("GET", "/v1/workloads/site")["state"], "up") << "the second gate has not said so";
  EXPECT_EQ(raw(first, "POST", "/v1/workloads/site/idle", busy).status, 200);
  EXPECT_EQ(raw(*second, "POST", "/v1/workloads/site/idle", idle).status, 200);
  EXPECT_EQ(ask("GET", "/v1/workloads/site")["state"], "up");
  enough = true;  // the second gate goes with its next keep-alive; from then on the first is asked alone
  do EXPECT_EQ(raw(first, "POST", "/v1/workloads/site/idle", idle).status, 200);
  while (ask("GET", "/v1/workloads/site")["state"] != "asleep");
  while (h1.count("stop") == 0) io_.run_one();
}

TEST_F(ControlTest, AnAgentThatSaysNoIsLeftForTheNext) {
  FakeAgent& h1 = join("h1");
  FakeAgent& h2 = join("h2");
  WorkloadSpec spec = spec_of_site();
  spec.policy.placement = {HostId("h1"), HostId("h2")};
  h1.reply = [](const AgentCall&) { return fail(Errc::application, "serve: exited with status 1"); };
  EXPECT_EQ(deploy(spec)["route"]["host"], "h2");
  EXPECT_EQ(h1.count("raise"), 1u);
  EXPECT_EQ(h2.count("raise"), 1u);
  bool told = false;
  for (const json& event : events())
    told = told || (event["kind"] == "raise-failed" &&
                    event["fields"]["error"].get<std::string>().find("exited with status 1") != std::string::npos);
  EXPECT_TRUE(told);
}

}  // namespace
}  // namespace yado::control
