#pragma once
// What carries out ControlCore's actions (control.hpp says how). Handlers stand in people.cpp and roles.cpp.

#include <deque>
#include <map>
#include <memory>
#include <set>
#include <string>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <nlohmann/json_fwd.hpp>

#include "control/agents.hpp"
#include "control/control.hpp"
#include "control/core/control_core.hpp"
#include "control/event_log.hpp"
#include "control/http.hpp"
#include "control/pulse.hpp"
#include "state/store.hpp"
#include "wire/server.hpp"
#include "wire/tls.hpp"

namespace yado::control {

class Shell : public std::enable_shared_from_this<Shell> {
 public:
  Shell(boost::asio::io_context& io, const ControlOptions& options, std::unique_ptr<state::Store> store,
        wire::Identity identity);

  Status begin();
  void stop();
  std::uint16_t port() const { return port_; }

 private:
  using Json = nlohmann::json;
  template <class T>
  using Awaitable = boost::asio::awaitable<T>;

  // Requests (shell.cpp).
  Awaitable<void> serve(const wire::Request& request, wire::Responder& responder);
  static bool allowed(const wire::Request& request, const Target& target);
  Awaitable<Result<Json>> dispatch(const wire::Request& request, const Target& target, wire::Responder& responder);

  // People (people.cpp).
  Awaitable<Result<Json>> on_workload(const wire::Request& request, const Target& target, wire::Responder& responder);
  Awaitable<Result<Json>> deploy(const WorkloadId& id, const wire::Request& request, const Target& target,
                                 wire::Responder& responder);
  Awaitable<Result<Json>> move(const WorkloadId& id, const wire::Request& request, wire::Responder& responder);
  Awaitable<Result<Json>> clone(const WorkloadId& origin, const wire::Request& request, wire::Responder& responder);
  Awaitable<Result<Json>> resplit(WorkloadSpec spec, const Split& split, wire::Responder& responder);
  Awaitable<Result<Json>> forward(const WorkloadId& id, const wire::Request& request, const Target& target);
  Awaitable<Result<Json>> look_at_image(ImageId id, const Target& target);  // image_look.cpp
  Result<Json> plan(const WorkloadSpec& spec) const;
  Json workloads() const;
  Json images() const;
  Json hosts() const;
  Awaitable<void> follow_events(const wire::Request& request, const Target& target, wire::Responder& responder);
  Result<Json> drill(const wire::Request& request);

  // Agents and gates (roles.cpp).
  Result<Json> heartbeat(const HostId& host, const wire::Request& request);
  Result<Json> exited(const HostId& host, const wire::Request& request);
  Result<Json> renew(const wire::Request& request);
  Awaitable<Result<Json>> ask(const WorkloadId& id, const wire::Request& request, wire::Responder& responder);
  Result<Json> idle(const WorkloadId& id, const wire::Request& request);
  Result<Json> event(const wire::Request& request);
  void tell_gates();
  Awaitable<void> follow_routes(const wire::Request& request, wire::Responder& responder);

  // The core and its actions (actions.cpp).
  struct Question {
    explicit Question(boost::asio::io_context& io) : wake(io, boost::asio::steady_timer::time_point::max()) {}
    boost::asio::steady_timer wake;
    std::optional<Answer> answer;
    bool abandoned = false;
  };
  /// The answer to `ask`, which the core has been asked already. `canceled` when the peer is gone.
  Awaitable<Result<Answer>> answer_to(AskId ask, std::shared_ptr<Question> question, wire::Responder& responder);
  std::pair<AskId, std::shared_ptr<Question>> new_question();
  /// After every event given to the core: lets time pass in it, carries out what it wants, sets the timer.
  void settle();
  void carry_out();
  void perform(const Answer& answer);
  void perform(Call call);
  void perform(ProbeHost probe);
  void record(const Event& event, Instant at);
  void push_routes();
  void hold(const Error& why);
  void set_timer();
  /// Why nothing can be decided now.
  Status writable() const;
  const WorkloadView* find(const std::vector<WorkloadView>& all, const WorkloadId& id) const;

  boost::asio::io_context& io_;
  ControlOptions options_;
  std::unique_ptr<state::Store> store_;
  wire::Identity identity_;
  std::string run_;  ///< tells this run's calls from those of an earlier one
  ControlCore core_;
  Agents agents_;
  EventLog events_;
  std::deque<Action> queue_;  ///< in order; the front one is a Persist that failed while `held_`
  std::optional<Error> held_;
  bool routes_dirty_ = false;
  RouteTable routes_;  ///< as pushed last
  Pulse routes_changed_;
  std::multiset<std::string> connected_gates_;  ///< that follow the routes
  std::map<AskId, std::shared_ptr<Question>> questions_;
  AskId last_ask_ = 0;
  boost::asio::steady_timer timer_, retry_;
  bool stopped_ = false;
  std::unique_ptr<wire::Server> people_, roles_;
  std::uint16_t port_ = 0;
};

}  // namespace yado::control
