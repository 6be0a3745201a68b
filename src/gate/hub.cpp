#include "gate/hub.hpp"

#include <vector>

#include "base/check.hpp"
#include "gate/session.hpp"
#include "os/clock.hpp"

namespace yado::gate {

Hub::Hub(boost::asio::io_context& context, Limits bounds, std::uint8_t granter, std::function<void(Action&)> others)
    : io(context),
      limits(bounds),
      scheduler(granter),
      head_time(context, bounds.head_time),
      idle_time(context, bounds.idle_time),
      stall_time(context, bounds.stall_time),
      kept_time(context, bounds.kept_time),
      pool(bounds.kept_connections, kept_time),
      others_(std::move(others)),
      timer_(context) {}

void Hub::carry_out() {
  if (carrying_out_) return;  // what an action brought about is carried out after it
  carrying_out_ = true;
  for (std::vector<Action> actions = scheduler.take(); !actions.empty(); actions = scheduler.take()) {
    for (Action& action : actions) {
      if (auto* forward = std::get_if<Forward>(&action)) {
        if (auto found = waiting_.find(forward->request); found != waiting_.end())
          found->second->forward(std::move(*forward));
      } else if (auto* refuse = std::get_if<Refuse>(&action)) {
        if (auto found = waiting_.find(refuse->request); found != waiting_.end())
          found->second->refuse(std::move(*refuse));
      } else if (auto* abandon = std::get_if<Abandon>(&action)) {
        if (auto found = waiting_.find(abandon->request); found != waiting_.end())
          found->second->abandon(abandon->attempt);
      } else {
        others_(action);
      }
    }
  }
  carrying_out_ = false;
  arm();
}

/// One timer at the Scheduler's next deadline. One that is armed too early is left alone: it looks again when it fires.
void Hub::arm() {
  if (stopped_) return;
  const Instant next = scheduler.next_deadline();
  if (next >= armed_for_) return;
  armed_for_ = next;
  timer_.expires_after(std::max(nanoseconds(0), next - os::now()));
  timer_.async_wait([weak = weak_from_this()](const boost::system::error_code& canceled) {
    auto self = weak.lock();
    if (canceled || !self || self->stopped_) return;
    self->armed_for_ = Instant::max();
    const Instant now = os::now();
    self->scheduler.tick(now);
    if (self->scheduler.next_deadline() <= now) ++self->counters.ticks_without_progress;
    self->carry_out();
  });
}

RequestId Hub::enlist(Session& session) {
  waiting_.emplace(++last_request_, &session);
  return last_request_;
}

void Hub::strike(RequestId id) { waiting_.erase(id); }

std::string_view Hub::idempotency_header(std::string_view host_name) const {
  auto found = idempotency_headers_.find(host_name);
  return found == idempotency_headers_.end() ? std::string_view() : found->second;
}

void Hub::know_services(const RouteTable& table) {
  idempotency_headers_.clear();
  for (const Route& route : table.routes) {
    if (route.service.idempotency_header.empty()) continue;
    std::string header = route.service.idempotency_header;
    for (char& c : header)
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c | 0x20);
    for (const std::string& name : route.service.hosts) idempotency_headers_[name] = header;
  }
}

void Hub::join(const std::shared_ptr<Session>& session) {
  sessions_.emplace(session.get(), session);
  ++counters.connections;
  counters.open = sessions_.size();
}

void Hub::leave(Session& session) {
  sessions_.erase(&session);
  counters.open = sessions_.size();
  if (on_leave) on_leave();
}

void Hub::stop() {
  stopped_ = true;
  others_ = [](Action&) {};  // who carried them out may be gone before the last session is
  timer_.cancel();
  head_time.stop();
  idle_time.stop();
  stall_time.stop();
  kept_time.stop();
  pool.clear();
  for (const auto& [key, session] : std::exchange(sessions_, {})) session->stop();
}

}  // namespace yado::gate
