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

/// The last lines of a log: what a person needs to see why an application did not start.
std::string last_lines(const std::string& log, std::size_t count) {
  std::size_t end = log.size();
  while (end > 0 && log[end - 1] == '\n') --end;
  std::size_t at = end;
  while (at > 0 && count > 0)
    if (log[--at] == '\n' && --count == 0) return log.substr(at + 1, end - at - 1);
  return log.substr(0, end);
}

}  // namespace

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

// ---- from nothing to a supervisor ----------------------------------------------------------------------------------

Result<Instances::LivePtr> Instances::enter(InstanceRecord record, WorkloadSpec spec) {
  if (live_.contains(record.id)) return fail(Errc::already_exists, "{} stands here already", record.id);
  std::shared_ptr<Shell> shell = std::exchange(spare_, nullptr);
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

asio::awaitable<Status> Instances::bring_up(LivePtr live) {
  const InstanceRecord record = live->record;
  supervisor::Config config;
  config.instance = record.id;
  config.spec = live->spec;
  config.epoch = record.epoch;
  config.purpose = record.purpose;
  config.directory = around_.directory.instance(record.id);
  config.cgroup = cgroup_of(record.id);
  config.criu = around_.config.criu;
  config.criu_cache = around_.directory.root();
  std::shared_ptr<Shell> made = std::exchange(live->shell, nullptr);
  std::function<Status()> work = [this, record, config, shell = std::move(made)]() mutable -> Status {
    YADO_TRY(around_.directory.save_instance(record), "instance");
    YADO_ASSIGN(config.root, container::prepare_root(config.spec.container.root, around_.directory.roots()),
                "root file system");
    if (!shell) {
      YADO_ASSIGN(shell, make_shell(record.address), "instance");
    } else if (!shell->supervisor.waits()) {  // somebody killed it
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
  on.exited = [this, weak](os::ExitStatus status, const std::string& log) {
    if (const auto one = weak.lock()) exited(one, status.text(), last_lines(log, 10));
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

// ---- launch and promote --------------------------------------------------------------------------------------------

asio::awaitable<Result<ImageSource>> Instances::source_of(ImageId id, WorkloadSpec spec) {
  auto hash = co_await around_.images.spec_hash(spec);
  if (!hash) co_return std::unexpected(hash.error());
  auto manifest = co_await around_.images.verified(id);
  if (!manifest) co_return std::unexpected(manifest.error());
  if (manifest->spec_hash != *hash)
    co_return fail(Errc::conflict, "image {} was taken of another spec or root file system", id);
  const image::Store& store = around_.images.store();
  co_return ImageSource{store.part_directory(id, "criu"), store.part_directory(id, "disk"), manifest->properties};
}

asio::awaitable<Status> Instances::begin(LivePtr live, const std::optional<ImageSource>& source, bool frozen) {
  const auto link = live->link;
  if (!link) co_return fail(Errc::unavailable, "its supervisor ended");
  if (!source) co_return co_await link->start(live->record.epoch);
  ImageSource image = *source;
  co_return co_await link->restore(live->record.epoch, std::move(image), frozen);
}

asio::awaitable<Status> Instances::run_readiness(LivePtr live, bool starting) {
  ReadinessWish wish;
  wish.service = live->spec.service;
  wish.endpoint = Endpoint{live->record.address.str(), live->record.service};
  wish.starting = starting;
  wish.limit = live->spec.service.ready.start_limit;
  // A restored or thawed instance that takes longer than two cold starts is no gain: it counts as bad.
  if (const auto cold = cold_took_.find(live->record.workload); !starting && cold != cold_took_.end())
    wish.limit = std::min<nanoseconds>(wish.limit, std::max<nanoseconds>(2 * cold->second, 1s));
  co_return co_await wait_ready(around_.io, std::move(wish), live->ended);
}

/// A standby that was never asked may be broken, and its first answer costs much (a Django worker some 40 ms: modules,
/// templates, the database). So it has that behind it. Several at once: a worker that is busy leaves the next one to
/// another worker.
asio::awaitable<Status> Instances::warm_up(LivePtr live, bool starting) {
  const std::size_t requests = live->spec.policy.warm_up;
  const auto ask = [](Instances* self, LivePtr one, bool starts, Promise<Status> answer) -> asio::awaitable<void> {
    Status ready = co_await self->run_readiness(std::move(one), starts);
    answer.give(std::move(ready));
  };
  std::vector<Promise<Status>> answers;
  for (std::size_t i = 0; i < requests; ++i) {
    answers.emplace_back(around_.io.get_executor());
    spawn(ask(this, live, starting, answers.back()));
  }
  Status all;
  for (const Promise<Status>& answer : answers) {
    Status one = co_await answer.get();
    if (all && !one) all = std::move(one);
  }
  co_return all;
}

/// An application that did not start has usually said why.
asio::awaitable<Error> Instances::with_log(LivePtr live, Error error) {
  const auto link = live->link;
  if (error.message.find("last log lines") != std::string::npos || !link || live->killing) co_return error;
  const auto log = co_await link->log();
  if (!log) co_return error;
  const std::string lines = last_lines(*log, 10);
  if (!lines.empty()) error.message += "; its last log lines:\n" + lines;
  co_return error;
}

asio::awaitable<Result<Launched>> Instances::launch(Launch wish, Instant since) {
  InstanceRecord record{.id = wish.instance,
                        .workload = wish.spec.name,
                        .purpose = wish.purpose,
                        .epoch = wish.epoch,
                        .image = wish.image};
  auto entered = enter(std::move(record), wish.spec);
  if (!entered) co_return std::unexpected(entered.error());
  const LivePtr live = *entered;
  // Looking at the image and making the place for it go on at once.
  using Source = Result<std::optional<ImageSource>>;
  Promise<Source> looked(around_.io.get_executor());
  if (wish.way == Way::image) {
    const auto look = [](Instances* self, ImageId id, WorkloadSpec spec,
                         Promise<Source> promise) -> asio::awaitable<void> {
      auto found = co_await self->source_of(std::move(id), std::move(spec));
      if (found)
        promise.give(std::optional<ImageSource>(std::move(*found)));
      else
        promise.give(std::unexpected(found.error()));
    };
    spawn(look(this, *wish.image, wish.spec, looked));
  } else {
    looked.give(std::optional<ImageSource>());
  }
  Promise<Status> published(around_.io.get_executor());
  publish(live, published);
  const Status up = co_await bring_up(live);
  const Source source = co_await looked.get();
  Result<Launched> result = fail(Errc::internal, "not launched");
  if (!up)
    result = std::unexpected(up.error());
  else if (!source)
    result = std::unexpected(source.error());
  else
    result = co_await launch_steps(live, std::move(wish), *source, since);
  const Status open = co_await published.get();
  if (result && !open) result = context(open.error(), "publish");
  live->launch_over.give(true);
  co_return result;
}

asio::awaitable<Status> Instances::settle(LivePtr live) {
  const auto link = live->link;
  if (!link) co_return fail(Errc::unavailable, "its supervisor ended");
  const auto settled = co_await link->wait_startup(live->spec.service.ready.start_limit);
  if (!settled) co_return std::unexpected(settled.error());
  co_return Status{};
}

asio::awaitable<Result<Launched>> Instances::launch_steps(LivePtr live, Launch wish, std::optional<ImageSource> source,
                                                          Instant since) {
  const bool standby = wish.purpose == Purpose::standby;
  // A standby proves itself before it is counted on, except that a restored exclusive one never runs before it is the
  // owner.
  const bool proves =
      standby && wish.spec.policy.consistency == Consistency::shared && wish.spec.policy.warm_up > 0;
  Status done = co_await begin(live, source, standby && !proves);
  Launched launched{.endpoint = endpoint(live->record), .times = {}};
  launched.times.raise = os::now() - since;
  if (done && standby && (proves || !source)) {
    if (!source) done = co_await settle(live);
    if (done && proves) done = co_await warm_up(live, !source);
    if (const auto link = live->link; done && link) done = co_await link->freeze(live->record.epoch);
  } else if (done && !standby) {
    done = co_await run_readiness(live, !source);
  }
  if (done && live->ended.given()) done = fail(Errc::application, "{}", co_await live->ended.get());
  if (!done) {
    Error why = co_await with_log(live, done.error());
    co_return std::unexpected(std::move(why));
  }
  launched.times.ready = os::now() - since - launched.times.raise;
  if (!source && !standby) cold_took_[live->record.workload] = launched.times.raise + launched.times.ready;
  live->record.ready = true;
  live->record.since_ns = os::now().time_since_epoch().count();
  // Not awaited: the answer need not wait for a file that only the next agent process reads.
  spawn(save(live));
  co_return launched;
}

asio::awaitable<Result<Launched>> Instances::promote(Promote wish, Instant since) {
  const auto found = live_.find(wish.instance);
  if (found == live_.end() || !found->second->link) co_return fail(Errc::not_found, "{} is not here", wish.instance);
  const LivePtr live = found->second;
  live->launch_over = Promise<bool>(around_.io.get_executor());
  live->record.purpose = Purpose::owner;
  live->record.epoch = wish.epoch;
  live->spec = wish.spec;
  const bool exclusive = wish.spec.policy.consistency == Consistency::exclusive;
  const auto link = live->link;
  Status done = co_await link->promote(wish.epoch, exclusive ? wish.spec.policy.lease : 0ms, true);
  Launched launched{.endpoint = endpoint(live->record), .times = {}};
  launched.times.raise = os::now() - since;
  if (done) done = co_await run_readiness(live, false);
  live->launch_over.give(true);
  if (done && live->ended.given()) done = fail(Errc::application, "{}", co_await live->ended.get());
  if (!done) {
    Error why = co_await with_log(live, done.error());
    co_return std::unexpected(std::move(why));
  }
  launched.times.ready = os::now() - since - launched.times.raise;
  live->record.since_ns = os::now().time_since_epoch().count();
  spawn(save(live));
  co_return launched;
}

asio::awaitable<Status> Instances::freeze(InstanceId id) {
  const auto found = live_.find(id);
  if (found == live_.end() || !found->second->link) co_return fail(Errc::not_found, "{} is not here", id);
  const LivePtr live = found->second;
  const auto link = live->link;
  const Status frozen = co_await link->freeze(live->record.epoch);
  if (!frozen) co_return frozen;
  live->record.since_ns = os::now().time_since_epoch().count();
  spawn(save(live));
  co_return Status{};
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
      .age = std::chrono::duration_cast<milliseconds>(age)};
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
