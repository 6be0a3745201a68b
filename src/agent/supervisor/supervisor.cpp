#include "agent/supervisor/supervisor.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>

#include <poll.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/supervisor/drivers.hpp"
#include "agent/supervisor/impl.hpp"
#include "agent/supervisor/socket.hpp"
#include "api/json.hpp"
#include "base/log.hpp"
#include "model/names.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/mount.hpp"

namespace yado::supervisor {
namespace {

constexpr nanoseconds suspend_threshold = 100ms;  ///< BOOTTIME ahead of MONOTONIC by more than this: the machine slept

nanoseconds suspended_so_far() {
  timespec monotonic{};
  ::clock_gettime(CLOCK_MONOTONIC, &monotonic);
  return os::now().time_since_epoch() - (seconds(monotonic.tv_sec) + nanoseconds(monotonic.tv_nsec));
}

}  // namespace

Supervisor::Supervisor(const Config& config, std::unique_ptr<workload::Driver> driver, os::Fd network)
    : config_(config), network_(std::move(network)), driver_(std::move(driver)), suspended_(suspended_so_far()) {}

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
    watch(instance_ && !log_ended_ ? instance_->output_fd() : -1);
    if (std::ranges::any_of(at_console_, &AtConsole::types)) wanted.back().events |= POLLOUT;
    watch(instance_ && !exit_ ? instance_->process().fd() : -1);
    watch(instance_ && !exit_ ? instance_->news_fd() : -1);
    const std::size_t first_client = wanted.size();
    std::vector<std::uint64_t> client_numbers;
    for (const Connection& client : clients_) {
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
    if (ready(4)) instance_ended();
    look_for_room();
    look_at_console();
    for (std::size_t i = 0; i < running.size(); ++i) {
      if (ready(first_operation + 2 * i + 1)) running[i]->operation.read_output();
      if (!ready(first_operation + 2 * i) || !running[i]->operation.read_result()) continue;
      const auto found = std::ranges::find_if(operations_, [&](const Running& one) { return &one == running[i]; });
      std::list<Running> done;
      done.splice(done.begin(), operations_, found);  // off the list first: finishing may begin another one
      answer(done.front().asked, done.front().finish(done.front().operation.answer(), done.front().operation));
      begin_later();
    }
    for (std::size_t i = 0; i < client_numbers.size() && !end_; ++i)
      if (ready(first_client + i)) {
        const auto found = std::ranges::find(clients_, client_numbers[i], &Connection::number);
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
  if (instance_ && !exit_) (void)stop(5s);
  ::unlink(socket_of(config_.directory).c_str());
}

void Supervisor::arm_timer() {
  Instant next = lease_ ? lease_->next_deadline() : Instant::max();
  for (const AtConsole& one : at_console_) next = std::min(next, one.until);
  if (instance_ && !exit_) next = std::min(next, look_for_room_at_);
  itimerspec at{};
  if (next != Instant::max()) {
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
    const bool known = (instance_ && instance_->process().pid() == info.si_pid) ||
                       (janitor_.running() && janitor_.pidfd().pid() == info.si_pid) ||
                       std::ranges::any_of(operations_, [&](const Running&) { return true; });
    if (known) return;
    ::waitpid(info.si_pid, nullptr, WNOHANG);
    info.si_pid = 0;
  }
}

// ---- the instance's own doings ----

void Supervisor::read_log() {
  const auto text = instance_->read_output();
  if (!text) log_ended_ = true;
  else if (!text->empty()) {
    log_->append(*text);
    console_.append(*text);
  }
}

/// A file system does not tell when it has room again: the write that found none is tried again.
void Supervisor::look_for_room() {
  constexpr auto pause = 1s;
  if (!instance_ || exit_) return;
  const bool stands = instance_->stands_for_room();
  const bool waits = look_for_room_at_ != Instant::max();
  const auto say = [&](std::string_view what) {
    log::warn("{}: {}", config_.instance, what);
    log_->append(fmt::format("yado: {}\n", what));
    tell({{"event", "stands"}, {"why", why_it_stands()}});
  };
  if (!waits && stands) {
    look_for_room_at_ = os::now() + pause;
    say("the host's disk is full: it stands still until there is room");
  }
  if (!waits || os::now() < look_for_room_at_) return;
  look_for_room_at_ = os::now() + pause;
  if (state_ != InstanceState::running || busy("checkpoint") || busy("hand_over")) return;
  if (stands) return (void)instance_->try_again();
  look_for_room_at_ = Instant::max();
  say("there is room on the host's disk: it goes on");
}

void Supervisor::instance_ended() {
  const auto ended = instance_->reap();
  if (!ended || !*ended) return;
  exit_ = **ended;
  read_log();
  set_state(InstanceState::exited);
  when_allowed_ = nullptr;
  for (const Asked& asked : std::exchange(waiting_, {}))
    answer(asked, fail(Errc::application, "the instance has ended: {}", exit_->text()));
  // Said first: what is left of it may take its time to go (a pager that waits for a dead host), and somebody waits for a new owner.
  tell({{"event", "exited"}, {"code", exit_->code}, {"signal", exit_->signal}, {"why", instance_->why_ended()}, {"log", log_->tail(log_tail_bytes)}});
  instance_.reset();
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
  want_to_run({}, [this] { return instance_->thaw(); });
}

void Supervisor::decide(const lease::Holder::Decision& decision) {
  if (decision.freeze && instance_ && !exit_ && state_ != InstanceState::frozen) {
    log::warn("{}: the lease of {} is over: freezing", config_.instance, config_.epoch);
    // Whoever renews later may thaw it again.
    when_allowed_ = [this] { return instance_->thaw(); };
    if (auto frozen = freeze(); !frozen) {
      // What cannot be frozen in time must not run: dead is as good, and certain.
      log::error("{}: {}: killing it instead", config_.instance, frozen.error().text());
      (void)instance_->kill();
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
    want_to_run({}, [this] { return instance_->thaw(); });
  }
  return {};
}
// ---- clients ----

void Supervisor::answer(Asked asked, const Result<json>& result) {
  const auto client = std::ranges::find(clients_, asked.client, &Connection::number);
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
  for (const Connection& client : clients_)
    if (auto sent = send_packet(client.socket, text); !sent) lost.push_back(client.number);
  for (const std::uint64_t client : lost) drop(client);
}

bool Supervisor::has_client(std::uint64_t client) const { return std::ranges::find(clients_, client, &Connection::number) != clients_.end(); }

void Supervisor::drop(std::uint64_t client) {
  std::erase_if(clients_, [&](const Connection& one) { return one.number == client; });
  std::erase_if(later_, [&](const Later& one) { return one.asked.client == client; });
}

int run(const Config& config, os::Fd network, os::Fd ready, std::unique_ptr<workload::Driver> expecting) {
  auto driver = driver_of(config);
  if (expecting) driver->take_over(*expecting);
  expecting.reset();
  Supervisor supervisor(config, std::move(driver), std::move(network));
  const Status up = supervisor.set_up();
  (void)os::write_all(ready, up ? "ok" : fmt::format("{}:{}", static_cast<int>(up.error().code), up.error().message));
  ready.reset();
  if (!up) return 1;
  supervisor.loop();
  return 0;
}

}  // namespace yado::supervisor
