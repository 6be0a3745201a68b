#pragma once
// Per request: who answers it, when, and whether it may be asked again. Pure: no sockets, no clock.
//
//   request ──▶ up ─────────▶ Forward ──answering──▶ finished
//     │          │                │ failed / host silent / instance unresponsive
//     │          │                ▼
//     └─ asleep, raising ──▶ held ◀── may be replayed        may not ──▶ Refuse 502 "outcome: unknown"
//                             │ relocated
//                             └──▶ Forward (again)
//
// Silence is judged by three probes (one SYN each; a RST is an answer) under a time-out learnt from the host's own
// round trips. Many requests of one workload share one relocation.
//
// The shell calls one method per event and then carries out take() in order. Unknown request ids are ignored: an event
// of an attempt that was given up may still arrive.

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "detect/rtt.hpp"
#include "model/calls.hpp"
#include "model/cluster.hpp"
#include "plan/rate_limit.hpp"

namespace yado::gate {

using RequestId = std::uint64_t;

/// RFC 9110, 9.2: what the method promises.
enum class Method { safe, idempotent, other };

/// What a client is told about a request that was not answered by the application.
enum class Outcome {
  none,     ///< it never reached the application: repeating it is harmless
  unknown,  ///< it may have taken effect
};

/// Why an attempt ended without an answer.
enum class Failure {
  refused,  ///< RST on connect: the host lives, nobody listens; nothing was sent
  closed,   ///< its kernel ended the connection after something was sent and before the answer was whole
  lost,     ///< our kernel gave the connection up (no acknowledgement, no route): no sign of life
};

struct Forward {
  RequestId request;
  int attempt;  ///< events of older attempts are ignored
  HostId host;
  Endpoint endpoint;
  bool fresh_connection;  ///< do not use a kept connection: its SYN is this request's host check
  WorkloadId workload;
  Epoch epoch;  ///< of the owner that is asked: named in its answer
};
struct Probe {
  HostId host;
  Endpoint endpoint;
  std::uint64_t token;
};
/// Ask control to move or wake a workload. One is under way per workload at a time.
struct Ask {
  WorkloadId workload;
  Epoch observed;
  Evidence evidence;
  HostId suspect;
};
/// Control is down and the workload is `shared`: ask a fallback host's agent directly.
struct RaiseWithoutControl {
  WorkloadId workload;
  HostId host;
  Epoch epoch;
  InstanceId instance;
};
struct Refuse {
  RequestId request;
  int status;
  Outcome outcome;
  std::string why;
};
/// Give up the upstream attempt (close its connection); the request itself lives on.
struct Abandon {
  RequestId request;
  int attempt;
};
/// A workload with a lifetime has been idle that long here; or, after that was said, is being asked for again.
struct ReportIdle {
  WorkloadId workload;
  Epoch epoch;
  bool idle;
};
struct Report {
  Event event;
};

using Action = std::variant<Forward, Probe, Ask, RaiseWithoutControl, Refuse, Abandon, ReportIdle, Report>;

class Scheduler {
 public:
  /// `granter`: this gate's number in epochs (1..255).
  explicit Scheduler(std::uint8_t granter) : granter_(granter) {}

  // Requests.
  void request(RequestId id, std::string_view host_name, Method method, bool has_idempotency_key, bool replayable_body,
               Instant now);
  void connected(RequestId id, int attempt, nanoseconds took, Instant now);  ///< SYN-ACK: the host lives
  void sent(RequestId id, int attempt);  ///< bytes of the request are about to be handed to the kernel
  void answering(RequestId id, int attempt, Instant now);  ///< first byte of the answer: cannot be replayed any more
  void heard(RequestId id, int attempt, Instant now);      ///< further bytes of the answer
  void finished(RequestId id, Instant now);
  void failed(RequestId id, int attempt, Failure failure, Instant now);
  void client_gone(RequestId id, Instant now);

  // Hosts.
  void probe_answered(const HostId& host, std::uint64_t token, Instant now);

  // Control.
  void routes(RouteTable table, Instant now);
  void control_reachable(bool reachable, Instant now);
  /// The answer to Ask or RaiseWithoutControl. `fenced`: the old owner can certainly not act any more.
  void relocated(const WorkloadId& workload, Route route, bool fenced, Instant now);
  void relocation_failed(const WorkloadId& workload, const Error& error, Instant now);

  // Time.
  void tick(Instant now);
  Instant next_deadline() const;

  std::vector<Action> take() { return std::exchange(actions_, {}); }
  const RouteTable& table() const { return table_; }
  std::size_t requests_in_hand() const { return requests_.size(); }

 private:
  /// The bounds of what is learnt. 100 ms is what the paper always waits; below 10 ms a busy scheduler looks like a death.
  static constexpr detect::RttEstimator::Bounds probe_bounds{.unknown = 100ms, .least = 10ms, .most = 1s};
  /// An attempt may fail for reasons of its own (a server that closes, a full backlog); not for ever.
  static constexpr int attempts_without_relocation = 4;

  enum class Stage { held, connecting, sent, answering };

  struct InHand {
    WorkloadId workload;
    Method method = Method::other;
    bool has_key = false;
    bool replayable_body = false;
    Stage stage = Stage::held;
    int attempt = 0;
    int wasted = 0;        ///< attempts that ended without a relocation in between
    bool touched = false;  ///< bytes of it went out and repeating it is not harmless: its outcome is never "none" again
    HostId host;           ///< of the attempt under way
    Epoch epoch;
    Instant forwarded{};
  };

  struct Host {
    Endpoint probe_at;
    detect::RttEstimator rtt;
    Instant last_heard{};
    Instant waiting_since{};  ///< since when something has been in hand there without a pause
    std::size_t in_hand = 0;
    bool suspect = false;
    nanoseconds quiet{0};  ///< how long it may be quiet before the next check; doubles while answers are slow
    int tries = 0;         ///< probes of the check under way; 0: none
    std::uint64_t token = 0;
    Instant probe_sent{};
    Instant next_probe{};
  };

  struct Relocation {
    Evidence evidence = Evidence::asleep;
    HostId suspect;
    Instant begun{};
    bool asked_control = false;
    int unanswered = 0;  ///< questions under way: control's, a fallback host's, or both after control came back
    int of_control = 0;  ///< those of them that control was asked: one more when its host is found silent after all
    std::size_t next_fallback = 0;
    std::string last_error;  ///< of the last of them
  };

  struct Workload {
    Route route;
    std::optional<Relocation> relocation;
    std::optional<Instant> holding_since;
    plan::RateLimit limit;
    detect::RttEstimator response;
    nanoseconds patience{0};
    Instant last_progress{};
    Instant last_used{};
    std::size_t in_hand = 0;     ///< all of its requests
    std::size_t unanswered = 0;  ///< those forwarded and without a byte of an answer
    /// Without control it was tried on all hosts, several times in a row: not again at once. The pause is as long as the last round took, twice as long with each.
    struct InVain {
      int rounds = 0;
      Instant until{};
      std::string why;
    } in_vain;
    Epoch granted;               ///< the last one given out here: no two raises carry the same
    bool idle_reported = false;
    bool switch_pending = false;  ///< a new owner has not answered yet
  };

  void place(RequestId id, InHand& request, Instant now);
  void forward(RequestId id, InHand& request, Workload& workload, Instant now);
  void hold(InHand& request, Workload& workload, Instant now);
  void leave_attempt(InHand& request);
  void refuse(RequestId id, int status, Outcome outcome, std::string why);
  void refuse_held(const WorkloadId& id, int status, const std::string& why);
  void erase(RequestId id);
  bool may_replay(const InHand& request, const Workload& workload, bool fenced) const;
  void relocate(const WorkloadId& id, Workload& workload, Evidence evidence, const HostId& suspect, Instant now);
  void pursue(const WorkloadId& id, Workload& workload, Instant now);
  void trust_new_owner(const Workload& workload, const Route& route, Instant now);
  void adopt(const WorkloadId& id, Workload& workload, Route route, Instant now);
  void release(const WorkloadId& id, Workload& workload, bool fenced, Instant now);
  void host_heard(const HostId& id, Instant now);
  void probe(const HostId& id, Host& host, Instant now);
  void suspect(const HostId& id, Host& host, Instant now);
  void check_hosts(Instant now);
  void check_workloads(Instant now);
  bool braked() const;
  Workload* find(const WorkloadId& id);
  InHand* find(RequestId id, int attempt);
  std::vector<RequestId> requests_of(const WorkloadId& id) const;
  void report(std::string kind, const WorkloadId& workload, const HostId& host, Epoch epoch,
              std::map<std::string, std::string> fields = {});

  std::uint8_t granter_;
  bool control_up_ = true;
  RouteTable table_;
  std::map<WorkloadId, Workload> workloads_;
  std::map<std::string, WorkloadId, std::less<>> names_;
  std::map<HostId, Host> hosts_;
  std::map<RequestId, InHand> requests_;
  std::uint64_t last_token_ = 0;
  std::vector<Action> actions_;
};

}  // namespace yado::gate
