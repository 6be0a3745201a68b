#include "agent/supervisor/supervisor.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>

#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "agent/supervisor/janitor.hpp"
#include "agent/supervisor/log_file.hpp"
#include "agent/supervisor/operation.hpp"
#include "agent/supervisor/socket.hpp"
#include "api/fields.hpp"
#include "base/log.hpp"
#include "lease/holder.hpp"
#include "model/names.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/mount.hpp"
#include "workload/container/container.hpp"
#include "workload/container/startup.hpp"

namespace yado::supervisor {
namespace {

using nlohmann::json;
using container::Container;

constexpr nanoseconds suspend_threshold = 100ms;  ///< BOOTTIME ahead of MONOTONIC by more than this: the machine slept

nanoseconds suspended_so_far() {
  timespec monotonic{};
  ::clock_gettime(CLOCK_MONOTONIC, &monotonic);
  return os::now().time_since_epoch() - (seconds(monotonic.tv_sec) + nanoseconds(monotonic.tv_nsec));
}

struct Client {
  std::uint64_t number = 0;
  os::Fd socket;
};

/// Who asked what: the answer may come much later, and the client may be gone by then.
struct Asked {
  std::uint64_t client = 0;
  std::int64_t id = 0;
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
  Supervisor(const Config& config, os::Fd network) : config_(config), network_(std::move(network)) {}

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
  Result<std::optional<json>> checkpoint(const json& message, Asked asked);
  Result<std::optional<json>> exec(const json& message, Asked asked);
  Result<std::optional<json>> wait_startup(const json& message, Asked asked);
  Result<std::optional<json>> promote(const json& message, Asked asked);
  Status set_lease(milliseconds ttl);
  Result<json> stop(nanoseconds grace);

  // The lease.
  void decide(const lease::Holder::Decision& decision);
  void run_now();
  void want_to_run(Asked asked, std::function<Status()> how);
  bool lease_allows() const { return !lease_ || lease_->may_run(os::now()); }
  void check_suspend();

  // Events of the machine.
  void container_ended();
  void read_log();
  void reap_orphans();
  void set_state(InstanceState state);
  void arm_timer();

  void answer(Asked asked, const Result<json>& result);
  void tell(json event);
  void drop(std::uint64_t client);
  Result<Operation> begin(const std::function<Result<json>(int output)>& work);
  container::Criu criu() const;
  container::Place place() const;
  Status need_container() const;
  bool busy(std::string_view what) const;

  Config config_;
  os::Fd network_;
  os::Process janitor_;
  os::Fd listener_, signals_, timer_;
  std::optional<LogFile> log_;
  std::list<Client> clients_;
  std::uint64_t last_client_ = 0;
  std::list<Running> operations_;

  std::optional<Container> container_;
  InstanceState state_ = InstanceState::starting;
  How how_ = How::none;
  Instant born_{}, state_since_{};
  std::optional<os::ExitStatus> exit_;
  bool log_ended_ = false;
  bool stay_frozen_ = false;  ///< somebody wanted it frozen while an operation had it frozen anyway

  std::optional<lease::Holder> lease_;
  std::uint64_t last_ticket_ = 0;  ///< asked and not answered: repeated to a client that connects
  nanoseconds suspended_ = suspended_so_far();
  /// What is to be done when the lease allows, and who waits for it.
  std::function<Status()> when_allowed_;
  std::vector<Asked> waiting_;
  bool end_ = false;
};

// ---- set-up and the loop ----

Status Supervisor::set_up() {
  YADO_TRY(os::enter_private_mounts(), "supervisor");
  // For good: going there and back for every start, restore and thaw costs some 13 ms each time, and what this process
  // speaks to others over (a socket with a path) does not depend on the network namespace.
  if (network_.valid() && ::setns(network_.get(), CLONE_NEWNET) != 0) return fail_errno("enter the instance's network");
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  ::signal(SIGPIPE, SIG_IGN);
  YADO_ASSIGN(janitor_, start_janitor(config_.cgroup, socket_of(config_.directory)), "supervisor");
  sigset_t handled;
  sigemptyset(&handled);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) sigaddset(&handled, signal);
  ::sigprocmask(SIG_BLOCK, &handled, nullptr);
  signals_ = os::Fd(::signalfd(-1, &handled, SFD_CLOEXEC | SFD_NONBLOCK));
  timer_ = os::Fd(::timerfd_create(CLOCK_BOOTTIME, TFD_CLOEXEC | TFD_NONBLOCK));
  if (!signals_.valid() || !timer_.valid()) return fail_errno("signalfd and timerfd");
  YADO_ASSIGN(log_, LogFile::open(log_of(config_.directory), config_.log_bytes), "supervisor");
  state_since_ = os::now();
  if (config_.purpose == Purpose::owner && config_.spec.policy.consistency == Consistency::exclusive)
    lease_.emplace(config_.spec.policy.lease);
  YADO_ASSIGN(listener_, listen_at(socket_of(config_.directory)), "supervisor");
  return {};
}

void Supervisor::loop() {
  while (!end_) {
    arm_timer();
    std::vector<pollfd> wanted;
    const auto watch = [&](int fd) { wanted.push_back({fd, POLLIN, 0}); };  // poll(2) skips negative ones
    watch(listener_.get());
    watch(signals_.get());
    watch(timer_.get());
    watch(container_ && !log_ended_ ? container_->output().get() : -1);
    watch(container_ && !exit_ ? container_->process().fd() : -1);
    const std::size_t first_client = wanted.size();
    std::vector<std::uint64_t> client_numbers;
    for (const Client& client : clients_) {
      watch(client.socket.get());
      client_numbers.push_back(client.number);
    }
    const std::size_t first_operation = wanted.size();
    std::vector<Running*> running;
    for (Running& operation : operations_) {
      watch(operation.operation.result_fd());
      watch(operation.operation.output_fd());
      running.push_back(&operation);
    }
    if (::poll(wanted.data(), wanted.size(), -1) < 0 && errno != EINTR) {
      log::error("poll: {}", fail_errno("poll").error().message);
      return;
    }
    // Time first: nothing that was asked in the meantime may run on a lease that is over.
    check_suspend();
    std::uint64_t ticks;
    (void)!::read(timer_.get(), &ticks, sizeof ticks);
    if (lease_) decide(lease_->tick(os::now()));

    const auto ready = [&](std::size_t i) { return wanted[i].revents != 0; };
    if (ready(3)) read_log();
    if (ready(4)) container_ended();
    for (std::size_t i = 0; i < running.size(); ++i) {
      if (ready(first_operation + 2 * i + 1)) running[i]->operation.read_output();
      if (!ready(first_operation + 2 * i) || !running[i]->operation.read_result()) continue;
      const auto found = std::ranges::find_if(operations_, [&](const Running& one) { return &one == running[i]; });
      std::list<Running> done;
      done.splice(done.begin(), operations_, found);  // off the list first: finishing may begin another one
      answer(done.front().asked, done.front().finish(done.front().operation.answer(), done.front().operation));
    }
    for (std::size_t i = 0; i < client_numbers.size() && !end_; ++i)
      if (ready(first_client + i)) {
        const auto found = std::ranges::find(clients_, client_numbers[i], &Client::number);
        if (found == clients_.end()) continue;
        auto packet = receive_packet(found->socket);
        if (!packet) drop(client_numbers[i]);
        else if (*packet) take(client_numbers[i], **packet);
      }
    if (ready(1)) {
      signalfd_siginfo info{};
      while (::read(signals_.get(), &info, sizeof info) == sizeof info)
        if (info.ssi_signo != SIGCHLD) end_ = true;
      reap_orphans();
    }
    if (ready(0)) {
      os::Fd fresh(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
      if (fresh.valid()) {
        const int bytes = 1 << 20;
        (void)::setsockopt(fresh.get(), SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
        clients_.push_back({++last_client_, std::move(fresh)});
        // A renewal that was asked of nobody is asked of the newcomer.
        if (lease_ && last_ticket_ != 0)
          (void)send_packet(clients_.back().socket, api::dump(json{{"event", "renew"},
                                                                   {"ticket", last_ticket_},
                                                                   {"epoch", config_.epoch.value()}}));
      }
    }
  }
  for (Running& operation : operations_) operation.operation.cancel();
  if (container_ && !exit_) (void)stop(5s);
  ::unlink(socket_of(config_.directory).c_str());
}

void Supervisor::arm_timer() {
  itimerspec at{};
  if (lease_)
    if (const Instant next = lease_->next_deadline(); next != Instant::max()) {
      const auto since = std::max<nanoseconds>(next.time_since_epoch(), 1ns);
      at.it_value = {static_cast<time_t>(since / 1s), static_cast<long>((since % 1s).count())};
    }
  ::timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &at, nullptr);
}

void Supervisor::reap_orphans() {
  // The children that somebody waits for by their pidfd are left alone; the rest came here because this process is
  // the subreaper of what its children left behind.
  siginfo_t info{};
  while (::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0) {
    const bool known = (container_ && container_->process().pid() == info.si_pid) ||
                       (janitor_.running() && janitor_.pidfd().pid() == info.si_pid) ||
                       std::ranges::any_of(operations_, [&](const Running&) { return true; });
    if (known) return;
    ::waitpid(info.si_pid, nullptr, WNOHANG);
    info.si_pid = 0;
  }
}

// ---- the instance's own doings ----

void Supervisor::read_log() {
  char buffer[65536];
  // A bound per turn: a program that writes without end must not keep the lease waiting.
  for (int turn = 0; turn < 16; ++turn) {
    const ssize_t n = ::read(container_->output().get(), buffer, sizeof buffer);
    // A program may close its output and live on: an ended pipe would be "readable" for ever.
    if (n == 0) log_ended_ = true;
    if (n <= 0) return;
    log_->append(std::string_view(buffer, static_cast<std::size_t>(n)));
  }
}

void Supervisor::container_ended() {
  const auto ended = container_->reap();
  if (!ended || !*ended) return;
  exit_ = **ended;
  read_log();
  set_state(InstanceState::exited);
  when_allowed_ = nullptr;
  for (const Asked& asked : std::exchange(waiting_, {}))
    answer(asked, fail(Errc::application, "the instance has ended: {}", exit_->text()));
  std::string end = log_->tail(log_tail_bytes);
  container_.reset();
  tell({{"event", "exited"}, {"code", exit_->code}, {"signal", exit_->signal}, {"log", std::move(end)}});
}

void Supervisor::set_state(InstanceState state) {
  if (state == state_) return;
  state_ = state;
  state_since_ = os::now();
  tell({{"event", "state"}, {"state", name_of(state)}});
}

// ---- the lease ----

void Supervisor::check_suspend() {
  const nanoseconds now_suspended = suspended_so_far();
  const bool slept = now_suspended - suspended_ > suspend_threshold;
  suspended_ = now_suspended;
  if (!slept || !lease_ || state_ != InstanceState::running) return;
  log::warn("the machine was suspended: renewing before going on");
  (void)freeze();
  lease_->sleep();
  want_to_run({}, [this] { return container_->thaw(); });
}

void Supervisor::decide(const lease::Holder::Decision& decision) {
  if (decision.freeze && container_ && !exit_ && state_ != InstanceState::frozen) {
    log::warn("{}: the lease of {} is over: freezing", config_.instance, config_.epoch);
    // Whoever renews later may thaw it again.
    when_allowed_ = [this] { return container_->thaw(); };
    if (auto frozen = freeze(); !frozen) {
      // What cannot be frozen in time must not run: dead is as good, and certain.
      log::error("{}: {}: killing it instead", config_.instance, frozen.error().text());
      (void)container_->cgroup().kill_all();
    }
    tell({{"event", "lease-over"}, {"epoch", config_.epoch.value()}});
  }
  if (decision.send_renewal) {
    last_ticket_ = *decision.send_renewal;
    tell({{"event", "renew"}, {"ticket", last_ticket_}, {"epoch", config_.epoch.value()}});
  }
  if (decision.run) run_now();
}

void Supervisor::run_now() {
  if (!when_allowed_) return;
  // A checkpoint has it frozen; it goes on when that is done.
  if (busy("checkpoint")) return;
  const auto how = std::exchange(when_allowed_, nullptr);
  const Status done = how();
  if (done) set_state(InstanceState::running);
  for (const Asked& asked : std::exchange(waiting_, {}))
    answer(asked, done ? Result<json>(json::object()) : Result<json>(std::unexpected(done.error())));
}

void Supervisor::want_to_run(Asked asked, std::function<Status()> how) {
  when_allowed_ = std::move(how);
  if (asked.client != 0) waiting_.push_back(asked);
  if (!lease_) return run_now();
  decide(lease_->begin(os::now()));
}

Status Supervisor::set_lease(milliseconds ttl) {
  if (ttl <= milliseconds(0)) {
    lease_.reset();
    last_ticket_ = 0;
    if (when_allowed_) run_now();
    return {};
  }
  lease_.emplace(ttl);
  if (state_ == InstanceState::running) {
    YADO_TRY(freeze(), "set_lease");
    want_to_run({}, [this] { return container_->thaw(); });
  }
  return {};
}

// ---- calls ----

void Supervisor::take(std::uint64_t client, const std::string& packet) {
  Asked asked{client, 0};
  std::string what;
  std::optional<Epoch> epoch;
  const auto message = api::parse_json(packet);
  if (!message) return answer(asked, std::unexpected(message.error()));
  Status status;
  api::Fields(*message, "", status).required("id", asked.id).required("do", what).optional("epoch", epoch);
  if (!status) return answer(asked, std::unexpected(status.error()));
  if (epoch && *epoch < config_.epoch)
    return answer(asked, fail(Errc::stale_epoch, "{} of {} carries epoch {}, but {} has been granted", what,
                              config_.instance, *epoch, config_.epoch));
  auto done = call(what, *message, asked);
  if (!done) answer(asked, std::unexpected(done.error()));
  else if (*done) answer(asked, **done);
}

Result<std::optional<json>> Supervisor::call(const std::string& what, const json& message, Asked asked) {
  Status status;
  api::Fields fields(message, "", status);
  const auto nothing = [](const Status& done) -> Result<std::optional<json>> {
    if (!done) return std::unexpected(done.error());
    return json::object();
  };
  if (what == "describe") return describe();
  if (what == "log") return json{{"log", log_->tail(log_tail_bytes)}};
  if (what == "start") return start(asked);
  if (what == "restore") return restore(message, asked);
  if (what == "thaw") return thaw(asked);
  if (what == "checkpoint") return checkpoint(message, asked);
  if (what == "exec") return exec(message, asked);
  if (what == "wait_startup") return wait_startup(message, asked);
  if (what == "promote") return promote(message, asked);
  if (what == "freeze") {
    YADO_TRY(need_container(), what);
    when_allowed_ = nullptr;
    for (const Asked& waiting : std::exchange(waiting_, {}))
      answer(waiting, fail(Errc::canceled, "it was frozen before it was allowed to run"));
    if (lease_) lease_->sleep();
    last_ticket_ = 0;
    return nothing(freeze());
  }
  if (what == "signal") {
    int number = 0;
    fields.required("number", number);
    YADO_TRY(status, what);
    YADO_TRY(need_container(), what);
    return nothing(container_->signal(number));
  }
  if (what == "stats") {
    YADO_TRY(need_container(), what);
    YADO_ASSIGN(const os::CgroupUse use, container_->stats(), what);
    return json{{"cpu_us", std::chrono::duration_cast<std::chrono::microseconds>(use.cpu).count()},
                {"memory_bytes", use.memory_bytes},
                {"memory_limit_kills", use.memory_limit_kills}};
  }
  if (what == "set_lease") {
    milliseconds ttl{0};
    fields.required("lease_ms", ttl);
    YADO_TRY(status, what);
    return nothing(set_lease(ttl));
  }
  if (what == "renewed") {
    std::uint64_t ticket = 0;
    milliseconds ttl{0};
    fields.required("ticket", ticket).required("ttl_ms", ttl);
    YADO_TRY(status, what);
    if (!lease_) return fail(Errc::conflict, "{} needs no lease", config_.instance);
    if (ticket == last_ticket_) last_ticket_ = 0;
    decide(lease_->renewed(ticket, ttl, os::now()));
    return json::object();
  }
  if (what == "refused") {
    if (lease_) decide(lease_->refused());
    return json::object();
  }
  if (what == "stop") {
    milliseconds grace{10'000};
    fields.optional("grace_ms", grace);
    YADO_TRY(status, what);
    YADO_ASSIGN(json stopped, stop(grace), what);
    end_ = true;
    ::unlink(socket_of(config_.directory).c_str());  // before the answer: who has it finds no supervisor any more
    return stopped;
  }
  return fail(Errc::invalid_argument, "there is no call \"{}\"", what);
}

json Supervisor::describe() const {
  Description d;
  d.instance = config_.instance;
  d.workload = config_.spec.name;
  d.epoch = config_.epoch;
  d.purpose = config_.purpose;
  d.state = state_;
  d.supervisor_pid = ::getpid();
  d.pid = container_ ? container_->process().pid() : 0;
  d.how = how_;
  const auto since = [](Instant then) { return std::chrono::duration_cast<milliseconds>(os::now() - then); };
  if (how_ != How::none) d.age = since(born_);
  d.state_age = since(state_since_);
  d.log_path = log_->path();
  d.lease_needed = lease_.has_value();
  d.lease_held = lease_ && lease_->may_run(os::now());
  if (exit_) {
    d.exit_code = exit_->code;
    d.exit_signal = exit_->signal;
  }
  return d;
}

Result<Operation> Supervisor::begin(const std::function<Result<json>(int)>& work) {
  return Operation::begin([&](int output) -> Result<json> {
    // In the child: a connection that is closed by the supervisor must be closed for its client.
    clients_.clear();
    listener_.reset();
    return work(output);
  });
}

container::Criu Supervisor::criu() const { return {config_.criu, config_.criu_cache, config_.criu_limit}; }

container::Place Supervisor::place() const {
  return {.directory = config_.directory,
          .root = config_.root,
          .cgroup = config_.cgroup,
          .host_name = config_.spec.name.str(),
          .port = config_.spec.service.port,
          .network_namespace = -1,  // this process lives in it
          .id_base = config_.id_base};
}

Status Supervisor::need_container() const {
  if (container_) return {};
  if (exit_) return fail(Errc::conflict, "{} has ended: {}", config_.instance, exit_->text());
  return fail(Errc::conflict, "{} has not been started", config_.instance);
}

bool Supervisor::busy(std::string_view what) const {
  return std::ranges::any_of(operations_, [&](const Running& one) { return one.what == what; });
}

Result<std::optional<json>> Supervisor::start(Asked asked) {
  if (how_ != How::none || when_allowed_) return fail(Errc::conflict, "{} was started already", config_.instance);
  want_to_run(asked, [this]() -> Status {
    YADO_ASSIGN(Container started, Container::start(config_.spec.container, place()), "start");
    container_.emplace(std::move(started));
    how_ = How::started;
    born_ = os::now();
    return {};
  });
  return std::optional<json>{};
}

Result<std::optional<json>> Supervisor::restore(const json& message, Asked asked) {
  if (how_ != How::none || when_allowed_) return fail(Errc::conflict, "{} was started already", config_.instance);
  std::string criu_part, disk_part;
  container::ImageParts image;
  bool frozen = false;
  Status status;
  api::Fields(message, "", status)
      .required("criu", criu_part)
      .required("disk", disk_part)
      .required("properties", image.properties)
      .optional("frozen", frozen);
  YADO_TRY(status, "restore");
  image.criu = criu_part;
  image.disk = disk_part;
  const bool hold = frozen || lease_;
  YADO_ASSIGN(Container restored, Container::restore(config_.spec.container, place(), image, criu(), hold), "restore");
  container_.emplace(std::move(restored));
  how_ = How::restored;
  born_ = os::now();
  set_state(hold ? InstanceState::frozen : InstanceState::running);
  if (frozen || !hold) return json::object();
  want_to_run(asked, [this] { return container_->thaw(); });
  return std::optional<json>{};
}

Result<std::optional<json>> Supervisor::thaw(Asked asked) {
  YADO_TRY(need_container(), "thaw");
  stay_frozen_ = false;
  if (state_ == InstanceState::running) return json::object();
  want_to_run(asked, [this] {
    return container_->thaw([this] {
      // Whoever waits may send requests now; the parents of the processes wake a moment later.
      set_state(InstanceState::running);
      for (const Asked& waiting : std::exchange(waiting_, {})) answer(waiting, json::object());
    });
  });
  return std::optional<json>{};
}

Status Supervisor::freeze() {
  if (busy("checkpoint")) {
    stay_frozen_ = true;  // it stands already
  } else {
    YADO_TRY(container_->freeze(), "freeze");
  }
  set_state(InstanceState::frozen);
  return {};
}

Result<std::optional<json>> Supervisor::checkpoint(const json& message, Asked asked) {
  YADO_TRY(need_container(), "checkpoint");
  YADO_TRY(container::require(criu()), "checkpoint");
  if (!operations_.empty()) return fail(Errc::conflict, "checkpoint: {} is under way", operations_.front().what);
  std::string criu_part, disk_part;
  bool leave_running = true;
  Status status;
  api::Fields(message, "", status)
      .required("criu", criu_part)
      .required("disk", disk_part)
      .optional("leave_running", leave_running);
  YADO_TRY(status, "checkpoint");
  stay_frozen_ = state_ == InstanceState::frozen;
  YADO_ASSIGN(Operation operation, begin([&](int) -> Result<json> {
    YADO_ASSIGN(auto properties, container_->checkpoint(criu_part, disk_part, criu()), "checkpoint");
    return json{{"properties", std::move(properties)}};
  }), "checkpoint");
  const auto finish = [this, leave_running](Result<json> result, const Operation&) -> Result<json> {
    if (!container_) return result;
    if (result && !leave_running) {
      (void)container_->cgroup().kill_all();
      return result;
    }
    // Also after a failure: an instance that was running goes on.
    if (when_allowed_ && lease_allows()) run_now();
    else if (!stay_frozen_ && lease_allows()) (void)container_->thaw();
    return result;
  };
  operations_.push_back({asked, "checkpoint", std::move(operation), finish});
  return std::optional<json>{};
}

Result<std::optional<json>> Supervisor::exec(const json& message, Asked asked) {
  YADO_TRY(need_container(), "exec");
  if (busy("checkpoint")) return fail(Errc::unavailable, "exec: a checkpoint is being taken");
  std::vector<std::string> command;
  Status status;
  api::Fields(message, "", status).required("command", command);
  YADO_TRY(status, "exec");
  YADO_ASSIGN(Operation operation, begin([&](int output) -> Result<json> {
    YADO_ASSIGN(const os::ExitStatus ended, container_->exec(command, {-1, output, output}), "exec");
    return json{{"code", ended.code}, {"signal", ended.signal}};
  }), "exec");
  const auto finish = [](Result<json> result, const Operation& done) -> Result<json> {
    if (!result) return result;
    (*result)["output"] = done.output();
    (*result)["truncated"] = done.truncated();
    return result;
  };
  operations_.push_back({asked, "exec", std::move(operation), finish});
  return std::optional<json>{};
}

Result<std::optional<json>> Supervisor::wait_startup(const json& message, Asked asked) {
  YADO_TRY(need_container(), "wait_startup");
  milliseconds limit = config_.spec.service.ready.start_limit;
  Status status;
  api::Fields(message, "", status).optional("limit_ms", limit);
  YADO_TRY(status, "wait_startup");
  const nanoseconds already = os::now() - born_;
  YADO_ASSIGN(Operation operation, begin([&](int) -> Result<json> {
    YADO_ASSIGN(const container::StartupTimes times,
                container::wait_startup(container_->process(), container_->cgroup(), config_.spec.service.port, already, limit),
                config_.instance.str());
    const auto us = [](nanoseconds time) { return std::chrono::duration_cast<std::chrono::microseconds>(time).count(); };
    return json{{"listening_us", us(already + times.listening)}, {"settled_us", us(already + times.settled)}};
  }), "wait_startup");
  const auto finish = [this](Result<json> result, const Operation&) -> Result<json> {
    if (result) return result;
    Error error = result.error();
    if (const std::string end = log_->tail(2048); !end.empty()) error.message += "; its last log lines: " + end;
    return std::unexpected(std::move(error));
  };
  operations_.push_back({asked, "wait_startup", std::move(operation), finish});
  return std::optional<json>{};
}

Result<std::optional<json>> Supervisor::promote(const json& message, Asked asked) {
  Epoch epoch;
  milliseconds ttl{0};
  bool then_thaw = false;
  Status status;
  api::Fields(message, "", status).required("epoch", epoch).optional("lease_ms", ttl).optional("thaw", then_thaw);
  YADO_TRY(status, "promote");
  YADO_TRY(need_container(), "promote");
  config_.epoch = epoch;
  config_.purpose = Purpose::owner;
  // Kept for whoever reads the directory after this process.
  (void)os::replace_text(config_of(config_.directory), to_text(config_));
  if (ttl > milliseconds(0)) YADO_TRY(set_lease(ttl), "promote");
  if (!then_thaw) return json::object();
  return thaw(asked);
}

Result<json> Supervisor::stop(nanoseconds grace) {
  for (Running& operation : operations_) operation.operation.cancel();
  when_allowed_ = nullptr;
  if (container_ && !exit_) {
    // Its last moments are not longer than its lease.
    if (lease_) grace = std::clamp<nanoseconds>(lease_->deadline() - os::now(), 0ns, grace);
    YADO_ASSIGN(exit_, container_->stop(grace), "stop");
    read_log();
    container_.reset();
    set_state(InstanceState::exited);
  }
  return json{{"code", exit_ ? exit_->code : 0}, {"signal", exit_ ? exit_->signal : 0}};
}

// ---- clients ----

void Supervisor::answer(Asked asked, const Result<json>& result) {
  const auto client = std::ranges::find(clients_, asked.client, &Client::number);
  if (client == clients_.end()) return;
  json message = result ? *result : json::object();
  message["id"] = asked.id;
  if (result) message["ok"] = true;
  else message["error"] = result.error();
  if (auto sent = send_packet(client->socket, api::dump(message)); !sent) drop(asked.client);
}

void Supervisor::tell(json event) {
  const std::string text = api::dump(event);
  std::vector<std::uint64_t> lost;
  for (const Client& client : clients_)
    if (auto sent = send_packet(client.socket, text); !sent) lost.push_back(client.number);
  for (const std::uint64_t client : lost) drop(client);
}

void Supervisor::drop(std::uint64_t client) { std::erase_if(clients_, [&](const Client& one) { return one.number == client; }); }

}  // namespace

int run(const Config& config, os::Fd network, os::Fd ready) {
  Supervisor supervisor(config, std::move(network));
  const Status up = supervisor.set_up();
  (void)os::write_all(ready, up ? "ok" : fmt::format("{}:{}", static_cast<int>(up.error().code), up.error().message));
  ready.reset();
  if (!up) return 1;
  supervisor.loop();
  return 0;
}

}  // namespace yado::supervisor
