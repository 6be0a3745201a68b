#include "agent/agent.hpp"

#include <fcntl.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/post.hpp>
#include <nlohmann/json.hpp>

#include "agent/host_facts.hpp"
#include "agent/impl.hpp"
#include "api/fields.hpp"
#include "base/log.hpp"
#include "image/chain.hpp"
#include "model/names.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/process.hpp"
#include "workload/container/criu.hpp"
#include "workload/vm/driver.hpp"

namespace yado::agent {

namespace asio = boost::asio;
using nlohmann::json;

namespace {

/// How often the roots of images are looked at again. Walking a root of 20 000 files takes some tens of milliseconds.
constexpr seconds root_check_pause{30};
constexpr seconds control_limit{5};

wire::Request post(std::string target, const json& body) {
  wire::Request request;
  request.method = "POST";
  request.target = std::move(target);
  request.headers = {{"content-type", "application/json"}};
  request.body = api::dump(body);
  return request;
}

/// Empty: this CRIU may be used. What tools/install-criu found out holds for the kernel it was tested on.
std::string wrong_with_criu(const std::filesystem::path& binary) {
  if (::access(binary.c_str(), X_OK) != 0) return fmt::format("{} is no program that can be run", binary.native());
  utsname kernel{};
  ::uname(&kernel);
  const auto tested = os::read_text(binary.parent_path().parent_path() / "selftest");
  if (tested) {
    if (tested->find(fmt::format("kernel {}\n", kernel.release)) != std::string::npos) return {};
    return fmt::format("{} was tested on another kernel than {}", binary.native(), kernel.release);
  }
  os::Spawn check;
  check.arguments = {binary.native(), "check"};
  check.environment = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"};
  auto process = os::spawn(check);
  if (!process) return process.error().message;
  const auto ended = process->wait(30s);
  if (ended && *ended && (*ended)->success()) return {};
  return fmt::format("`{} check` fails", binary.native());
}

}  // namespace

Agent::Impl::Impl(asio::io_context& context, Config wanted)
    : io(context), config(std::move(wanted)), boot(boot_id()), image_timer(context) {}

void Agent::Impl::spawn(asio::awaitable<void> work) {
  asio::co_spawn(io, std::move(work), [self = shared_from_this()](std::exception_ptr thrown) {
    if (!thrown) return;
    try {
      std::rethrow_exception(thrown);
    } catch (const std::exception& error) {
      if (!self->stopped) log::error("defect: an exception got out of the agent's work: {}", error.what());
    }
  });
}

// ---- start-up ------------------------------------------------------------------------------------------------------

asio::awaitable<Status> Agent::Impl::run(std::function<void(std::uint16_t)> listening) {
  if (Status up = co_await set_up(); !up) co_return up;
  if (Status recovered = recover(); !recovered) co_return recovered;
  co_await check_criu();
  co_await adopt_all();
  instances->leave_to_others();
  tell_images();
  pump();

  const std::weak_ptr<Impl> weak = weak_from_this();  // members must not keep what they are members of
  server = std::make_unique<wire::Server>(
      io,
      [weak](const wire::Request& request, wire::Responder& responder) {
        return serve(weak.lock(), request, responder);
      },
      wire::Server::Limits{});
  if (Status serves = server->listen_tls(std::move(listener), identity); !serves) co_return serves;
  log::info("agent of {} listens on {}:{}", config.host, config.address, port);
  if (listening) listening(port);

  heartbeat = std::make_unique<Heartbeat>(
      io, *control, config.host, [this] { return report(); },
      [this](const HeartbeatAnswer& said) { heartbeat_answered(said); });
  spawn(watch_images());
  co_await heartbeat->run();  // whoever runs this keeps all of it
  co_return Status{};
}

asio::awaitable<Status> Agent::Impl::set_up() {
  if (::geteuid() != 0)
    co_return fail(Errc::permission, "the agent makes namespaces, cgroups and network links: run it as root");
  if (!valid_name(config.host.str()))
    co_return fail(Errc::invalid_argument, "\"{}\" is no valid host name", config.host);
  const auto address = net::Ipv4::parse(config.address);
  if (!address || address->value >> 24 == 127 || address->value == 0)
    co_return fail(Errc::invalid_argument,
                   "\"{}\" is no address at which other hosts reach this one: give an IPv4 address "
                   "of this host, not loopback and not 0.0.0.0",
                   config.address);
  if (config.supervisor.empty()) co_return fail(Errc::invalid_argument, "no program for supervisors was given");
  auto read = wire::Identity::load(config.identity);
  if (!read) co_return std::unexpected(read.error());
  identity = std::move(*read);
  auto to_control = wire::Client::tls(io, config.control.address, config.control.port, identity, "control:");
  if (!to_control) co_return std::unexpected(to_control.error());
  control = std::make_unique<wire::Client>(std::move(*to_control));
  auto opened = StateDirectory::open(config.state_directory);
  if (!opened) co_return std::unexpected(opened.error());
  directory.emplace(std::move(*opened));
  auto host_network = net::HostNetwork::open();
  if (!host_network) co_return std::unexpected(host_network.error());
  network.emplace(std::move(*host_network));
  auto store = image::Store::open(directory->images());
  if (!store) co_return std::unexpected(store.error());
  images = std::make_unique<Images>(std::move(*store), workers);

  const std::weak_ptr<Impl> weak = weak_from_this();  // members must not keep what they are members of
  Instances::Events on;
  on.exited = [weak](const InstanceId& id, const WorkloadId& workload, const std::string& how) {
    const auto self = weak.lock();
    if (!self) return;
    log::info("{} ended: {}", id, how);
    if (self->core.exited(id, how, os::now())) self->spawn(self->tell_exited(id, workload, how));
    self->pump();
    self->changed();
  };
  on.runs = [weak](const InstanceId& id, bool runs) {
    const auto self = weak.lock();
    if (!self) return;
    self->core.lease_state(id, runs, os::now());
    self->pump();
    self->changed();
  };
  on.stands = [weak](const InstanceId& id, const std::string& why) {
    const auto self = weak.lock();
    if (!self) return;
    self->core.stands(id, why);
    self->changed();
  };
  on.renew = [weak](const InstanceId& id, const WorkloadId& workload, Epoch epoch, std::uint64_t ticket) {
    if (const auto self = weak.lock()) self->spawn(self->renew(id, workload, epoch, ticket));
  };
  instances = std::make_unique<Instances>(
      Instances::Surroundings{io, config, *directory, workers, *network, *images, [weak] { return weak.lock(); }}, on);
  if (Status swept = image::forget_indices(images->store()); !swept) log::warn("{}", swept.error().text());
  sides = std::make_unique<SideCalls>(SideCalls::Surroundings{io, config, workers, *images, *instances, identity, [weak](asio::awaitable<void> work) {
    if (const auto self = weak.lock()) self->spawn(std::move(work));
  }});
  if (Status bound = bind_api(); !bound) co_return bound;
  co_return offer_memory();
}

/// Before anything of ours asks for any free port and gets the one of the last time.
Status Agent::Impl::bind_api() {
  const std::uint16_t wanted = config.port != 0 ? config.port : directory->last_port();
  auto bound = wire::make_tcp_listener(config.address, wanted);
  if (!bound && config.port == 0 && wanted != 0) {
    log::warn("not the API's port of the last time: {}", bound.error().text());
    bound = wire::make_tcp_listener(config.address, 0);
  }
  if (!bound) return std::unexpected(bound.error());
  listener = std::move(*bound);
  YADO_ASSIGN(port, wire::check_listener(listener, true), "agent");
  if (auto saved = directory->save_port(port); !saved) log::warn("{}", saved.error().text());
  return {};
}

/// What it keeps ends with this process: whoever wants more has it kept twice (Redundancy).
Status Agent::Impl::offer_memory() {
  const std::uint64_t bytes = config.memory_bytes.value_or(memory_to_offer());
  if (bytes == 0) return {};
  const std::weak_ptr<Impl> weak = weak_from_this();
  const auto added = [weak, this](image::Manifest manifest) {
    if (const auto self = weak.lock())
      asio::post(io, [self, manifest = std::move(manifest)]() mutable {
        const auto add = [](std::shared_ptr<Impl> agent, image::Manifest one) -> asio::awaitable<void> {
          co_await agent->images->added(std::move(one));
          agent->tell_images();
          agent->changed();
        };
        self->spawn(add(self, std::move(manifest)));
      });
  };
  pager::MemoryServer::Options options;
  options.capacity_pages = bytes / 4096;
  options.archive = std::make_shared<MemoryArchive>(images->store(), added);
  options.admits = [](std::string_view peer) { return peer.starts_with("agent:"); };
  memory = std::make_unique<pager::MemoryServer>(std::move(options));
  YADO_ASSIGN(const std::uint16_t memory_port, memory->listen_tls(config.address, 0, identity), "memory server");
  memory_endpoint = {config.address, memory_port};
  return {};
}

asio::awaitable<void> Agent::Impl::check_criu() {
  std::string wrong = "none was given";
  if (!config.criu.empty()) {
    std::function<std::string()> check = [binary = config.criu] { return wrong_with_criu(binary); };
    wrong = co_await workers.run(std::move(check));
  }
  if (wrong.empty()) {
    std::function<Status()> learn = [criu = container::Criu{.binary = config.criu, .kernel_cache = directory->root()}] {
      return container::learn_kernel(criu);
    };
    if (const Status learnt = co_await workers.run(std::move(learn)); !learnt) log::warn("{}", learnt.error().text());
    co_return;
  }
  config.criu.clear();
  log::warn(
      "no working CRIU ({}): images can neither be taken nor restored here; cold starts and started-then-frozen "
      "standbys go on. Run tools/install-criu and restart the agent",
      wrong);
}

Status Agent::Impl::recover() {
  // Above every number an earlier process can have reached since the boot: nobody sends a report per microsecond.
  core.recover_sequence(static_cast<std::uint64_t>(os::now().time_since_epoch() / std::chrono::microseconds(1)));
  YADO_ASSIGN(const auto fences, directory->fences(), "fences");
  for (const auto& [workload, epoch] : fences) core.recover_fence(workload, epoch);
  YADO_ASSIGN(std::vector<WorkloadSpec> specs, directory->specs(), "specs");
  for (WorkloadSpec& spec : specs) core.recover_spec(std::move(spec));
  return {};
}

asio::awaitable<void> Agent::Impl::adopt_all() {
  const auto records = directory->instances();
  if (!records) {
    log::error("instances cannot be adopted: {}", records.error().text());
    co_return;
  }
  for (const InstanceRecord& record : *records)
    if (const auto found = co_await instances->adopt(record)) {
      log::info("adopted {}", found->id);
      core.adopt(*found, os::now());
    }
}

void Agent::Impl::stop() {
  if (std::exchange(stopped, true)) return;
  if (heartbeat) heartbeat->stop();
  if (server) server->stop();
  if (instances) instances->let_go();
  if (images) images->stop_changes();
  memory.reset();
  image_timer.cancel();
  for (const auto& [id, promise] : waiting) promise.give(fail(Errc::unavailable, "the agent is ending"));
}

// ---- the pump ------------------------------------------------------------------------------------------------------

asio::awaitable<Result<CallReply>> Agent::Impl::call(AgentCall what) {
  const CallId id = ++last_call;
  const Promise<Result<CallReply>> promise(io.get_executor());
  waiting.emplace(id, promise);
  core.call(id, what, os::now());
  pump();
  co_return co_await promise.get();
}

void Agent::Impl::pump() {
  const Instant now = os::now();
  for (Action& action : core.take()) todo.emplace_back(std::move(action), now);
  if (todo.empty() || std::exchange(pumping, true)) return;
  spawn(carry_out_all());
}

asio::awaitable<void> Agent::Impl::carry_out_all() {
  while (!todo.empty()) {
    auto [action, since] = std::move(todo.front());
    todo.pop_front();
    if (auto* fence = std::get_if<PersistFence>(&action))
      co_await persist_fence(*fence);
    else if (auto* spec = std::get_if<PersistSpec>(&action))
      co_await persist_spec(std::move(*spec));
    else if (auto* launch = std::get_if<Launch>(&action))
      spawn(do_launch(std::move(*launch), since));
    else if (auto* promote = std::get_if<Promote>(&action))
      spawn(do_promote(std::move(*promote), since));
    else if (auto* freeze = std::get_if<Freeze>(&action))
      spawn(do_freeze(*freeze));
    else if (auto* kill = std::get_if<Kill>(&action))
      spawn(do_kill(*kill));
    else if (auto* side = std::get_if<Side>(&action))
      spawn(do_side(std::move(*side)));
    else if (auto* reply = std::get_if<Reply>(&action))
      do_reply(std::move(*reply));
  }
  pumping = false;
}

asio::awaitable<void> Agent::Impl::persist_fence(PersistFence fence) {
  std::function<Status()> save = [this, fence] { return directory->save_fence(fence.workload, fence.epoch); };
  const Status saved = co_await workers.run(std::move(save));
  if (saved) {
    unsaved_fences.erase(fence.workload);
    co_return;
  }
  log::error("the fence of {} cannot be made durable ({}): nothing is started for it", fence.workload,
             saved.error().text());
  unsaved_fences[fence.workload] = fence.epoch;
}

asio::awaitable<void> Agent::Impl::persist_spec(PersistSpec spec) {
  std::function<Status()> save = [this, spec] { return directory->save_spec(spec.spec); };
  if (const Status saved = co_await workers.run(std::move(save)); !saved)
    log::warn("the spec of {} is not kept, and cannot be raised without control: {}", spec.spec.name,
              saved.error().text());
}

/// A fence that could not be written is tried once more: without it nothing runs.
asio::awaitable<bool> Agent::Impl::may_launch(WorkloadId workload, InstanceId instance) {
  const auto unsaved = unsaved_fences.find(workload);
  if (unsaved == unsaved_fences.end()) co_return true;
  PersistFence fence{workload, unsaved->second};
  co_await persist_fence(std::move(fence));
  if (!unsaved_fences.contains(workload)) co_return true;
  core.launched(instance,
                fail(Errc::no_space, "the fence of {} cannot be written to {}", workload, directory->root().native()),
                os::now());
  pump();
  co_return false;
}

namespace {
void note(const InstanceId& id, std::string_view how, const Result<Launched>& launched) {
  if (launched)
    log::info("{} {}: raise {:.1f} ms, ready {:.1f} ms", id, how, to_ms(launched->times.raise),
              to_ms(launched->times.ready));
  else
    log::warn("{} not {}: {}", id, how, launched.error().text());
}
}  // namespace

asio::awaitable<void> Agent::Impl::do_launch(Launch wish, Instant since) {
  if (!co_await may_launch(wish.spec.name, wish.instance)) co_return;
  const InstanceId id = wish.instance;
  const bool by_image = wish.way == Way::image;
  const std::string how = fmt::format("launched by {}", name_of(wish.way));
  const auto launched = co_await instances->launch(std::move(wish), since);
  note(id, how, launched);
  // Its image may be damaged: looked at now, so that it is replaced before it is needed again.
  if (!launched && by_image) image_timer.cancel();
  core.launched(id, launched, os::now());
  pump();
  changed();
}

asio::awaitable<void> Agent::Impl::do_promote(Promote wish, Instant since) {
  if (!co_await may_launch(wish.spec.name, wish.instance)) co_return;
  const InstanceId id = wish.instance;
  const auto launched = co_await instances->promote(std::move(wish), since);
  note(id, "thawed", launched);
  core.launched(id, launched, os::now());
  pump();
  changed();
}

asio::awaitable<void> Agent::Impl::do_freeze(Freeze wish) {
  const Status frozen = co_await instances->freeze(wish.instance);
  core.frozen(wish.instance, frozen, os::now());
  pump();
  changed();
}

asio::awaitable<void> Agent::Impl::do_kill(Kill wish) {
  co_await instances->kill(wish.instance);
  core.gone(wish.instance, os::now());
  pump();
  changed();
}

asio::awaitable<void> Agent::Impl::do_side(Side side) {
  const bool looks_only = std::holds_alternative<InspectCall>(side.what);
  auto result = co_await sides->run(std::move(side.what));
  tell_images();
  core.side_done(side.call, std::move(result), os::now());
  pump();
  if (!looks_only) changed();
}

void Agent::Impl::do_reply(Reply reply) {
  if (auto node = waiting.extract(reply.call)) return node.mapped().give(std::move(reply.result));
  if (!reply.result) log::warn("what control's heart-beat answer asked for: {}", reply.result.error().text());
}

// ---- control -------------------------------------------------------------------------------------------------------

void Agent::Impl::changed() {
  if (heartbeat) heartbeat->hurry();
}

/// What may be restored: no container without CRIU, no image that is known to be stale, no member of another.
void Agent::Impl::tell_images() {
  std::set<ImageId> present;
  std::map<WorkloadId, ImageId> newest;
  std::map<WorkloadId, std::int64_t> taken_ms;
  for (const auto& [id, manifest] : images->all()) {
    const bool by_criu = std::ranges::find(manifest.parts, image::PartType::criu, &image::Part::type) != manifest.parts.end();
    if (manifest.member_of || (by_criu && config.criu.empty())) continue;
    if (!images->current(manifest, core.spec(manifest.workload))) continue;
    present.insert(id);
    if (manifest.properties.contains(vm::servers_property)) continue;  // for one raise only, which names it
    if (auto [at, first] = taken_ms.try_emplace(manifest.workload, manifest.created_wall_ms);
        first || at->second <= manifest.created_wall_ms) {
      at->second = manifest.created_wall_ms;
      newest[manifest.workload] = id;
    }
  }
  core.images(std::move(present), std::move(newest));
}

std::string Agent::Impl::report() {
  HostReport made;
  made.host = config.host;
  made.boot = boot;
  made.agent = {config.address, port};
  made.memory = memory_endpoint;
  made.instances = core.report(made.sequence, os::now());
  made.fences = core.fences();
  for (const auto& [id, manifest] : images->all())
    if (images->current(manifest, core.spec(manifest.workload)))  // shares, too: who copies the image needs to know where they are
      made.images.push_back(images->report(manifest));
  const HostLoad load = host_load();
  made.memory_free_bytes = load.memory_free_bytes;
  made.load = load.load;
  made.checkpoint_works = !config.criu.empty();
  return api::dump(json(made));
}

void Agent::Impl::heartbeat_answered(const HeartbeatAnswer& answer) {
  for (const StopCall& stop : answer.retire) core.call(++last_call, stop, os::now());
  for (const DropImageCall& drop : answer.drop) core.call(++last_call, drop, os::now());
  if (!answer.retire.empty() || !answer.drop.empty()) pump();
  if (answer.expected) instances->keep_expected(*answer.expected, answer.asked);
}

asio::awaitable<void> Agent::Impl::tell_exited(InstanceId id, WorkloadId workload, std::string how) {
  const json body{{"workload", workload.str()}, {"instance", id.str()}, {"status", how}};
  wire::Request request = post(fmt::format("/v1/agents/{}/exited", config.host), body);
  request.headers.emplace_back("x-request-id", fmt::format("exited-{}", id));
  const auto told = co_await control->call(std::move(request), control_limit);
  // The next report says it too.
  if (!told) log::warn("control does not hear of the end of {}: {}", id, told.error().text());
}

asio::awaitable<void> Agent::Impl::renew(InstanceId id, WorkloadId workload, Epoch epoch, std::uint64_t ticket) {
  const json body{{"workload", workload.str()}, {"instance", id.str()}, {"epoch", epoch.value()}};
  wire::Request request = post("/v1/leases/renew", body);
  const auto answer = co_await control->call(std::move(request), control_limit);
  const auto link = instances->link(id);
  if (!link || !answer) co_return;  // no answer is no answer: the supervisor asks again, until the lease ends
  Status told;
  if (answer->status == 200) {
    milliseconds ttl{0};
    Status status;
    if (const auto parsed = api::parse_json(answer->body)) api::Fields(*parsed, "", status).required("ttl_ms", ttl);
    if (status && ttl > milliseconds(0)) told = link->renewed(ticket, ttl);
  } else if (answer->status == 409) {
    // Only control's own word is a refusal; a proxy's or a stranger's 409 is not.
    const auto parsed = api::parse_json(answer->body);
    const auto error = parsed && parsed->is_object() ? parsed->find("error") : json::const_iterator();
    if (!parsed || !parsed->is_object() || error == parsed->end()) co_return;
    const auto said = api::from_json_value<Error>(*error);
    if (said && (said->code == Errc::stale_epoch || said->code == Errc::not_owner)) {
      log::warn("{} may not run any more under {}: {}", id, epoch, said->message);
      told = link->refused();
    }
  }
  if (!told) log::warn("{}: {}", id, told.error().text());
}

// ---- images in the background --------------------------------------------------------------------------------------

asio::awaitable<void> Agent::Impl::watch_images() {
  while (!stopped) {
    std::vector<image::Manifest> all;
    for (const auto& [id, manifest] : images->all()) all.push_back(manifest);
    for (const image::Manifest& manifest : all) {
      if (!images->all().contains(manifest.id) || images->changing(manifest.id)) continue;  // dropped meanwhile, or its turn comes
      const WorkloadSpec* spec = core.spec(manifest.workload);
      if (spec) (void)co_await images->fresh_spec_hash(*spec);
      const auto fine = co_await images->verified(manifest.id);
      spec = core.spec(manifest.workload);
      const bool current = images->current(manifest, spec);
      if ((fine || fine.error().code != Errc::corrupt) && current) continue;
      log::warn("image {} is dropped: {}", manifest.id,
                current ? fine.error().text() : "the spec or the root file system has changed");
      (void)co_await images->remove_with_dependents(manifest.id);
      tell_images();
      changed();
    }
    tell_images();
    image_timer.expires_after(root_check_pause);
    boost::system::error_code woken;
    co_await image_timer.async_wait(asio::redirect_error(asio::use_awaitable, woken));
  }
}

// ---- Agent ---------------------------------------------------------------------------------------------------------

Agent::Agent(asio::io_context& io, Config config) : impl_(std::make_shared<Impl>(io, std::move(config))) {}
Agent::Agent(Agent&&) noexcept = default;
Agent::~Agent() {
  if (impl_) stop();
}
asio::awaitable<Status> Agent::run(std::function<void(std::uint16_t)> listening) {
  const std::shared_ptr<Impl> impl = impl_;
  Status ended = co_await impl->run(std::move(listening));
  impl->stop();
  co_return ended;
}
void Agent::stop() { impl_->stop(); }

}  // namespace yado::agent
