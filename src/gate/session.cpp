#include "gate/session.hpp"

#include "os/clock.hpp"

namespace yado::gate {
namespace {

Errc code_for(int status) {
  switch (status) {
    case 400:
    case 431:
    case 505:
      return Errc::invalid_argument;
    case 404:
      return Errc::not_found;
    case 408:
      return Errc::timed_out;
    case 501:
      return Errc::unsupported;
    default:
      return Errc::unavailable;
  }
}

}  // namespace

Session::Session(std::shared_ptr<Hub> hub, Socket socket, std::string client_address)
    : hub_(std::move(hub)),
      client_(std::make_shared<Peer>(std::move(socket), buffer_bytes)),
      client_address_(std::move(client_address)),
      parser_(wire::Parser::Kind::request, hub_->limits.head_bytes),
      patience_([this] { out_of_time(); }),
      stall_([this] { client_->reset(); }) {
  client_->tune();
  client_->set_watcher(this);
  client_->set_stall_guard(&stall_, &hub_->stall_time);
}

Task<void> Session::run(std::shared_ptr<Session> self) {
  for (bool go_on = true; go_on && !self->hub_->stopped();) {
    go_on = co_await self->read_head();
    if (go_on) go_on = co_await self->serve();
  }
  self->patience_.disarm();
  self->stall_.disarm();
  self->client_->set_watcher(nullptr);
  self->client_->close();
  self->hub_->leave(*self);
}

void Session::stop() {
  client_gone_ = true;
  client_->close();
  if (upstream_) upstream_->reset();
  if (retry_) retry_->cancel();
  decided_.wake();
}

// ---- what the Scheduler decided ------------------------------------------------------------------------------------

void Session::forward(Forward forward) {
  next_ = std::move(forward);
  decided_.wake();
}

void Session::refuse(Refuse refuse) {
  next_.reset();
  refused_ = std::move(refuse);
  decided_.wake();
}

void Session::abandon(int attempt) {
  if (next_ && next_->attempt == attempt) return next_.reset();  // it had not even begun
  if (attempt != attempt_ || !upstream_) return;
  abandoned_ = true;
  upstream_->reset();
  if (retry_) retry_->cancel();
}

// ---- what happens to the client ------------------------------------------------------------------------------------

void Session::unasked(Peer&) {
  if (client_->ended()) return client_lost();
  client_->watch();  // the beginning of its next request; go on watching while there is room
}

/// A client that closes does not wait for an answer any more, also when it closed only its half: that cannot be told
/// from a client that was killed.
void Session::client_lost() {
  client_gone_ = true;
  if (upstream_) upstream_->reset();
  if (retry_) retry_->cancel();
  decided_.wake();
}

void Session::out_of_time() {
  timed_out_ = true;
  client_->interrupt();
}

Task<bool> Session::to_client(std::string_view first, std::string_view second) {
  const auto error = co_await client_->write(first, second);
  if (error) client_lost();
  co_return !error;
}

ClientConnection Session::client_connection(bool keep) const {
  if (!keep) return ClientConnection::close;
  return request_.minor == 0 ? ClientConnection::keep_alive_1_0 : ClientConnection::keep_alive;
}

// ---- one request ---------------------------------------------------------------------------------------------------

/// True when parser_.head() is complete. False: the connection is to be closed, and what there was to say was said.
Task<bool> Session::read_head() {
  bool begun = !client_->unread().empty();
  patience_.arm(begun ? hub_->head_time : hub_->idle_time);
  for (;;) {
    auto step = parser_.next(client_->unread());
    if (!step) {
      patience_.disarm();
      co_return co_await refuse_malformed(parser_.refusal_status(), step.error().message);
    }
    client_->consume(step->consumed);
    if (step->event == wire::Parser::Event::head) break;
    if (!begun && !parser_.idle()) {
      begun = true;
      patience_.arm(hub_->head_time);
    }
    if (const bool more = co_await client_->more(); more) continue;
    patience_.disarm();
    if (timed_out_ && begun && !client_->ended()) {
      std::string why =
          fmt::format("the request's head was not complete within {:.0f} ms", to_ms(hub_->limits.head_time));
      co_return co_await refuse_malformed(408, std::move(why));
    }
    co_return false;
  }
  patience_.disarm();
  co_return true;
}

/// True when the connection may carry another request.
Task<bool> Session::serve() {
  request_ = std::move(parser_.head());
  keep_alive_ = request_.keep_alive && !hub_->stopped();
  body_.clear();
  body_complete_ = request_bad_ = continue_sent_ = answer_begun_ = client_gone_ = false;
  next_.reset();
  refused_.reset();
  attempt_ = 0;
  ++hub_->counters.requests;

  auto asked = understand(request_);
  if (!asked)
    co_return co_await refuse_malformed(asked.error().code == Errc::unsupported ? 501 : 400, asked.error().message);
  asked_ = std::move(*asked);
  if (!gather_body()) co_return co_await refuse_malformed(parser_.refusal_status(), why_bad_);

  id_ = hub_->enlist(*this);
  admit(replayable());
  const bool go_on = co_await decide_and_answer();
  hub_->strike(id_);
  upstream_.reset();
  retry_.reset();
  co_return go_on;
}

/// What of the body came with the head. False: it is malformed.
bool Session::gather_body() {
  while (body_.size() < hub_->limits.replay_bytes) {
    auto step = parser_.next(client_->unread());
    if (!step) {
      why_bad_ = step.error().message;
      return false;
    }
    client_->consume(step->consumed);
    body_.append(step->body);
    if (step->event == wire::Parser::Event::end) {
      body_complete_ = true;
      return true;
    }
    if (step->event == wire::Parser::Event::need_more) return true;
  }
  return true;
}

/// Whether all of the body will be at hand for another attempt. One of unknown length is not waited for.
bool Session::replayable() const {
  return body_complete_ ||
         (request_.body == wire::BodyKind::length && request_.content_length <= hub_->limits.replay_bytes);
}

void Session::admit(bool replayable) {
  const std::string_view key = hub_->idempotency_header(asked_.host_name);
  const bool has_key = !key.empty() && !wire::find(request_.headers, key).empty();
  hub_->scheduler.request(id_, asked_.host_name, asked_.method, has_key, replayable, os::now());
  hub_->carry_out();
}

Task<bool> Session::decide_and_answer() {
  for (;;) {
    if (client_gone_ || request_bad_) {
      co_await end_pump();
      hub_->scheduler.client_gone(id_, os::now());
      hub_->carry_out();
      if (!client_gone_ && !answer_begun_) co_return co_await refuse_malformed(400, why_bad_);
      ++hub_->counters.clients_gone;
      client_->reset();
      co_return false;
    }
    if (refused_) {
      co_await end_pump();
      if (refused_->outcome == Outcome::unknown)
        ++hub_->counters.unknown_outcomes;
      else
        ++hub_->counters.refused;
      if (!answer_begun_) co_return co_await send_refusal(refused_->status, refused_->outcome, refused_->why);
      // A clean end would make a part look like the whole.
      ++hub_->counters.broken_off;
      client_->reset();
      co_return false;
    }
    if (next_) {
      Forward forward = std::move(*next_);
      next_.reset();
      const Ended ended = co_await attempt(std::move(forward));
      if (ended == Ended::otherwise) continue;
      if (keep_alive_) co_return true;
      co_await end_gently();
      co_return false;
    }
    client_->watch();
    ++hub_->counters.held;
    co_await decided_.wait();
    --hub_->counters.held;
  }
}

// ---- answers of the gate's own -------------------------------------------------------------------------------------

Task<bool> Session::send_refusal(int status, Outcome outcome, std::string message) {
  // A body that nobody took stands between this request and the next one. What is here already can be skipped.
  while (!body_complete_ && !request_bad_) {
    auto step = parser_.next(client_->unread());
    if (!step || step->event == wire::Parser::Event::need_more) break;
    client_->consume(step->consumed);
    body_complete_ = step->event == wire::Parser::Event::end;
  }
  const bool keep = keep_alive_ && body_complete_;
  const Errc code = code_for(status);
  const std::string text = refusal(status, outcome, name_of(code), message, retryable(code), client_connection(keep),
                                   request_.method != "HEAD");
  ++hub_->counters.answers_by_class[status / 100];
  const bool sent = co_await to_client(text);
  if (!sent) co_return false;
  if (!keep) co_await end_gently();
  co_return keep;
}

/// The connection cannot go on: where the next request would begin is not known.
Task<bool> Session::refuse_malformed(int status, std::string message) {
  ++hub_->counters.refused_malformed;
  ++hub_->counters.answers_by_class[status / 100];
  const Errc code = code_for(status);
  const std::string text =
      refusal(status, Outcome::none, name_of(code), message, false, ClientConnection::close, request_.method != "HEAD");
  const bool sent = co_await to_client(text);
  if (sent) co_await end_gently();
  co_return false;
}

/// Closing with unread bytes in the socket would reset the connection and could take the answer away from the client
/// before it has read it: say that nothing more comes, and take in what the client still sends, for a limited time.
Task<void> Session::end_gently() {
  client_->shutdown_send();
  timed_out_ = false;
  patience_.arm(hub_->head_time);
  while (!timed_out_) {
    client_->consume(client_->unread().size());
    if (const bool more = co_await client_->more(); !more) break;
  }
  patience_.disarm();
}

}  // namespace yado::gate
