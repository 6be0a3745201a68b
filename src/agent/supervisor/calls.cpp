// What clients ask of a supervisor.
#include <algorithm>
#include <unistd.h>

#include "agent/supervisor/impl.hpp"
#include "api/fields.hpp"
#include "model/names.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"

namespace yado::supervisor {

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
  if (what == "hand_over") return hand_over(message, asked);
  if (what == "resplit") return resplit(message, asked);
  if (what == "used") return used(message, asked);
  if (what == "exec") return exec(message, asked);
  if (what == "console") return console(message, asked);
  if (what == "wait_startup") return wait_startup(message, asked);
  if (what == "promote") return promote(message, asked);
  if (what == "freeze") {
    YADO_TRY(need_instance(), what);
    return nothing(put_to_sleep());
  }
  if (what == "signal") {
    int number = 0;
    fields.required("number", number);
    YADO_TRY(status, what);
    YADO_TRY(need_instance(), what);
    return nothing(instance_->signal(number));
  }
  if (what == "stats") {
    YADO_TRY(need_instance(), what);
    YADO_ASSIGN(const os::CgroupUse use, instance_->stats(), what);
    return json{{"cpu_us", std::chrono::duration_cast<std::chrono::microseconds>(use.cpu).count()},
                {"memory_bytes", use.memory_bytes},
                {"memory_limit_kills", use.memory_limit_kills}};
  }
  if (what == "memory") {
    YADO_TRY(need_instance(), what);
    YADO_ASSIGN(const std::string text, instance_->memory(), what);
    YADO_ASSIGN(json figures, api::parse_json(text), what);
    return figures;
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
  d.pid = instance_ ? instance_->process().pid() : 0;
  d.how = how_;
  const auto since = [](Instant then) { return std::chrono::duration_cast<milliseconds>(os::now() - then); };
  if (how_ != How::none) d.age = since(born_);
  d.state_age = since(state_since_);
  d.log_path = log_->path();
  d.lease_needed = lease_.has_value();
  d.lease_held = lease_ && lease_->may_run(os::now());
  d.stands = why_it_stands();
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

Status Supervisor::need_instance() const {
  if (instance_) return {};
  if (exit_) return fail(Errc::conflict, "{} has ended: {}", config_.instance, exit_->text());
  return fail(Errc::conflict, "{} has not been started", config_.instance);
}

bool Supervisor::busy(std::string_view what) const {
  return std::ranges::any_of(operations_, [&](const Running& one) { return one.what == what; });
}

Result<std::optional<json>> Supervisor::start(Asked asked) {
  if (how_ != How::none || when_allowed_) return fail(Errc::conflict, "{} was started already", config_.instance);
  want_to_run(asked, [this]() -> Status {
    YADO_ASSIGN(instance_, driver_->start(), "start");
    how_ = How::started;
    born_ = os::now();
    return {};
  });
  return std::optional<json>{};
}

Result<std::optional<json>> Supervisor::restore(const json& message, Asked asked) {
  if (how_ != How::none || when_allowed_) return fail(Errc::conflict, "{} was started already", config_.instance);
  workload::ImageParts image;
  bool frozen = false;
  Status status;
  api::Fields(message, "", status)
      .required("parts", image.directories)
      .required("properties", image.properties)
      .optional("frozen", frozen);
  YADO_TRY(status, "restore");
  const bool hold = frozen || lease_;
  YADO_ASSIGN(instance_, driver_->restore(image, hold), "restore");
  how_ = How::restored;
  born_ = os::now();
  set_state(hold ? InstanceState::frozen : InstanceState::running);
  if (frozen || !hold) return json::object();
  want_to_run(asked, [this] { return instance_->thaw(); });
  return std::optional<json>{};
}

Result<std::optional<json>> Supervisor::thaw(Asked asked) {
  YADO_TRY(need_instance(), "thaw");
  stay_frozen_ = false;
  if (state_ == InstanceState::running) return json::object();
  want_to_run(asked, [this] {
    return instance_->thaw([this] {
      // Whoever waits may send requests now; the parents of the processes wake a moment later.
      set_state(InstanceState::running);
      for (const Asked& waiting : std::exchange(waiting_, {})) answer(waiting, json::object());
    });
  });
  return std::optional<json>{};
}

Status Supervisor::freeze() {
  if (busy("checkpoint") && !instance_->runs_during_checkpoint()) {
    stay_frozen_ = true;  // it stands already
  } else {
    stay_frozen_ = busy("checkpoint");
    YADO_TRY(instance_->freeze(), "freeze");
  }
  set_state(InstanceState::frozen);
  return {};
}

Result<std::optional<json>> Supervisor::checkpoint(const json& message, Asked asked) {
  YADO_TRY(need_instance(), "checkpoint");
  YADO_TRY(driver_->can_checkpoint(), "checkpoint");
  // It lasts as long as its program does.
  if (busy("exec")) return fail(Errc::conflict, "checkpoint: exec is under way");
  if (!operations_.empty()) {
    later_.push_back({&Supervisor::checkpoint, message, asked});
    return std::optional<json>{};
  }
  workload::PartDirectories parts;
  bool leave_running = true;
  workload::NewImage image;
  Status status;
  api::Fields(message, "", status)
      .required("parts", parts)
      .optional("image", image.name)
      .optional("base", image.base)
      .optional("base_cut", image.base_cut)
      .optional("bytes_per_second", image.bytes_per_second)
      .optional("leave_running", leave_running);
  YADO_TRY(status, "checkpoint");
  stay_frozen_ = state_ == InstanceState::frozen;
  YADO_ASSIGN(Operation operation, begin([&](int) -> Result<json> {
    YADO_ASSIGN(auto properties, instance_->checkpoint(parts, image), "checkpoint");
    return json{{"properties", std::move(properties)}};
  }), "checkpoint");
  const auto finish = [this, leave_running](Result<json> result, const Operation&) -> Result<json> {
    if (!instance_) return result;
    if (result && !leave_running) {
      (void)instance_->kill();
      return result;
    }
    // Also after a failure: an instance that was running goes on.
    if (when_allowed_ && lease_allows()) run_now();
    else if (!stay_frozen_ && lease_allows()) (void)instance_->thaw();
    return result;
  };
  operations_.push_back({asked, "checkpoint", std::move(operation), finish});
  return std::optional<json>{};
}

/// What still cannot be begun queues up again.
void Supervisor::begin_later() {
  for (const Later& one : std::exchange(later_, {}))
    if (const auto begun = (this->*one.begin)(one.message, one.asked); !begun) answer(one.asked, std::unexpected(begun.error()));
}

Status Supervisor::put_to_sleep() {
  when_allowed_ = nullptr;
  for (const Asked& waiting : std::exchange(waiting_, {}))
    answer(waiting, fail(Errc::canceled, "it was frozen before it was allowed to run"));
  if (lease_) lease_->sleep();
  last_ticket_ = 0;
  return freeze();
}

Result<std::optional<json>> Supervisor::hand_over(const json& message, Asked asked) {
  YADO_TRY(need_instance(), "move");
  if (busy("exec")) return fail(Errc::conflict, "move: exec is under way");
  if (!operations_.empty()) {
    later_.push_back({&Supervisor::hand_over, message, asked});
    return std::optional<json>{};
  }
  if (state_ != InstanceState::running) return fail(Errc::conflict, "move: {} is {}", config_.instance, name_of(state_));
  workload::PartDirectories parts;
  workload::Handover how;
  Status status;
  api::Fields(message, "", status)
      .required("parts", parts)
      .required("to", how.to)
      .optional("disks_only", how.disks_only)
      .optional("ahead", how.ahead)
      .optional("most_disk_bytes", how.most_disk_bytes);
  YADO_TRY(status, "move");
  YADO_ASSIGN(Operation operation, begin([&](int) -> Result<json> {
    YADO_ASSIGN(auto properties, instance_->hand_over(parts, how), "move");
    return json{{"properties", std::move(properties)}};
  }), "move");
  const auto finish = [this, runs_on = how.disks_only, client = asked.client](Result<json> result, const Operation&) -> Result<json> {
    if (!instance_ || runs_on || (result && (*result)["properties"].contains(workload::not_yet_property))) return result;
    // It stands still already, and nobody here may let it go on but by a thaw; unless who would take it from here has died.
    if (result && has_client(client)) {
      YADO_TRY(put_to_sleep(), "move");
      return result;
    }
    if (state_ == InstanceState::running && lease_allows()) (void)instance_->thaw();
    return result;
  };
  operations_.push_back({asked, "hand_over", std::move(operation), finish});
  return std::optional<json>{};
}

Result<std::optional<json>> Supervisor::resplit(const json& message, Asked asked) {
  YADO_TRY(need_instance(), "resplit");
  if (busy("checkpoint") || busy("hand_over") || busy("resplit")) {
    later_.push_back({&Supervisor::resplit, message, asked});
    return std::optional<json>{};
  }
  Split split;
  Status status;
  api::Fields(message, "", status).required("split", split);
  YADO_TRY(status, "resplit");
  YADO_ASSIGN(Operation operation, begin([&](int) -> Result<json> {
    YADO_ASSIGN(const std::string detail, instance_->resplit(split), "resplit");
    return json{{"detail", detail}};
  }), "resplit");
  operations_.push_back({asked, "resplit", std::move(operation), [](Result<json> result, const Operation&) { return result; }});
  return std::optional<json>{};
}

/// Not by this thread, which keeps the lease: the file's disk may take its time.
Result<std::optional<json>> Supervisor::used(const json& message, Asked asked) {
  YADO_TRY(need_instance(), "used");
  std::string cut, into;
  Status status;
  api::Fields(message, "", status).required("cut", cut).required("into", into);
  YADO_TRY(status, "used");
  YADO_ASSIGN(Operation operation, begin([&](int) -> Result<json> {
    YADO_TRY(instance_->used(cut, into), "used");
    return json::object();
  }), "used");
  operations_.push_back({asked, "used", std::move(operation), [](Result<json> result, const Operation&) { return result; }});
  return std::optional<json>{};
}

Result<std::optional<json>> Supervisor::exec(const json& message, Asked asked) {
  YADO_TRY(need_instance(), "exec");
  if (busy("checkpoint")) return fail(Errc::unavailable, "exec: a checkpoint is being taken");
  std::vector<std::string> command;
  Status status;
  api::Fields(message, "", status).required("command", command);
  YADO_TRY(status, "exec");
  YADO_ASSIGN(Operation operation, begin([&](int output) -> Result<json> {
    YADO_ASSIGN(const os::ExitStatus ended, instance_->exec(command, {-1, output, output}), "exec");
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
  YADO_TRY(need_instance(), "wait_startup");
  milliseconds limit = config_.spec.service.ready.start_limit;
  Status status;
  api::Fields(message, "", status).optional("limit_ms", limit);
  YADO_TRY(status, "wait_startup");
  const nanoseconds already = os::now() - born_;
  YADO_ASSIGN(Operation operation, begin([&](int) -> Result<json> {
    YADO_ASSIGN(const workload::StartupTimes times, instance_->wait_startup(already, limit), config_.instance.str());
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
  YADO_TRY(need_instance(), "promote");
  config_.epoch = epoch;
  config_.purpose = Purpose::owner;
  YADO_TRY(instance_->granted(epoch.value()), "promote");
  // Kept for whoever reads the directory after this process.
  (void)os::replace_text(config_of(config_.directory), to_text(config_));
  if (ttl > milliseconds(0)) YADO_TRY(set_lease(ttl), "promote");
  if (!then_thaw) return json::object();
  return thaw(asked);
}

Result<json> Supervisor::stop(nanoseconds grace) {
  for (Running& operation : operations_) operation.operation.cancel();
  when_allowed_ = nullptr;
  if (instance_ && !exit_) {
    // Its last moments are not longer than its lease.
    if (lease_) grace = std::clamp<nanoseconds>(lease_->deadline() - os::now(), 0ns, grace);
    YADO_ASSIGN(exit_, instance_->stop(grace), "stop");
    read_log();
    instance_.reset();
    set_state(InstanceState::exited);
  }
  return json{{"code", exit_ ? exit_->code : 0}, {"signal", exit_ ? exit_->signal : 0}};
}

}  // namespace yado::supervisor
