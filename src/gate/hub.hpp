#pragma once
// The Scheduler and those who carry out what it decides. Everybody who tells the Scheduler of an event calls
// carry_out() right after it; actions are carried out in order, and none of them runs a coroutine inside that call.

#include <boost/asio/steady_timer.hpp>
#include <functional>
#include <memory>
#include <unordered_map>

#include "gate/core/scheduler.hpp"
#include "gate/limits.hpp"
#include "gate/time_limit.hpp"
#include "gate/upstream.hpp"

namespace yado::gate {

class Session;

class Hub : public std::enable_shared_from_this<Hub> {
 public:
  /// `others`: what is not about one request (Probe, Ask, Report …).
  Hub(boost::asio::io_context& io, Limits limits, std::uint8_t granter, std::function<void(Action&)> others);

  void carry_out();
  RequestId enlist(Session& session);
  void strike(RequestId id);
  /// The header that makes a request to this service repeatable; empty: none does.
  std::string_view idempotency_header(std::string_view host_name) const;
  void know_services(const RouteTable& table);

  void join(const std::shared_ptr<Session>& session);
  void leave(Session& session);
  /// Ends every connection and every timer.
  void stop();
  bool stopped() const { return stopped_; }

  boost::asio::io_context& io;
  const Limits limits;
  Scheduler scheduler;
  TimeLimit head_time, idle_time, stall_time, kept_time;
  Pool pool;
  Counters counters;
  std::function<void()> on_leave;  ///< a connection ended: there is room for another one

 private:
  void arm();

  std::function<void(Action&)> others_;
  std::unordered_map<RequestId, Session*> waiting_;
  std::unordered_map<Session*, std::shared_ptr<Session>> sessions_;
  std::map<std::string, std::string, std::less<>> idempotency_headers_;
  boost::asio::steady_timer timer_;
  Instant armed_for_ = Instant::max();
  RequestId last_request_ = 0;
  bool carrying_out_ = false;
  bool stopped_ = false;
};

}  // namespace yado::gate
