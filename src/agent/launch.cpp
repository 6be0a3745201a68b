// A start, a restore or a thaw, up to the readiness answer.
#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <sstream>

#include "agent/instances.hpp"
#include "agent/readiness.hpp"
#include "base/log.hpp"
#include "image/chain.hpp"
#include "os/clock.hpp"
#include "workload/vm/driver.hpp"

namespace yado::agent {

namespace asio = boost::asio;

namespace {

/// The host whose share of `main` it is; empty: it is `main` itself.
std::string saver_of(const image::Manifest& main, const ImageId& id) {
  const auto member = std::ranges::find(main.members, id, &image::Member::id);
  return member == main.members.end() ? "" : member->host.str();
}

bool has_part(const image::Manifest& manifest, image::PartType type) { return std::ranges::find(manifest.parts, type, &image::Part::type) != manifest.parts.end(); }

/// Of a chain, the oldest first: the disks that those of its last image lie on.
Status add_disks_below(const std::vector<std::vector<image::Held>>& sets, ImageSource& source) {
  for (std::size_t i = sets.size(); i-- > 0 && has_part(sets[i].front().manifest, image::PartType::disk_delta);) {
    if (i == 0) return fail(Errc::corrupt, "image {}: its disks lie on those of a base, and it has none", sets[i].front().manifest.id);
    const image::Held& base = sets[i - 1].front();
    if (!base.whole) return fail(Errc::not_found, "image {}: the disks below those of {} lie on another host", base.manifest.id, sets[i].front().manifest.id);
    source.directories[fmt::format("{}{:02}/disk", vm::base_prefix, i - 1)] = base.directory / "disk";
  }
  return {};
}

}  // namespace

/// A delta, and what it is a delta of: the directories of all parts, of some only the index; what to load on which host. The keys are the
/// driver's (workload/vm/driver.hpp).
asio::awaitable<Status> Instances::add_chain(ImageId id, ImageSource& source) {
  const image::Store& store = around_.images.store();
  std::function<Result<std::vector<std::vector<image::Held>>>()> find = [&store, id] { return image::sets_of_chain(store, id); };
  auto sets = co_await around_.workers.run(std::move(find));
  if (!sets) co_return std::unexpected(sets.error());
  for (std::size_t i = 0; i < sets->size(); ++i) {
    const std::vector<image::Held>& set = (*sets)[i];
    const std::string base = i + 1 < sets->size() ? fmt::format("{}{:02}/", vm::base_prefix, i) : "";
    for (const image::Held& held : set) {
      const std::string saver = saver_of(set.front().manifest, held.manifest.id);
      if (held.whole) {
        auto sound = co_await around_.images.verified(held.manifest.id);
        if (!sound) co_return std::unexpected(context(sound.error(), fmt::format("{} on {}", held.manifest.id, around_.config.host)).error());
      } else {
        std::string& names = source.properties[std::string(vm::load_prefix) + saver];
        names += (names.empty() ? "" : " ") + held.manifest.id.str();
      }
      for (const image::Part& part : held.manifest.parts)
        if (part.type == image::PartType::pages)
          source.directories[base + (saver.empty() ? part.name : std::string(vm::share_prefix) + saver)] = held.directory / part.name;
    }
  }
  co_return add_disks_below(*sets, source);
}

/// Sound images of disks that came before what lies on them, the oldest first.
asio::awaitable<Result<std::vector<std::string>>> Instances::disks_ahead(std::vector<ImageId> images) {
  std::vector<std::string> directories;
  for (const ImageId& id : images) {
    auto sound = co_await around_.images.verified(id);
    if (!sound) co_return std::unexpected(sound.error());
    directories.push_back(disks_of(around_.images.store(), id));
  }
  co_return directories;
}

asio::awaitable<Result<ImageSource>> Instances::source_of(ImageId id, WorkloadSpec spec) {
  auto manifest = co_await around_.images.verified(id);
  if (!manifest) co_return std::unexpected(manifest.error());
  auto hash = co_await around_.images.spec_hash(as_of(std::move(spec), *manifest));
  if (!hash) co_return std::unexpected(hash.error());
  if (manifest->spec_hash != *hash)
    co_return fail(Errc::conflict, "image {} was taken of another spec or root file system", id);
  const image::Store& store = around_.images.store();
  ImageSource source{.properties = manifest->properties};
  for (const image::Part& part : manifest->parts) source.directories.emplace(part.name, store.part_directory(id, part.name));
  if (const auto use = store.use_file(id); std::filesystem::exists(use)) source.directories.emplace(vm::use_key, use);
  if (const auto names = manifest->properties.find(vm::ahead_property); names != manifest->properties.end()) {
    std::istringstream words(names->second);
    std::vector<ImageId> images;
    for (std::string word; words >> word;) images.emplace_back(word);
    auto ahead = co_await disks_ahead(std::move(images));
    if (!ahead) co_return std::unexpected(ahead.error());
    for (std::size_t i = 0; i < ahead->size(); ++i) source.directories.emplace(fmt::format("{}{:02}/disk", vm::ahead_prefix, i), (*ahead)[i]);
  }
  if (manifest->base) {
    const Status added = co_await add_chain(id, source);
    if (!added) co_return std::unexpected(added.error());
    co_return source;
  }
  // Shares of its memory: those that are here are read here, the others are asked of the hosts that saved them.
  for (const image::Member& member : manifest->members) {
    if (!around_.images.all().contains(member.id)) {
      source.properties[std::string(vm::load_prefix) + member.host.str()] = member.id.str();
      continue;
    }
    auto share = co_await around_.images.verified(member.id);
    if (!share) co_return std::unexpected(share.error());
    if (share->stands_for.value_or(image::checksum_of_manifest(*share)) != member.xxh128)
      co_return fail(Errc::corrupt, "image {} is not the share that {} was made with", member.id, id);
    for (const image::Part& part : share->parts)
      source.directories.emplace(std::string(vm::share_prefix) + member.host.str(), store.part_directory(member.id, part.name));
  }
  co_return source;
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
    // Nobody else has the memory of a guest that came from another host: there is no faster way and no other, and a wrong answer may be its own.
    const bool came = source && source->properties.contains(vm::servers_property);
    done = co_await run_readiness(live, !source || came);
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

}  // namespace yado::agent
