#include "agent/instances.hpp"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>

#include "agent/readiness.hpp"
#include "base/log.hpp"
#include "os/cgroup.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "workload/container/prepare_root.hpp"

namespace yado::agent {

namespace asio = boost::asio;

namespace {

/// Below the range from which kernels take ports of outgoing connections (ip_local_port_range, 32768).
constexpr std::uint32_t first_published_port = 20'000, last_published_port = 32'767;
constexpr milliseconds stop_grace{10'000};

}  // namespace

std::string Instances::last_lines(const std::string& log, std::size_t count) {
  std::size_t end = log.size();
  while (end > 0 && log[end - 1] == '\n') --end;
  std::size_t at = end;
  while (at > 0 && count > 0)
    if (log[--at] == '\n' && --count == 0) return log.substr(at + 1, end - at - 1);
  return log.substr(0, end);
}

Instances::Instances(Surroundings around, Events events)
    : around_(around),
      events_(std::move(events)),
      addresses_(net::instance_network.address.value + 2, net::instance_network.address.value + 0xfffe),
      ports_(first_published_port, last_published_port) {}
Instances::~Instances() { let_go(); }

void Instances::let_go() {
  for (auto& [id, live] : live_) live->link.reset();
}

std::shared_ptr<supervisor::Client> Instances::link(const InstanceId& id) const {
  const auto found = live_.find(id);
  return found == live_.end() ? nullptr : found->second->link;
}

std::string Instances::cgroup_of(const InstanceId& id) const { return around_.config.cgroup + "/" + id.str(); }

Endpoint Instances::endpoint(const InstanceRecord& record) const { return {around_.config.address, record.published}; }

void Instances::spawn(asio::awaitable<void> work) {
  asio::co_spawn(around_.io, std::move(work), [keep = around_.keep_alive()](std::exception_ptr) {});
}

asio::awaitable<void> Instances::save(LivePtr live) {
  const InstanceRecord record = live->record;
  std::function<Status()> work = [this, record] { return around_.directory.save_instance(record); };
  // It matters to the next agent process only, and that one clears away what it cannot read.
  if (auto saved = co_await around_.workers.run(std::move(work)); !saved)
    log::warn("{}: {}", record.id, saved.error().text());
}

asio::awaitable<Status> Instances::prepare_root(WorkloadSpec spec) {
  if (spec.kind != Kind::container) co_return Status{};
  std::function<Status()> work = [this, root = spec.container.root]() -> Status {
    YADO_TRY(container::prepare_root(root, around_.directory.roots()), "root file system");
    return {};
  };
  co_return co_await around_.workers.run(std::move(work));
}

// ---- from nothing to a supervisor ----------------------------------------------------------------------------------

Result<Instances::LivePtr> Instances::enter(InstanceRecord record, WorkloadSpec spec) {
  if (live_.contains(record.id)) return fail(Errc::already_exists, "{} stands here already", record.id);
  std::shared_ptr<Shell> shell;
  if (const auto found = expected_.find(record.id); found != expected_.end()) {
    if (!found->second.shell) return fail(Errc::unavailable, "what is ready for {} is being made or cleared away", record.id);
    shell = std::move(found->second.shell);
    expected_.erase(found);
  }
  if (!shell) shell = std::exchange(spare_, nullptr);
  const auto address = shell ? std::optional(shell->address.value) : addresses_.take();
  const auto port = ports_.take();
  if (!address || !port) {
    if (address) addresses_.give_back(*address);
    if (port) ports_.give_back(*port);
    return fail(Errc::no_space, "no {} is left on this host for {}", address ? "port to publish" : "bridge address",
                record.id);
  }
  record.address = net::Ipv4{*address};
  record.published = static_cast<std::uint16_t>(*port);
  record.service = spec.service.port;
  record.since_ns = os::now().time_since_epoch().count();
  const InstanceId id = record.id;
  const auto live = std::make_shared<Live>(around_.io.get_executor(), std::move(record), std::move(spec));
  live->shell = std::move(shell);
  return live_[id] = live;
}

asio::awaitable<void> Instances::make_spare() {
  if (spare_ || std::exchange(making_spare_, true)) co_return;
  if (const auto number = addresses_.take()) {
    const net::Ipv4 address{*number};
    std::function<Result<std::shared_ptr<Shell>>()> work = [this, address] { return make_shell(address); };
    auto made = co_await around_.workers.run(std::move(work));
    if (made) {
      spare_ = std::move(*made);
    } else {
      addresses_.give_back(*number);
      log::warn("{}", made.error().text());
    }
  }
  making_spare_ = false;
}

Result<std::shared_ptr<Instances::Shell>> Instances::make_shell(net::Ipv4 address) {
  YADO_ASSIGN(os::Netns network, around_.network.make_instance(address), "network");
  YADO_ASSIGN(auto waiting, supervisor::Spare::make(network.fd().get(), around_.config.supervisor), "shell");
  return std::make_shared<Shell>(address, std::move(network), std::move(waiting));
}

asio::awaitable<Status> Instances::expect(ExpectCall call) {
  std::vector<ImageId> images = call.ahead;
  auto ahead = co_await disks_ahead(std::move(images));
  if (!ahead) co_return std::unexpected(ahead.error());
  std::vector<InstanceId> earlier;
  for (const auto& [id, expected] : expected_) {
    if (expected.record.workload != call.spec.name) continue;
    if (!expected.shell) co_return fail(Errc::conflict, "what was ready for {} is being made or cleared away", id);
    earlier.push_back(id);
  }
  for (const InstanceId& id : earlier) co_await forget(id);
  if (live_.contains(call.instance)) co_return fail(Errc::already_exists, "{} stands here already", call.instance);
  std::shared_ptr<Shell> made = std::exchange(spare_, nullptr);
  const auto number = made ? std::optional(made->address.value) : addresses_.take();
  if (!number) co_return fail(Errc::no_space, "no bridge address is left on this host for {}", call.instance);
  const InstanceRecord record{.id = call.instance, .workload = call.spec.name, .epoch = call.epoch, .image = {}, .address = net::Ipv4{*number}};
  supervisor::Config config = config_of(record, call.spec);
  config.disks_ahead = std::move(*ahead);
  expected_[record.id] = {record, nullptr, os::now()};
  std::function<Result<std::shared_ptr<Shell>>()> work = [this, record, config, shell = std::move(made)]() mutable -> Result<std::shared_ptr<Shell>> {
    // So that whoever comes after this process clears it away.
    YADO_TRY(around_.directory.save_instance(record), "instance");
    if (!shell) {
      YADO_ASSIGN(shell, make_shell(record.address), "instance");
    }
    YADO_TRY(shell->supervisor.expect(config), "expect");
    return shell;
  };
  auto ready = co_await around_.workers.run(std::move(work));
  if (ready) expected_[record.id].shell = std::move(*ready);
  else co_await forget(record.id);
  spawn(make_spare());
  if (!ready) co_return std::unexpected(ready.error());
  co_return Status{};
}

void Instances::keep_expected(const std::vector<InstanceId>& ids, Instant as_of) {
  for (const auto& [id, expected] : expected_)
    if (expected.shell && expected.since < as_of && std::ranges::find(ids, id) == ids.end()) spawn(forget(id));
}

/// Its supervisor ends when nobody can tell it anything any more, and takes with it what it had ready.
asio::awaitable<void> Instances::forget(InstanceId id) {
  const auto found = expected_.find(id);
  if (found == expected_.end()) co_return;
  found->second.shell.reset();  // nobody else forgets it from here on
  const InstanceRecord record = found->second.record;
  co_await clear_away(record);
  addresses_.give_back(record.address.value);
  expected_.erase(id);
}

/// The port is nobody's business before the instance is ready, and nftables takes 1 to 20 ms: both go on at once.
void Instances::publish(LivePtr live, Promise<Status> done) {
  const auto work = [](Instances* self, LivePtr one, Promise<Status> promise) -> asio::awaitable<void> {
    const InstanceRecord record = one->record;
    std::function<Status()> job = [self, record] {
      return self->around_.network.publish(record.published, net::Target{record.address, record.service});
    };
    Status published = co_await self->around_.workers.run(std::move(job));
    promise.give(std::move(published));
  };
  spawn(work(this, std::move(live), std::move(done)));
}

supervisor::Config Instances::config_of(const InstanceRecord& record, const WorkloadSpec& spec) const {
  supervisor::Config config;
  config.instance = record.id;
  config.spec = spec;
  config.epoch = record.epoch;
  config.purpose = record.purpose;
  config.directory = around_.directory.instance(record.id);
  config.cgroup = cgroup_of(record.id);
  config.criu = around_.config.criu;
  config.criu_cache = around_.directory.root();
  config.identity = around_.config.identity;
  return config;
}

asio::awaitable<Status> Instances::bring_up(LivePtr live) {
  const InstanceRecord record = live->record;
  supervisor::Config config = config_of(record, live->spec);
  std::shared_ptr<Shell> made = std::exchange(live->shell, nullptr);
  std::function<Status()> work = [this, record, config, shell = std::move(made)]() mutable -> Status {
    YADO_TRY(around_.directory.save_instance(record), "instance");
    if (config.spec.kind == Kind::container) {
      YADO_ASSIGN(config.root, container::prepare_root(config.spec.container.root, around_.directory.roots()),
                  "root file system");
    }
    if (!shell) {
      YADO_ASSIGN(shell, make_shell(record.address), "instance");
    } else if (!shell->supervisor.waits()) {  // somebody killed it
      YADO_TRY(around_.directory.remove_instance(record.id), "instance");  // and what it had ready
      YADO_TRY(around_.directory.save_instance(record), "instance");
      YADO_ASSIGN(shell->supervisor, supervisor::Spare::make(shell->network.fd().get(), around_.config.supervisor), "instance");
    }
    return std::move(shell->supervisor).become(config);
  };
  const Status up = co_await around_.workers.run(std::move(work));
  spawn(make_spare());
  if (!up) co_return up;
  const auto described = co_await connect(live);
  if (!described) co_return std::unexpected(described.error());
  if (live->killing) co_return fail(Errc::canceled, "{} was stopped", record.id);
  co_return Status{};
}

asio::awaitable<Result<supervisor::Description>> Instances::connect(LivePtr live) {
  auto client = supervisor::Client::connect(around_.io, around_.directory.instance(live->record.id), events_of(live));
  if (!client) co_return std::unexpected(client.error());
  live->link = std::make_shared<supervisor::Client>(std::move(*client));
  const auto link = live->link;
  auto described = co_await link->describe();
  if (!described) co_return std::unexpected(described.error());
  auto process = os::Pidfd::open(static_cast<pid_t>(described->supervisor_pid));
  if (process) live->supervisor = std::move(*process);
  co_return std::move(*described);
}

supervisor::Events Instances::events_of(const LivePtr& live) {
  const std::weak_ptr<Live> weak = live;  // the client is the instance's: no circle
  supervisor::Events on;
  on.renew = [this, weak](std::uint64_t ticket, Epoch epoch) {
    if (const auto one = weak.lock()) events_.renew(one->record.id, one->record.workload, epoch, ticket);
  };
  on.state = [this, weak](InstanceState state) {
    if (state != InstanceState::running && state != InstanceState::frozen) return;
    if (const auto one = weak.lock(); one && !one->killing)
      events_.runs(one->record.id, state == InstanceState::running);
  };
  on.stands = [this, weak](const std::string& why) {
    if (const auto one = weak.lock(); one && !one->killing) events_.stands(one->record.id, why);
  };
  on.exited = [this, weak](const std::string& how, const std::string& log) {
    if (const auto one = weak.lock()) exited(one, how, last_lines(log, 10));
  };
  on.closed = [this, weak] {
    const auto one = weak.lock();
    if (!one) return;
    one->link.reset();
    exited(one, "its supervisor ended", "");
  };
  return on;
}

void Instances::exited(const LivePtr& live, const std::string& how, const std::string& log) {
  const bool news = !live->ended.given() && live->record.purpose != Purpose::builder;
  live->ended.give(log.empty() ? how : fmt::format("{}; its last log lines:\n{}", how, log));
  if (news) events_.exited(live->record.id, live->record.workload, how);
}

// ---- the end -------------------------------------------------------------------------------------------------------

asio::awaitable<void> Instances::kill(InstanceId id) {
  const auto found = live_.find(id);
  if (found == live_.end()) co_return;
  const LivePtr live = found->second;
  if (std::exchange(live->killing, true)) {
    co_await live->gone.get();
    co_return;
  }
  // New connections go elsewhere from now on; what was begun may end within the grace.
  const InstanceRecord record = live->record;
  std::function<Status()> unpublish = [this, record] { return around_.network.unpublish(record.published); };
  if (auto done = co_await around_.workers.run(std::move(unpublish)); !done)
    log::warn("{}: {}", id, done.error().text());
  live->ended.give("it was stopped");
  const auto stop = [](LivePtr one) -> asio::awaitable<void> {
    const auto link = one->link;
    if (!link) co_return;
    const auto stopped = co_await link->stop(one->record.epoch, stop_grace);
    if (!stopped && stopped.error().code != Errc::canceled)
      log::warn("{}: stop: {}", one->record.id, stopped.error().text());
  };
  co_await stop(live);
  co_await live->launch_over.get();
  co_await stop(live);  // its supervisor may have come up meanwhile
  live->link.reset();
  if (live->supervisor.valid()) {
    asio::posix::stream_descriptor ending(around_.io, live->supervisor.fd());
    boost::system::error_code error;
    co_await ending.async_wait(asio::posix::stream_descriptor::wait_read,
                               asio::redirect_error(asio::use_awaitable, error));
    (void)ending.release();
  }
  co_await clear_away(record);
  addresses_.give_back(record.address.value);
  ports_.give_back(record.published);
  live_.erase(id);
  live->gone.give(true);
}

asio::awaitable<void> Instances::clear_away(InstanceRecord record) {
  const std::string cgroup = cgroup_of(record.id);
  std::function<Status()> work = [this, record, cgroup]() -> Status {
    if (auto group = os::Cgroup::open(cgroup)) YADO_TRY(group->remove(), "what is left of it");
    if (record.published != 0) YADO_TRY(around_.network.unpublish(record.published), "published port");
    if (record.address.value != 0) YADO_TRY(around_.network.disconnect(record.address), "network");
    return around_.directory.remove_instance(record.id);
  };
  // "Gone" is a promise (an exclusive workload starts elsewhere upon it), so a failure is tried again until it holds.
  asio::steady_timer timer(around_.io);
  for (nanoseconds pause = 50ms;; pause = std::min<nanoseconds>(pause * 2, 5s)) {
    std::function<Status()> once = work;
    const Status cleared = co_await around_.workers.run(std::move(once));
    if (cleared) co_return;
    log::warn("{} is not cleared away yet: {}", record.id, cleared.error().text());
    timer.expires_after(pause);
    boost::system::error_code ignored;
    co_await timer.async_wait(asio::redirect_error(asio::use_awaitable, ignored));
  }
}

// ---- found at the start --------------------------------------------------------------------------------------------

asio::awaitable<std::optional<InstanceReport>> Instances::adopt(InstanceRecord record) {
  WorkloadSpec spec;
  spec.name = record.workload;
  if (const auto text = os::read_text(supervisor::config_of(around_.directory.instance(record.id))))
    if (auto config = supervisor::config_from_text(*text)) spec = std::move(config->spec);
  const LivePtr live = std::make_shared<Live>(around_.io.get_executor(), record, std::move(spec));
  live->launch_over.give(true);
  auto described = Result<supervisor::Description>(fail(Errc::not_found, "it has no record"));
  if (!record.workload.empty()) described = co_await connect(live);
  const supervisor::Description* found = described ? &*described : nullptr;
  if (!found) {
    log::info("{}: no supervisor ({}); clearing away what is left", record.id, described.error().message);
    live->link.reset();
    co_await clear_away(record);
    co_return std::nullopt;
  }
  addresses_.mark_taken(record.address.value);
  ports_.mark_taken(record.published);
  live->record.epoch = found->epoch;  // a promotion may not have reached the record
  live->record.purpose = found->purpose;
  live_[record.id] = live;
  const nanoseconds age = os::now().time_since_epoch() - nanoseconds(record.since_ns);
  co_return InstanceReport{
      .id = record.id,
      .workload = record.workload,
      .purpose = found->purpose,
      .epoch = found->epoch,
      .state = record.ready || found->state == InstanceState::exited ? found->state : InstanceState::starting,
      .endpoint = endpoint(record),
      .image = record.image,
      .age = std::chrono::duration_cast<milliseconds>(age),
      .how = found->stands};
}

void Instances::leave_to_others() {
  const auto published = around_.network.published();
  if (!published) log::warn("published ports: {}", published.error().text());
  if (published)
    for (const auto& [port, target] : *published) {
      ports_.mark_taken(port);
      addresses_.mark_taken(target.address.value);
    }
  spawn(make_spare());
}

}  // namespace yado::agent
