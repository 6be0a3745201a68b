#pragma once
// For tests of the gate: a Gate between clients, instances and a control, all in one process, one thread and one
// io_context, over real loopback sockets.

#include <gtest/gtest.h>
#include <stdlib.h>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <deque>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "api/answer.hpp"
#include "api/calls.hpp"
#include "api/json.hpp"
#include "gate/gate.hpp"
#include "wire/client.hpp"
#include "wire/parser.hpp"
#include "wire/run.hpp"
#include "wire/server.hpp"

namespace yado::gate::testing {
namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
template <class T>
using Co = asio::awaitable<T>;
inline constexpr auto quietly = asio::as_tuple(asio::use_awaitable);

struct Answer {
  int status = 0;  ///< 0: none came
  wire::Headers headers;
  std::string body;
  bool complete = false;

  std::string header(std::string_view name) const { return std::string(wire::find(headers, name)); }
};

/// One HTTP conversation, seen from either end.
class Talk {
 public:
  Talk(tcp::socket socket, wire::Parser::Kind kind) : socket_(std::move(socket)), parser_(kind, 64 * 1024) {}

  Co<bool> send(std::string text) {
    auto [error, bytes] = co_await asio::async_write(socket_, asio::buffer(text), quietly);
    sent_ += bytes;
    co_return !error;
  }
  /// The next message, or what of it came before the connection ended.
  Co<Answer> message(std::string asked = "GET") {
    Answer got;
    parser_.expect_answer_to(asked);
    for (;;) {
      auto step = parser_.next(std::string_view(input_));
      if (!step) co_return got;
      got.body += step->body;
      input_.erase(0, step->consumed);
      if (step->event == wire::Parser::Event::head) {
        head_ = parser_.head();
        got.status = head_.status;
        got.headers = head_.headers;
      } else if (step->event == wire::Parser::Event::end) {
        got.complete = true;
        co_return got;
      } else if (step->event == wire::Parser::Event::need_more) {
        const bool open = co_await more();
        if (!open) {
          got.complete = got.status != 0 && end_ == asio::error::eof && parser_.finish().has_value();
          co_return got;
        }
      }
    }
  }
  /// Everything until the connection ends; end() says how.
  Co<std::string> rest() {
    for (bool open = true; open;) open = co_await more();
    co_return std::exchange(input_, {});
  }
  Co<bool> more() {
    std::string piece(64 * 1024, '\0');
    auto [error, bytes] = co_await socket_.async_read_some(asio::buffer(piece), quietly);
    end_ = error;
    input_.append(piece, 0, bytes);
    co_return !error;
  }
  const wire::Head& head() const { return head_; }
  std::string& input() { return input_; }
  const error_code& end() const { return end_; }
  std::size_t sent() const { return sent_; }
  tcp::socket& socket() { return socket_; }
  void reset() {
    error_code ignored;
    socket_.set_option(asio::socket_base::linger(true, 0), ignored);
    socket_.close(ignored);
  }

 private:
  tcp::socket socket_;
  wire::Parser parser_;
  wire::Head head_;
  std::string input_;
  error_code end_;
  std::size_t sent_ = 0;
};

/// An instance: `serve` is called with every connection.
class Instance {
 public:
  using Serve = std::function<Co<void>(Talk&)>;

  Instance(asio::io_context& io, Serve serve)
      : io_(io), serve_(std::move(serve)), acceptor_(io, tcp::endpoint(asio::ip::address_v4::loopback(), 0)) {
    asio::co_spawn(io_, accept(), asio::detached);
  }
  /// Answers every request with what `reply` says.
  static Serve replying(std::function<std::string(const Answer&, const wire::Head&)> reply) {
    return [reply](Talk& talk) { return answer_all(talk, reply); };
  }
  static std::string ok(std::string_view body) {
    return fmt::format("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}", body.size(), body);
  }
  Endpoint at() const { return Endpoint{"127.0.0.1", port_}; }
  std::size_t connections() const { return talks_.size(); }
  Talk& talk(std::size_t i) { return *talks_.at(i); }
  void stop_listening() {
    error_code ignored;
    acceptor_.close(ignored);
  }

 private:
  static Co<void> answer_all(Talk& talk, std::function<std::string(const Answer&, const wire::Head&)> reply) {
    for (;;) {
      const Answer request = co_await talk.message();
      if (!request.complete) co_return;
      std::string text = reply(request, talk.head());
      if (!co_await talk.send(std::move(text))) co_return;
    }
  }
  Co<void> accept() {
    for (;;) {
      auto [error, socket] = co_await acceptor_.async_accept(quietly);
      if (error) co_return;
      talks_.push_back(std::make_shared<Talk>(std::move(socket), wire::Parser::Kind::request));
      asio::co_spawn(io_, serve_one(talks_.back()), asio::detached);
    }
  }
  Co<void> serve_one(std::shared_ptr<Talk> talk) {
    co_await serve_(*talk);
    error_code ignored;
    talk->socket().close(ignored);
  }

  asio::io_context& io_;
  Serve serve_;
  tcp::acceptor acceptor_;
  std::uint16_t port_ = acceptor_.local_endpoint().port();
  std::vector<std::shared_ptr<Talk>> talks_;
};

/// A machine that does not answer: its backlog is full, so the kernel drops every SYN.
class SilentMachine {
 public:
  explicit SilentMachine(asio::io_context& io) : acceptor_(io), first_(io), second_(io) {
    acceptor_.open(tcp::v4());
    acceptor_.bind(tcp::endpoint(asio::ip::address_v4::loopback(), 0));
    acceptor_.listen(0);
    first_.connect(acceptor_.local_endpoint());
    second_.async_connect(acceptor_.local_endpoint(), [](error_code) {});
  }
  Endpoint at() const { return Endpoint{"127.0.0.1", acceptor_.local_endpoint().port()}; }

 private:
  tcp::acceptor acceptor_;
  tcp::socket first_, second_;
};

/// A pair of roles with certificates, a directory of their own, and what control and one agent were asked.
class World {
 public:
  using AskAnswer = std::function<wire::Response(const std::string& workload, const nlohmann::json& body)>;

  World() {
    char pattern[] = "/tmp/yado-gate-test-XXXXXX";
    directory = ::mkdtemp(pattern);
    auto made = wire::Authority::open_or_create(directory / "authority");
    EXPECT_TRUE(made) << made.error().text();
    authority = std::make_unique<wire::Authority>(std::move(*made));
  }
  ~World() {
    asio::post(io, [this] {
      gate.reset();
      control.reset();
      agent.reset();
    });
    io.restart();
    io.run_for(std::chrono::seconds(5));  // everything has been told to end: this returns as soon as it has
    std::filesystem::remove_all(directory);
  }

  wire::Identity identity(const std::string& name) { return *authority->issue(name); }

  void start_control(std::uint16_t at_port = 0) {
    wire::Server::Handler handler = [this](const wire::Request& request, wire::Responder& responder) {
      return serve_control(request, responder);
    };
    control = std::make_unique<wire::Server>(io, std::move(handler), wire::Server::Limits{});
    auto bound = control->listen_tls("127.0.0.1", at_port, identity("control:c1"));
    ASSERT_TRUE(bound) << bound.error().text();
    control_port = *bound;
  }
  void start_agent(const std::string& host, std::function<wire::Response(const wire::Request&)> answer) {
    agent_answer = std::move(answer);
    wire::Server::Handler handler = [this](const wire::Request& request, wire::Responder& responder) {
      return serve_agent(request, responder);
    };
    agent = std::make_unique<wire::Server>(io, std::move(handler), wire::Server::Limits{});
    auto bound = agent->listen_tls("127.0.0.1", 0, identity("agent:" + host));
    ASSERT_TRUE(bound) << bound.error().text();
    add_host(host, Endpoint{"127.0.0.1", *bound});
  }

  void add_host(const std::string& host, Endpoint at) { table.hosts.push_back({HostId(host), std::move(at)}); }
  /// A route to `at` on `host`; without an endpoint the workload is asleep.
  Route& add_route(const std::string& workload, const std::string& host, std::optional<Endpoint> at) {
    Route route;
    route.workload = WorkloadId(workload);
    route.service.hosts = {workload + ".example"};
    route.state = at ? RouteState::up : RouteState::asleep;
    route.epoch = Epoch::make(1, 0);
    route.host = HostId(host);
    if (at) route.endpoint = *at;
    table.routes.push_back(std::move(route));
    return table.routes.back();
  }
  void push_table() {
    ++table.version;
    for (const auto& timer : table_waiters) timer->cancel();
  }
  static wire::Response relocated(Route route, Endpoint to, const std::string& host, bool fenced = false) {
    route.state = RouteState::up;
    route.epoch = route.epoch.next();
    route.host = HostId(host);
    route.endpoint = std::move(to);
    return api::answer(nlohmann::json{{"route", route}, {"fenced", fenced}});
  }

  /// Starts the gate and waits until it has taken the table (when there is a control).
  void start_gate(Gate::Config config = {}) {
    if (table.version == 0) table.version = 1;
    config.listen.push_back(Endpoint{"127.0.0.1", 0});
    config.control = Endpoint{"127.0.0.1", control_port};
    config.identity = identity("gate:g1");
    gate = std::make_unique<Gate>(io, std::move(config));
    const Status running = gate->run();
    ASSERT_TRUE(running) << running.error().text();
    port = gate->ports().front();
    if (!control) return;
    run_until([this] { return tables_told > 0; });
    while (io.poll() > 0) {  // what control wrote is in the gate's socket already
    }
  }
  /// Runs the loop until `done`; a hang ends the test.
  void run_until(const std::function<bool()>& done) {
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (!done()) {
      ASSERT_LT(std::chrono::steady_clock::now(), limit) << "this never happened";
      io.restart();
      io.run_one_for(std::chrono::milliseconds(100));
    }
  }
  template <class T>
  T run(Co<T> work) {
    return wire::run(io, std::move(work));
  }

  Co<std::shared_ptr<Talk>> connect() {
    tcp::socket socket(io);
    const tcp::endpoint to(asio::ip::address_v4::loopback(), port);
    auto [error] = co_await socket.async_connect(to, quietly);
    EXPECT_FALSE(error) << error.message();
    co_return std::make_shared<Talk>(std::move(socket), wire::Parser::Kind::response);
  }
  /// One request on a connection of its own.
  Co<Answer> ask(std::string text, std::string method = "GET") {
    auto talk = co_await connect();
    co_await talk->send(std::move(text));
    Answer answer = co_await talk->message(std::move(method));
    co_return answer;
  }
  static std::string get(std::string_view path = "/", std::string_view host = "site.example") {
    return fmt::format("GET {} HTTP/1.1\r\nHost: {}\r\n\r\n", path, host);
  }
  static std::string post(std::string_view body, std::string_view more = "") {
    return fmt::format("POST /form HTTP/1.1\r\nHost: site.example\r\nContent-Length: {}\r\n{}\r\n{}", body.size(), more,
                       body);
  }

  asio::io_context io{1};
  std::filesystem::path directory;
  std::unique_ptr<wire::Authority> authority;
  RouteTable table;
  std::unique_ptr<wire::Server> control, agent;
  std::unique_ptr<Gate> gate;
  std::uint16_t control_port = 0, port = 0;
  int tables_told = 0;
  std::vector<nlohmann::json> asks, events, idles;
  AskAnswer answer_ask = [](const std::string&, const nlohmann::json&) {
    return api::answer(Error{Errc::unavailable, "no host has room"});
  };
  bool hold_asks = false;  ///< leave what is asked without an answer
  std::vector<wire::Request> raises;

 private:
  Co<void> serve_control(const wire::Request& request, wire::Responder& responder) {
    wire::Response response;
    if (request.target == "/v1/routes?follow=1") co_return co_await follow(responder);
    auto body = api::parse_json(request.body);
    if (request.target == "/v1/events") {
      if (body) events.push_back(*body);
      response = api::answer(nlohmann::json::object());
    } else if (request.target.ends_with("/idle")) {
      if (body) idles.push_back(*body);
      response = api::answer(nlohmann::json::object());
    } else {
      if (body) asks.push_back(*body);
      if (hold_asks) {
        asio::steady_timer forever(io, std::chrono::hours(1));
        asks_held.push_back(&forever);
        co_await forever.async_wait(quietly);
      }
      std::string workload = request.target.substr(std::string_view("/v1/workloads/").size());
      workload.resize(workload.find('/'));
      response = answer_ask(workload, *body);
    }
    auto sent = co_await responder.respond(std::move(response));
    (void)sent;
  }
  Co<void> follow(wire::Responder& responder) {
    wire::Headers headers;
    Status sent = co_await responder.start(200, std::move(headers));
    auto timer = std::make_shared<asio::steady_timer>(io);
    table_waiters.push_back(timer);
    std::uint64_t told = 0;
    while (sent && !responder.closed()) {
      std::string line = "\n";
      if (told != table.version) {
        told = table.version;
        line = api::dump(nlohmann::json(table)) + "\n";
        ++tables_told;
      }
      sent = co_await responder.write(line);
      timer->expires_after(std::chrono::milliseconds(500));
      if (sent && told == table.version) co_await timer->async_wait(quietly);
    }
  }
  Co<void> serve_agent(const wire::Request& request, wire::Responder& responder) {
    raises.push_back(request);
    wire::Response response = agent_answer(request);
    auto sent = co_await responder.respond(std::move(response));
    (void)sent;
  }

  std::vector<std::shared_ptr<asio::steady_timer>> table_waiters;
  std::function<wire::Response(const wire::Request&)> agent_answer;

 public:
  std::vector<asio::steady_timer*> asks_held;
};

}  // namespace yado::gate::testing
