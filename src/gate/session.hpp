#pragma once
// One client's connection: its requests one after the other, each held until the Scheduler says where it goes, sent
// there, and its answer passed on.
//
//   run ── read_head ── serve ── (wait) ── attempt ── relay ──▶ answered
//            ▲            ▲                  │ connect, pump (the body, beside relay)
//            │            └── failed, given up: the Scheduler has decided or will
//            └── next request on the same connection
//
// The coroutine run() does everything but two things: pump() sends a long request body while relay() already reads,
// and the Scheduler's decisions arrive by forward(), refuse() and abandon(), which only leave a note and wake run().
//
// session.cpp has the client's side, attempt.cpp the instance's.

#include <memory>
#include <optional>
#include <string>

#include "gate/head.hpp"
#include "gate/hub.hpp"
#include "gate/peer.hpp"
#include "gate/upstream.hpp"

namespace yado::gate {

class Session final : public std::enable_shared_from_this<Session>, private Peer::Watcher {
 public:
  /// What of a request may be in the gate's memory besides the part kept for a replay.
  static constexpr std::size_t buffer_bytes = 16 * 1024;

  Session(std::shared_ptr<Hub> hub, Socket socket, std::string client_address);

  static Task<void> run(std::shared_ptr<Session> self);
  void stop();

  // The Scheduler's decisions.
  void forward(Forward forward);
  void refuse(Refuse refuse);
  void abandon(int attempt);

 private:
  enum class Ended {
    answered,   ///< the client has the whole answer
    otherwise,  ///< look at what the Scheduler decided, at client_gone_ and at request_bad_
  };

  // The client's side.
  Task<bool> read_head();
  Task<bool> serve();
  Task<bool> decide_and_answer();
  void admit(bool replayable);
  bool gather_body();
  bool replayable() const;
  Task<bool> send_refusal(int status, Outcome outcome, std::string message);
  Task<bool> refuse_malformed(int status, std::string message);
  Task<void> end_gently();
  Task<bool> to_client(std::string_view first, std::string_view second = {});
  void unasked(Peer& peer) override;
  void client_lost();
  void out_of_time();
  ClientConnection client_connection(bool keep) const;

  // The instance's side (attempt.cpp).
  Task<Ended> attempt(Forward forward);
  Task<bool> connect(const Forward& forward);
  Task<Ended> relay(const Forward& forward);
  bool begin_answer();
  Task<Ended> tunnel();
  Task<Ended> attempt_failed(Failure failure);
  void begin_pump();
  static Task<void> pump(std::shared_ptr<Session> self, std::shared_ptr<Upstream> upstream);
  static Task<void> client_to_instance(std::shared_ptr<Session> self, std::shared_ptr<Upstream> upstream);
  Task<void> end_pump();
  bool given_up() const { return abandoned_ || client_gone_ || request_bad_; }
  Task<void> settle_upstream();

  std::shared_ptr<Hub> hub_;
  std::shared_ptr<Peer> client_;
  const std::string client_address_;
  wire::Parser parser_;
  TimeLimit::Guard patience_;  // with a head, and with the pause before it
  TimeLimit::Guard stall_;     // with a body that does not get on
  bool timed_out_ = false;
  bool client_gone_ = false;

  // The request in hand.
  RequestId id_ = 0;
  wire::Head request_;
  Asked asked_;
  std::string body_;  // what was taken from the client and may have to be sent (again)
  bool body_complete_ = false;
  bool request_bad_ = false;
  std::string why_bad_;
  bool continue_sent_ = false;
  bool keep_alive_ = false;
  bool answer_begun_ = false;  // the client has seen a part of it: nothing else can be answered any more

  // What the Scheduler wants.
  std::optional<Forward> next_;
  std::optional<Refuse> refused_;
  Signal decided_;

  // The attempt under way.
  int attempt_ = 0;
  bool abandoned_ = false;
  std::shared_ptr<Upstream> upstream_;
  std::shared_ptr<boost::asio::steady_timer> retry_;
  bool pumping_ = false;
  bool pump_must_end_ = false;
};

}  // namespace yado::gate
