// One attempt of a Session at one instance.

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>

#include "base/log.hpp"
#include "gate/session.hpp"
#include "os/clock.hpp"

namespace yado::gate {
namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
namespace {

/// Pieces of a body up to this size are copied together; longer ones are written from where they lie.
constexpr std::size_t small_piece_bytes = 4096;
/// Between two attempts to reach a host that cannot be reached (an ICMP error, no route): what the kernel does with a
/// SYN that is lost. The Scheduler's probes judge the host meanwhile.
constexpr milliseconds first_pause = 50ms;
constexpr milliseconds longest_pause = 1s;

void begin_chunk(std::string& out, std::size_t bytes) { fmt::format_to(std::back_inserter(out), "{:x}\r\n", bytes); }
constexpr std::string_view last_chunk = "0\r\n\r\n";

/// True when the other kernel itself ended the connection; any other failure is no sign of life.
bool from_the_peer(const error_code& error) {
  return error == asio::error::eof || error == asio::error::connection_reset || error == asio::error::broken_pipe;
}

}  // namespace

Task<Session::Ended> Session::attempt(Forward forward) {
  attempt_ = forward.attempt;
  abandoned_ = false;
  ++hub_->counters.attempts;
  client_->watch();
  const Place place{forward.host, forward.endpoint};
  upstream_ = forward.fresh_connection ? nullptr : hub_->pool.take(place);
  if (!upstream_) {
    const bool connected = co_await connect(forward);
    if (!connected) co_return Ended::otherwise;
  }

  std::string head = forwarded_head(request_, asked_, client_address_);
  std::string tail;
  if (request_.body == wire::BodyKind::chunked) {
    if (!body_.empty()) {
      begin_chunk(head, body_.size());
      tail = "\r\n";
    }
    if (body_complete_) tail += last_chunk;
  }
  hub_->scheduler.sent(id_, attempt_);
  // A failed write is not looked at: reading says why, and may still bring an answer (413 and closed).
  (void)co_await upstream_->write(head, body_);
  if (!tail.empty() && !given_up()) (void)co_await upstream_->write(tail);
  if (given_up()) co_return Ended::otherwise;
  if (!body_complete_) begin_pump();
  co_return co_await relay(forward);
}

/// False: the attempt is over, and the Scheduler knows.
Task<bool> Session::connect(const Forward& forward) {
  error_code error;
  const auto address = asio::ip::make_address(forward.endpoint.address, error);
  if (error || forward.endpoint.port == 0) {
    log::warn("{} on {} has no address to connect to: \"{}\" port {}", forward.workload, forward.host,
              forward.endpoint.address, forward.endpoint.port);
    hub_->scheduler.failed(id_, attempt_, Failure::lost, os::now());
    hub_->carry_out();
    co_return false;
  }
  const tcp::endpoint endpoint(address, forward.endpoint.port);
  for (milliseconds pause = first_pause;; pause = std::min(2 * pause, longest_pause)) {
    ++hub_->counters.fresh_connections;
    upstream_ = std::make_shared<Upstream>(Socket(hub_->io.get_executor()), Place{forward.host, forward.endpoint},
                                           hub_->limits.head_bytes);
    const auto upstream = upstream_;
    const Instant began = os::now();
    auto [failed] = co_await upstream->socket().async_connect(endpoint, asio::as_tuple(use_task));
    if (given_up()) co_return false;
    const Instant now = os::now();
    if (!failed) {
      upstream->tune();
      hub_->scheduler.connected(id_, attempt_, now - began, now);
      hub_->carry_out();
      co_return !given_up();
    }
    upstream->close();
    if (failed == asio::error::connection_refused || failed == asio::error::connection_reset) {
      hub_->scheduler.failed(id_, attempt_, Failure::refused, now);
      hub_->carry_out();
      co_return false;
    }
    log::debug("connect to {} at {}:{}: {}", forward.host, forward.endpoint.address, forward.endpoint.port,
               failed.message());
    retry_ = std::make_shared<asio::steady_timer>(hub_->io, pause);
    const auto timer = retry_;
    (void)co_await timer->async_wait(asio::as_tuple(use_task));
    if (given_up()) co_return false;
  }
}

Task<Session::Ended> Session::attempt_failed(Failure failure) {
  upstream_->reset();
  co_await end_pump();
  if (given_up()) co_return Ended::otherwise;
  hub_->scheduler.failed(id_, attempt_, failure, os::now());
  hub_->carry_out();
  co_return Ended::otherwise;
}

// ---- the answer ----------------------------------------------------------------------------------------------------

Task<Session::Ended> Session::relay(const Forward& forward) {
  using Step = wire::Parser::Event;
  const auto upstream = upstream_;
  wire::Parser& parser = upstream->parser;
  parser.expect_answer_to(request_.method);
  const Answerer answerer{fmt::format("{}@{}", forward.workload, forward.host), forward.epoch};

  std::string out;
  bool has_head = false, interim = false, whole = false;
  // A short answer of known length is passed on when all of it is here: should its instance fall silent in the middle,
  // the client has seen nothing yet and the request can still go elsewhere, or be refused with a reason.
  bool wait_for_whole = false;
  Framing framing = Framing::none;
  while (!whole) {
    auto step = parser.next(upstream->unread());
    if (!step) {
      log::warn("{} answered what is no HTTP: {}", answerer.instance, step.error().message);
      co_return co_await attempt_failed(Failure::closed);
    }
    upstream->consume(step->consumed);
    switch (step->event) {
      case Step::head: {
        const wire::Head& answer = parser.head();
        if (answer.status == 101) {
          if (asked_.websocket) {
            out += switching_head(answer, answerer);
            if (!begin_answer()) co_return Ended::otherwise;
            if (const bool sent = co_await to_client(out); !sent) co_return Ended::otherwise;
            co_return co_await tunnel();
          }
          log::warn("{} switched protocols without having been asked to", answerer.instance);
          co_return co_await attempt_failed(Failure::closed);
        }
        interim = answer.status / 100 == 1;
        if (interim) {
          if (answer.status != 100 && request_.minor >= 1) out += interim_head(answer);
          break;
        }
        has_head = true;
        framing = framing_for(answer, request_.minor);
        // With an answer before the end of the request, what is left of the request is not worth its transport.
        keep_alive_ = keep_alive_ && framing != Framing::until_close && body_complete_;
        out += answer_head(answer, framing, client_connection(keep_alive_), answerer);
        wait_for_whole = framing == Framing::length && answer.content_length <= hub_->limits.whole_answer_bytes;
        break;
      }
      case Step::body: {
        if (framing == Framing::chunked) begin_chunk(out, step->body.size());
        if (wait_for_whole || step->body.size() <= small_piece_bytes) {
          out += step->body;
        } else {
          if (!begin_answer()) co_return Ended::otherwise;
          if (const bool sent = co_await to_client(out, step->body); !sent) co_return Ended::otherwise;
          out.clear();
        }
        if (framing == Framing::chunked) out += "\r\n";
        break;
      }
      case Step::end:
        if (interim)
          interim = false;
        else
          whole = true;
        break;
      case Step::need_more: {
        if (!out.empty() && !wait_for_whole) {
          if (has_head && !begin_answer()) co_return Ended::otherwise;
          if (const bool sent = co_await to_client(out); !sent) co_return Ended::otherwise;
          out.clear();
        }
        const bool more = co_await upstream->more();
        if (given_up()) co_return Ended::otherwise;
        if (!more) {
          const bool ends_here = has_head && upstream->error() == asio::error::eof && parser.finish().has_value();
          if (!ends_here)
            co_return co_await attempt_failed(from_the_peer(upstream->error()) ? Failure::closed : Failure::lost);
          whole = true;
          break;
        }
        hub_->scheduler.heard(id_, attempt_, os::now());
        hub_->carry_out();
        if (given_up()) co_return Ended::otherwise;
        break;
      }
    }
  }
  if (framing == Framing::chunked) out += last_chunk;
  if (!begin_answer()) co_return Ended::otherwise;
  const bool sent = co_await to_client(out);
  if (!sent) co_return Ended::otherwise;
  co_await settle_upstream();
  co_return Ended::answered;
}

/// The client is about to see a part of the answer: from here on there is no other. False: given up in this moment.
bool Session::begin_answer() {
  if (std::exchange(answer_begun_, true)) return true;
  const int status = upstream_->parser.head().status;
  if (status != 101) ++hub_->counters.answers_by_class[status / 100];
  hub_->scheduler.answering(id_, attempt_, os::now());
  hub_->carry_out();
  return !given_up();
}

/// After a whole answer: the instance's connection is kept if it can carry another exchange.
Task<void> Session::settle_upstream() {
  hub_->scheduler.finished(id_, os::now());
  hub_->carry_out();
  const bool reusable = body_complete_ && !pumping_ && upstream_->parser.head().keep_alive && !upstream_->ended();
  if (reusable) {
    hub_->pool.keep(std::move(upstream_));
  } else {
    upstream_->close();
    co_await end_pump();
    keep_alive_ = keep_alive_ && body_complete_;
  }
  upstream_.reset();
}

// ---- the request's body, while the answer may already come ---------------------------------------------------------

void Session::begin_pump() {
  pumping_ = true;
  pump_must_end_ = false;
  asio::co_spawn(hub_->io.get_executor(), pump(shared_from_this(), upstream_), asio::detached);
}

Task<void> Session::end_pump() {
  if (!pumping_) co_return;
  pump_must_end_ = true;
  if (upstream_) upstream_->reset();
  client_->interrupt();
  while (pumping_) co_await decided_.wait();
}

Task<void> Session::pump(std::shared_ptr<Session> self, std::shared_ptr<Upstream> upstream) {
  using Step = wire::Parser::Event;
  Peer& client = *self->client_;
  const bool chunked = self->request_.body == wire::BodyKind::chunked;
  const bool keep = self->replayable();
  std::string frame;
  if (self->asked_.expects_continue && !self->continue_sent_ && self->body_.empty() && client.unread().empty()) {
    self->continue_sent_ = true;
    (void)co_await client.write("HTTP/1.1 100 Continue\r\n\r\n");
  }
  while (!self->pump_must_end_ && !self->given_up()) {
    auto step = self->parser_.next(client.unread());
    if (!step) {
      self->request_bad_ = true;
      self->why_bad_ = step.error().message;
      upstream->reset();
      break;
    }
    client.consume(step->consumed);
    if (step->event == Step::body) {
      if (keep) self->body_.append(step->body);
      frame.clear();
      if (chunked) begin_chunk(frame, step->body.size());
      error_code failed = co_await upstream->write(frame, step->body);
      if (!failed && chunked) failed = co_await upstream->write("\r\n");
      if (failed) break;  // relay() sees why
    } else if (step->event == Step::end) {
      self->body_complete_ = true;
      if (chunked) (void)co_await upstream->write(last_chunk);
      client.watch();
      break;
    } else {
      self->stall_.arm(self->hub_->stall_time);
      const bool more = co_await client.more();
      self->stall_.disarm();
      if (more) continue;
      if (client.ended()) self->client_lost();
      break;
    }
  }
  self->pumping_ = false;
  self->decided_.wake();
}

// ---- websocket -----------------------------------------------------------------------------------------------------

/// Bytes in both directions until one side ends it.
Task<Session::Ended> Session::tunnel() {
  const auto upstream = upstream_;
  pumping_ = true;
  pump_must_end_ = false;
  asio::co_spawn(hub_->io.get_executor(), client_to_instance(shared_from_this(), upstream), asio::detached);
  for (;;) {
    if (!upstream->unread().empty()) {
      if (const bool sent = co_await to_client(upstream->unread()); !sent) break;
      upstream->consume(upstream->unread().size());
    }
    const bool more = co_await upstream->more();
    if (!more) break;
    hub_->scheduler.heard(id_, attempt_, os::now());
    hub_->carry_out();
  }
  co_await end_pump();
  keep_alive_ = false;
  if (abandoned_) co_return Ended::otherwise;
  hub_->scheduler.finished(id_, os::now());
  hub_->carry_out();
  co_return Ended::answered;
}

Task<void> Session::client_to_instance(std::shared_ptr<Session> self, std::shared_ptr<Upstream> upstream) {
  Peer& client = *self->client_;
  while (!self->pump_must_end_) {
    if (!client.unread().empty()) {
      if (const error_code failed = co_await upstream->write(client.unread()); failed) break;
      client.consume(client.unread().size());
    }
    if (const bool more = co_await client.more(); !more) break;
  }
  upstream->close();
  self->pumping_ = false;
  self->decided_.wake();
}

}  // namespace yado::gate
