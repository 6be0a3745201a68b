// The core's actions, carried out strictly in order.

#include <algorithm>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/log.hpp"
#include "control/record_json.hpp"
#include "control/shell.hpp"
#include "os/clock.hpp"
#include "probe/probe.hpp"

namespace yado::control {
namespace asio = boost::asio;
namespace {

/// How often a write that failed is repeated: often enough that nobody waits long once there is room again.
constexpr auto retry_pause = 1s;

}  // namespace

void Shell::settle() {
  // Time may matter to what just happened (a heart-beat can release the brake), so it always passes first.
  core_.tick(os::now());
  std::ranges::move(core_.take(), std::back_inserter(queue_));
  if (!held_) carry_out();
  set_timer();
}

void Shell::carry_out() {
  while (!queue_.empty()) {
    Action action = std::move(queue_.front());
    if (auto* persist = std::get_if<Persist>(&action)) {
      if (Status done = store_->put_workload(persist->record.spec.name.str(), dump_record(persist->record)); !done) {
        queue_.front() = std::move(action);
        return hold(done.error());
      }
      if (held_) log::info("the store can be written again");
      held_.reset();
    }
    queue_.pop_front();
    if (auto* call = std::get_if<Call>(&action)) perform(std::move(*call));
    if (auto* probe = std::get_if<ProbeHost>(&action)) perform(std::move(*probe));
    if (auto* answer = std::get_if<Answer>(&action)) perform(*answer);
    if (auto* emit = std::get_if<Emit>(&action)) record(emit->event, os::now());
    if (std::holds_alternative<PushRoutes>(action)) routes_dirty_ = true;
    // The table is made from the core's newest state: not before that is durable, and as soon as it is.
    const bool durable = std::ranges::none_of(queue_, [](const Action& a) { return std::holds_alternative<Persist>(a); });
    if (routes_dirty_ && durable) push_routes();
  }
}

void Shell::perform(const Answer& answer) {
  auto found = questions_.find(answer.ask);
  if (found == questions_.end()) return;  // who asked is gone
  found->second->answer = answer;
  found->second->wake.cancel();
  questions_.erase(found);
}

void Shell::perform(Call call) {
  auto work = [](std::shared_ptr<Shell> self, Call wanted) -> asio::awaitable<void> {
    const CallId id = wanted.id;
    std::string request_id = fmt::format("{}-{}", self->run_, id);
    auto reply = co_await self->agents_.call(std::move(wanted.host), std::move(wanted.agent), std::move(wanted.call),
                                             std::move(request_id), wanted.limit);
    if (self->stopped_) co_return;
    self->core_.call_done(id, reply, os::now());
    self->settle();
  };
  // Not at once: an agent that cannot be called answers here and now, and that must not settle inside of settle().
  auto start = [work, self = shared_from_this(), wanted = std::make_shared<Call>(std::move(call))] {
    asio::co_spawn(self->io_, work(self, std::move(*wanted)), asio::detached);
  };
  asio::post(io_, start);
}

void Shell::perform(ProbeHost probe) {
  auto work = [](std::shared_ptr<Shell> self, ProbeHost wanted) -> asio::awaitable<void> {
    auto heard = co_await probe::reach(self->io_, std::move(wanted.agent), wanted.limit);
    if (self->stopped_) co_return;
    ProbeAnswer answer = ProbeAnswer::none;
    if (heard) answer = *heard == probe::Heard::refused ? ProbeAnswer::refused : ProbeAnswer::listening;
    self->core_.host_probed(wanted.host, answer, os::now());
    self->settle();
  };
  auto start = [work, self = shared_from_this(), wanted = std::make_shared<ProbeHost>(std::move(probe))] {
    asio::co_spawn(self->io_, work(self, std::move(*wanted)), asio::detached);
  };
  asio::post(io_, start);
}

void Shell::record(const Event& event, Instant at) {
  const EventLine& line = events_.append(event, at, os::wall_ms());
  log::debug("event {}", line.text);
  // An event that cannot be kept is still shown to whoever follows; the next Persist says what is wrong.
  if (Status kept = store_->append_event(line.sequence, line.text, events_.first_kept()); !kept && !held_)
    log::warn("event {} is not kept: {}", line.sequence, kept.error().text());
}

void Shell::push_routes() {
  routes_dirty_ = false;
  RouteTable table = core_.routes();
  table.version = routes_.version;
  if (table == routes_) return;
  ++table.version;
  routes_ = std::move(table);
  routes_changed_.fire();
}

void Shell::hold(const Error& why) {
  if (!held_) log::error("the store cannot be written, nothing is decided until it can: {}", why.text());
  held_ = Error{why.code, fmt::format("control cannot write its store in {} ({}); it goes on as soon as it can",
                                      options_.state.native(), why.message)};
  for (auto& [ask, question] : std::exchange(questions_, {})) {
    question->answer = Answer{ask, std::unexpected(*held_), false};
    question->wake.cancel();
  }
  retry_.expires_after(retry_pause);
  retry_.async_wait([self = weak_from_this()](const boost::system::error_code& error) {
    auto shell = self.lock();
    if (error || !shell || shell->stopped_) return;
    shell->carry_out();
    shell->set_timer();
  });
}

void Shell::set_timer() {
  const Instant next = core_.next_deadline();
  if (next == Instant::max() || stopped_) {
    timer_.cancel();
    return;
  }
  // A deadline that has passed already and was not acted upon must not make a busy loop.
  timer_.expires_after(std::max<nanoseconds>(next - os::now(), 1ms));
  timer_.async_wait([self = weak_from_this()](const boost::system::error_code& error) {
    if (auto shell = self.lock(); shell && !error && !shell->stopped_) shell->settle();
  });
}

Status Shell::writable() const {
  if (held_) return std::unexpected(*held_);
  return {};
}

std::pair<AskId, std::shared_ptr<Shell::Question>> Shell::new_question() {
  auto question = std::make_shared<Question>(io_);
  questions_.emplace(++last_ask_, question);
  return {last_ask_, question};
}

asio::awaitable<Result<Answer>> Shell::answer_to(AskId ask, std::shared_ptr<Question> question,
                                                 wire::Responder& responder) {
  responder.on_closed([question] {
    question->abandoned = true;
    question->wake.cancel();
  });
  while (!question->answer && !question->abandoned)
    co_await question->wake.async_wait(asio::as_tuple(asio::use_awaitable));
  questions_.erase(ask);
  if (!question->answer) co_return fail(Errc::canceled, "who asked is gone");
  co_return std::move(*question->answer);
}

const WorkloadView* Shell::find(const std::vector<WorkloadView>& all, const WorkloadId& id) const {
  auto found = std::ranges::find_if(all, [&](const WorkloadView& view) { return view.record.spec.name == id; });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace yado::control
