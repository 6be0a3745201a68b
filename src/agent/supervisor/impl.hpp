#pragma once
// The parts of the supervisor process, for its own files.
//
//   supervisor.cpp   set-up, the loop, the lease, what the machine tells     calls.cpp   what clients ask for     console.cpp   its console

#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "agent/supervisor/console_tail.hpp"
#include "agent/supervisor/janitor.hpp"
#include "agent/supervisor/log_file.hpp"
#include "agent/supervisor/operation.hpp"
#include "agent/supervisor/protocol.hpp"
#include "lease/holder.hpp"
#include "os/clock.hpp"
#include "workload/instance.hpp"

namespace yado::supervisor {

using nlohmann::json;

struct Connection {
  std::uint64_t number = 0;
  os::Fd socket;
};

/// Who asked what: the answer may come much later, and the client may be gone by then.
struct Asked {
  std::uint64_t client = 0;
  std::int64_t id = 0;
};

/// Who waits for output of the console, or for it to take what was typed.
struct AtConsole {
  Asked asked;
  std::optional<std::uint64_t> from;  ///< of a reader
  std::string input;                  ///< not taken yet
  std::size_t taken = 0;
  bool types = false;
  Instant until{};
};

struct Running {
  Asked asked;
  std::string what;
  Operation operation;
  /// Turns the child's answer into the answer of the call, after the side effects it has here.
  std::function<Result<json>(Result<json>, const Operation&)> finish;
};

class Supervisor {
 public:
  Supervisor(const Config& config, std::unique_ptr<workload::Driver> driver, os::Fd network);

  Status set_up();
  void loop();

 private:
  // Calls.
  void take(std::uint64_t client, const std::string& packet);
  Result<std::optional<json>> call(const std::string& what, const json& message, Asked asked);
  json describe() const;
  Result<std::optional<json>> start(Asked asked);
  Result<std::optional<json>> restore(const json& message, Asked asked);
  Result<std::optional<json>> thaw(Asked asked);
  Status freeze();
  Status put_to_sleep();
  Result<std::optional<json>> checkpoint(const json& message, Asked asked);
  Result<std::optional<json>> hand_over(const json& message, Asked asked);
  Result<std::optional<json>> resplit(const json& message, Asked asked);
  Result<std::optional<json>> used(const json& message, Asked asked);
  Result<std::optional<json>> exec(const json& message, Asked asked);
  Result<std::optional<json>> wait_startup(const json& message, Asked asked);
  Result<std::optional<json>> promote(const json& message, Asked asked);
  Status set_lease(milliseconds ttl);
  Result<json> stop(nanoseconds grace);
  Result<std::optional<json>> console(const json& message, Asked asked);
  /// Answers who waits at the console and has waited for it, or long enough.
  void look_at_console();
  std::optional<Result<json>> serve_console(AtConsole& one);

  /// A change of the whole instance that waits for another. Whoever asked for that may have died, so that its like may not know of it.
  struct Later {
    Result<std::optional<json>> (Supervisor::*begin)(const json& message, Asked asked);
    json message;
    Asked asked;
  };

  // The lease.
  void decide(const lease::Holder::Decision& decision);
  void run_now();
  void want_to_run(Asked asked, std::function<Status()> how);
  bool lease_allows() const { return !lease_ || lease_->may_run(os::now()); }
  void check_suspend();

  // Events of the machine.
  void instance_ended();
  void read_log();
  void look_for_room();
  std::string why_it_stands() const { return !exit_ && look_for_room_at_ != Instant::max() ? "its host's disk is full" : ""; }
  void reap_orphans();
  void set_state(InstanceState state);
  void arm_timer();

  void answer(Asked asked, const Result<json>& result);
  void tell(json event);
  void drop(std::uint64_t client);
  Result<Operation> begin(const std::function<Result<json>(int output)>& work);
  Status need_instance() const;
  bool busy(std::string_view what) const;
  bool has_client(std::uint64_t client) const;
  void begin_later();

  Config config_;
  os::Fd network_;
  os::Process janitor_;
  os::Fd listener_, signals_, timer_;
  std::optional<LogFile> log_;
  ConsoleTail console_;
  std::list<AtConsole> at_console_;
  Instant look_for_room_at_ = Instant::max();  ///< the instance stands still for want of it
  std::list<Connection> clients_;
  std::uint64_t last_client_ = 0;
  std::list<Running> operations_;
  std::vector<Later> later_;  ///< in the order in which they were asked for

  std::unique_ptr<workload::Driver> driver_;
  std::unique_ptr<workload::Instance> instance_;
  InstanceState state_ = InstanceState::starting;
  How how_ = How::none;
  Instant born_{}, state_since_{};
  std::optional<os::ExitStatus> exit_;
  bool log_ended_ = false;
  bool stay_frozen_ = false;  ///< somebody wanted it frozen while an operation had it frozen anyway

  std::optional<lease::Holder> lease_;
  std::uint64_t last_ticket_ = 0;  ///< asked and not answered: repeated to a client that connects
  nanoseconds suspended_;  ///< how long the machine has slept since its boot, as of the last look
  /// What is to be done when the lease allows, and who waits for it.
  std::function<Status()> when_allowed_;
  std::vector<Asked> waiting_;
  bool end_ = false;
};

}  // namespace yado::supervisor
