#include "agent/readiness.hpp"

#include <algorithm>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <list>

#include "os/clock.hpp"
#include "os/listen_watch.hpp"
#include "probe/probe.hpp"

namespace yado::agent {

namespace asio = boost::asio;

namespace {

/// A pause that ends early when somebody begins to listen on the port, in whatever network namespace.
class Pause {
 public:
  Pause(asio::io_context& io, std::uint16_t port) : state_(std::make_shared<State>(io)) {
    auto watch = os::ListenWatch::open(port);
    if (!watch) return;
    watch_.emplace(std::move(*watch));
    for (const os::Fd& event : watch_->descriptors()) {
      boost::system::error_code ignored;
      events_.emplace_back(io).assign(event.get(), ignored);
      // Told once per descriptor and not to be taken off without a mapping: later ones are found by turns.
      events_.back().async_wait(asio::posix::stream_descriptor::wait_read,
                                [state = state_](const boost::system::error_code& error) {
                                  if (error) return;
                                  state->hinted = true;
                                  state->timer.cancel();
                                });
    }
  }
  ~Pause() {
    for (auto& event : events_) (void)event.release();  // the watch closes it
  }
  Pause(const Pause&) = delete;
  Pause& operator=(const Pause&) = delete;

  asio::awaitable<void> wait(nanoseconds longest) {
    const std::shared_ptr<State> state = state_;
    if (!std::exchange(state->hinted, false)) {
      state->timer.expires_after(longest);
      boost::system::error_code woken;
      co_await state->timer.async_wait(asio::redirect_error(asio::use_awaitable, woken));
      state->hinted = false;
    }
  }

 private:
  struct State {
    explicit State(asio::io_context& io) : timer(io) {}
    asio::steady_timer timer;
    bool hinted = false;
  };
  std::shared_ptr<State> state_;
  std::optional<os::ListenWatch> watch_;
  std::list<asio::posix::stream_descriptor> events_;
};

}  // namespace

asio::awaitable<Status> wait_ready(asio::io_context& io, ReadinessWish wish, Promise<std::string> stop) {
  const Instant begun = os::now();
  const Instant end = begun + wish.limit;
  const std::string host_name = wish.service.hosts.empty() ? "localhost" : wish.service.hosts.front();
  std::unique_ptr<Pause> pause;
  if (wish.starting) pause = std::make_unique<Pause>(io, wish.service.port);
  std::string reason;
  for (;;) {
    if (stop.given()) co_return fail(Errc::application, "{}", co_await stop.get());
    const Instant now = os::now();
    if (now >= end)
      co_return fail(Errc::application, "no right answer within {:.0f} ms; the last: {}", to_ms(wish.limit), reason);
    const Status answer = co_await probe::ready(io, wish.endpoint, host_name, wish.service.ready, end - now);
    if (answer) co_return Status{};
    if (reason.empty() || answer.error().code != Errc::timed_out)
      reason = answer.error().message;  // "timed out" says less than what was wrong before
    if (stop.given()) continue;
    if (!wish.starting) co_return fail(Errc::application, "{}", reason);
    // A refusal costs nothing; a wrong answer cost the application a request at a time when it has better things to do.
    const nanoseconds shortest = answer.error().code == Errc::refused ? 1ms : 20ms;
    const nanoseconds wait = std::clamp<nanoseconds>((os::now() - begun) / 16, shortest, 100ms);
    co_await pause->wait(wait);
  }
}

}  // namespace yado::agent
