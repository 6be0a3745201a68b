#pragma once
// The gate's conversation with control and, without it, with agents.
//
// The stream of route tables is also the sign of life: its end, or silence for three keep-alives, means that control
// is not there. Reconnecting goes on for ever with growing pauses. What was asked of a control that went away is given
// up; the Scheduler asks again.

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <deque>
#include <functional>
#include <string>

#include "base/error.hpp"
#include "gate/core/scheduler.hpp"
#include "gate/jobs.hpp"
#include "model/calls.hpp"
#include "wire/client.hpp"
#include "wire/tls.hpp"

namespace yado::gate {

class ControlLink {
 public:
  struct Relocated {
    Route route;
    bool fenced = false;
  };
  /// Called in turns of the loop of their own, never from inside a method of the link.
  struct Listener {
    std::function<void(RouteTable)> table;
    std::function<void(bool)> reachable;
    std::function<void(const WorkloadId&, Result<Relocated>)> asked;
    std::function<void(const RaiseWithoutControl&, Result<CallReply>)> raised;
  };

  /// `peer`: what control's certificate must name ("control:" = any controller of this authority).
  static Result<std::unique_ptr<ControlLink>> open(boost::asio::io_context& io, Endpoint control,
                                                   wire::Identity identity, std::string peer, Listener listener);

  void start();
  void stop();

  /// `limit`: for as long as anybody waits for the answer.
  void ask(const Ask& ask, nanoseconds limit);
  void raise(const RaiseWithoutControl& raise, const Endpoint& agent, nanoseconds limit);
  void report_idle(const ReportIdle& idle);
  /// Best effort, in order. Returns false when an older event was dropped for it.
  bool report(const yado::Event& event);

 private:
  ControlLink(boost::asio::io_context& io, wire::Client client, wire::Identity identity, Listener listener);

  boost::asio::awaitable<bool> follow();
  boost::asio::awaitable<bool> send_events();
  Status take(std::string_view piece);
  void heard();
  void lost(std::string_view why);
  void begin_sending();
  std::string next_request_id();

  boost::asio::io_context& io_;
  wire::Client client_;
  wire::Identity identity_;
  Listener listener_;
  bool up_ = false;
  bool told_ = false;  // the listener knows whether control is there
  nanoseconds pause_{};
  std::string line_;
  std::deque<std::string> events_;
  bool sending_ = false;
  std::uint64_t requests_ = 0;
  Jobs following_, asking_, others_;
};

}  // namespace yado::gate
