#include "agent/side_calls.hpp"

#include <algorithm>
#include <sstream>

#include "base/log.hpp"
#include "image/chain.hpp"
#include "os/clock.hpp"
#include "os/process.hpp"
#include "transfer/transfer.hpp"
#include "wire/client.hpp"
#include "workload/container/criu.hpp"
#include "workload/vm/driver.hpp"

namespace yado::agent {

namespace asio = boost::asio;

namespace {

/// Of one answer of a pull: a piece of 1 MiB over a slow link between sites (1 Mbit/s) needs 8 s.
constexpr seconds piece_limit{30};

/// "delta of vm-img.3, in 214 ms, standing still for 9.1 ms; h1 96 MiB, h2 41 MiB". `why_whole`: a delta was wished for.
std::string told_of(const image::Manifest& manifest, const HostId& here, const std::string& why_whole) {
  const auto property = [&](const char* name) {
    const auto found = manifest.properties.find(name);
    return found == manifest.properties.end() ? std::string() : found->second;
  };
  std::string text = manifest.base ? fmt::format("delta of {}, ", *manifest.base) : why_whole.empty() ? "" : fmt::format("all of it, because {}; ", why_whole);
  text += fmt::format("in {} ms, standing still for {:.1f} ms; ", property("took_ms"), std::atof(property("pause_us").c_str()) / 1000);
  if (const std::string limit = property("bytes_per_second"); !limit.empty()) text += fmt::format("at most {:.1f} MiB/s on each host; ", std::atof(limit.c_str()) / (1 << 20));
  std::istringstream lines(property("shares"));
  std::string host, pages, bytes, sum;
  for (bool first = true; lines >> host >> pages >> bytes >> sum; first = false)
    text += fmt::format("{}{} {:.1f} MiB", first ? "" : ", ", host == "-" ? here.str() : host, std::atof(bytes.c_str()) / (1 << 20));
  if (property(vm::disks_property) == "frozen") text += "; its file systems at rest";
  return text;
}

}  // namespace

asio::awaitable<Result<CallReply>> SideCalls::run(AgentCall what) {
  if (auto* c = std::get_if<BuildCall>(&what)) co_return co_await build(std::move(*c));
  if (auto* c = std::get_if<PullCall>(&what)) co_return co_await pull(std::move(*c));
  if (auto* c = std::get_if<HandoverCall>(&what)) co_return co_await hand_over(std::move(*c));
  if (auto* c = std::get_if<MergeCall>(&what)) co_return co_await merger_.run(std::move(*c));
  CallReply reply;
  if (auto* c = std::get_if<ExpectCall>(&what)) {
    reply.instance = c->instance;
    const Status ready = co_await around_.instances.expect(std::move(*c));
    if (!ready) co_return std::unexpected(ready.error());
    co_return reply;
  }
  if (auto* c = std::get_if<ResplitCall>(&what)) {
    reply.instance = c->instance;
    const auto said = co_await around_.instances.resplit(c->instance, c->spec);
    if (!said) co_return std::unexpected(said.error());
    reply.detail = *said;
    co_return reply;
  }
  if (auto* c = std::get_if<DropImageCall>(&what)) {
    const Status removed = co_await around_.images.remove(c->image);
    if (!removed) co_return std::unexpected(removed.error());
    co_return reply;
  }
  if (auto* c = std::get_if<InspectCall>(&what)) {
    reply.instance = c->instance;
    reply.state = co_await around_.instances.inspect(c->instance);
    co_return reply;
  }
  co_return fail(Errc::internal, "{} is no call of this kind", name_of(what));
}

asio::awaitable<Result<CallReply>> SideCalls::build(BuildCall call) {
  CallReply reply;
  if (const auto known = around_.images.all().find(call.image); known != around_.images.all().end()) {
    reply.image = around_.images.report(known->second);  // asked again
    co_return reply;
  }
  if (call.spec.kind == Kind::container) {
    const container::Criu criu{.binary = around_.config.criu};
    if (const Status there = container::require(criu); !there) co_return std::unexpected(there.error());
  }
  const InstanceId builder = call.instance;
  const ImageId image = call.image;
  const bool of_owner = call.spec.kind == Kind::vm && call.spec.vm.split;
  Result<image::Manifest> manifest = fail(Errc::internal, "not taken");
  std::string why_whole;
  if (of_owner)
    manifest = co_await checkpoint_owner(std::move(call), why_whole);
  else
    manifest = co_await take_image(std::move(call));
  if (!of_owner) co_await around_.instances.kill(builder);  // after a failure it may still be there
  if (!manifest) {
    Error why = context(manifest.error(), fmt::format("image {}", image)).error();
    co_return std::unexpected(std::move(why));
  }
  co_await around_.images.added(*manifest);
  reply.image = around_.images.report(*manifest);
  if (of_owner) {
    reply.detail = told_of(*manifest, around_.config.host, why_whole);
    use_orders_.expect(manifest->id, builder);
  }
  co_return reply;
}

namespace {

/// An image in the making.
struct Drafting {
  std::shared_ptr<image::Draft> draft;
  image::Manifest manifest;
  workload::PartDirectories directories;
};

Result<Drafting> begin_draft(const image::Store& store, const ImageId& id, const WorkloadSpec& spec, const std::string& spec_hash,
                             std::vector<image::Part> parts) {
  YADO_ASSIGN(image::Draft begun, store.begin(id), "draft");
  Drafting drafting{std::make_shared<image::Draft>(std::move(begun)), {}, {}};
  for (const image::Part& part : parts) {
    YADO_ASSIGN(const auto directory, drafting.draft->part_directory(part.name), "draft");
    drafting.directories.emplace(part.name, directory);
  }
  drafting.manifest.id = id;
  drafting.manifest.workload = spec.name;
  drafting.manifest.spec_hash = spec_hash;
  drafting.manifest.parts = std::move(parts);
  return drafting;
}

/// For a worker: what was written becomes an image, of now.
std::function<Result<image::Manifest>()> committing(Drafting drafting) {
  drafting.manifest.created_wall_ms = os::wall_ms();
  return [draft = std::move(drafting.draft), manifest = std::move(drafting.manifest)] { return draft->commit(manifest); };
}

}  // namespace

asio::awaitable<Result<image::Manifest>> SideCalls::take_image(BuildCall call) {
  // The root as it is before the builder reads it: changed under way, the image is of the old one and found stale.
  auto hash = co_await around_.images.fresh_spec_hash(call.spec);
  if (!hash) co_return std::unexpected(hash.error());
  if (const Status settled = co_await around_.instances.start_builder(call); !settled)
    co_return std::unexpected(settled.error());

  auto drafting = begin_draft(around_.images.store(), call.image, call.spec, *hash, parts_of(call.spec.kind));
  if (!drafting) co_return std::unexpected(drafting.error());
  ImageSource source{.directories = drafting->directories, .properties = {}};
  auto properties = co_await around_.instances.checkpoint(call.instance, source.directories);
  if (!properties) co_return std::unexpected(properties.error());
  co_await around_.instances.kill(call.instance);
  for (const image::Part& part : drafting->manifest.parts)
    if (part.type == image::PartType::criu)
      if (const Status readable = let_restorer_read(source.directories[part.name]); !readable)
        co_return std::unexpected(readable.error());

  // It proves itself while it is still a draft: an image that does not work never comes into being, not even when this
  // process dies now.
  source.properties = *properties;
  const InstanceId copy(call.instance.str() + "-proof");
  if (const Status proved = co_await around_.instances.prove(copy, call.spec, std::move(source)); !proved) {
    Error why = context(proved.error(), "the restored copy does not work").error();
    co_return std::unexpected(std::move(why));
  }
  drafting->manifest.properties = std::move(*properties);
  std::function<Result<image::Manifest>()> commit = committing(std::move(*drafting));
  co_return co_await around_.workers.run(std::move(commit));
}

namespace {

/// What the driver says each host saved: "host pages bytes sum" a line.
std::vector<image::Member> members_of(const ImageId& image, const workload::Properties& properties) {
  std::vector<image::Member> members;
  const auto found = properties.find("shares");
  std::istringstream lines(found == properties.end() ? "" : found->second);
  std::string host, pages, bytes, sum;
  while (lines >> host >> pages >> bytes >> sum)
    if (host != "-") members.push_back({ImageId(image.str() + "." + host), HostId(host), sum});
  return members;
}

/// What a checkpoint is to be called, and what it is to go on from.
struct Wish {
  workload::NewImage image;
  std::string why_whole;
};

Wish wish_of(const BuildCall& call, const std::map<ImageId, image::Manifest>& here, const std::string& hash) {
  Wish wish{{.name = call.image.str(), .base = {}, .base_cut = {}, .bytes_per_second = call.bytes_per_second}, {}};
  if (!call.base) return wish;
  const auto base = here.find(*call.base);
  if (base == here.end()) {
    wish.why_whole = fmt::format("{} is not here", *call.base);
  } else if (base->second.spec_hash != hash) {
    wish.why_whole = fmt::format("{} was taken of another spec or other disks", *call.base);
  } else if (const auto cut = base->second.properties.find("cut"); cut != base->second.properties.end()) {
    wish.image.base = call.base->str();
    wish.image.base_cut = cut->second;
  }
  return wish;
}

}  // namespace

/// A running VM whose memory several hosts keep: each saves its share, and makes an image of its own of it.
asio::awaitable<Result<image::Manifest>> SideCalls::checkpoint_owner(BuildCall call, std::string& why_whole) {
  auto hash = co_await around_.images.fresh_spec_hash(call.spec);
  if (!hash) co_return std::unexpected(hash.error());
  auto drafting = begin_draft(around_.images.store(), call.image, call.spec, *hash, parts_of(call.spec.kind));
  if (!drafting) co_return std::unexpected(drafting.error());
  Wish wish = wish_of(call, around_.images.all(), *hash);
  auto properties = co_await around_.instances.checkpoint_running(call.instance, drafting->directories, std::move(wish.image));
  if (!properties) co_return std::unexpected(properties.error());
  image::Manifest& manifest = drafting->manifest;
  manifest.members = members_of(call.image, *properties);
  if (properties->contains("base_cut")) manifest.base = call.base;
  if (!properties->extract(vm::disks_are_delta_property).empty())
    std::ranges::find(manifest.parts, image::PartType::disk, &image::Part::type)->type = image::PartType::disk_delta;
  why_whole = wish.why_whole;
  if (call.base && !manifest.base && why_whole.empty())
    why_whole = fmt::format("the owner does not count its changes from {}", *call.base);
  manifest.properties = std::move(*properties);
  std::function<Result<image::Manifest>()> commit = committing(std::move(*drafting));
  auto committed = co_await around_.workers.run(std::move(commit));
  if (committed) co_await keep_indices(*committed, std::move(call.peers));
  co_return committed;
}

/// Of the shares that other hosts saved: where pages lie is known here then, also in deltas of this image. Without one it is an image all the
/// same, but no chain with it can be raised on this host.
asio::awaitable<void> SideCalls::keep_indices(image::Manifest manifest, std::vector<HostAddress> peers) {
  for (const image::Member& member : manifest.members) {
    const auto saver = std::ranges::find(peers, member.host, &HostAddress::host);
    Status kept = fail(Errc::not_found, "nobody said where the agent of {} listens", member.host);
    if (saver != peers.end()) {
      auto peer = wire::Client::tls(around_.io, saver->agent.address, saver->agent.port, around_.identity, "agent:" + member.host.str());
      if (!peer) {
        kept = std::unexpected(peer.error());
      } else {
        auto pulled = co_await transfer::pull_indices(around_.images.store(), around_.workers.executor(), member.id, *peer, piece_limit);
        if (!pulled) kept = std::unexpected(pulled.error());
        else kept = {};
      }
    }
    if (!kept) log::warn("{} on {}: {}", member.id, member.host, kept.error().text());
  }
}

/// What is no page becomes an image, for the next host to pull; with disks_only what it has written to its disks so far.
asio::awaitable<Result<CallReply>> SideCalls::hand_over(HandoverCall call) {
  CallReply reply;
  if (const auto known = around_.images.all().find(call.image); known != around_.images.all().end()) {
    reply.image = around_.images.report(known->second);  // asked again
    co_return reply;
  }
  auto hash = co_await around_.images.fresh_spec_hash(call.spec);
  if (!hash) co_return std::unexpected(hash.error());
  const image::Store& store = around_.images.store();
  std::vector<image::Part> parts = parts_of(call.spec.kind);
  std::erase_if(parts, [&](const image::Part& part) { return part.type != image::PartType::disk && (call.disks_only || part.type == image::PartType::pages); });
  auto drafting = begin_draft(store, call.image, call.spec, *hash, std::move(parts));
  if (!drafting) co_return std::unexpected(drafting.error());
  workload::Handover how{.to = call.to.str(), .disks_only = call.disks_only, .ahead = {}, .most_disk_bytes = call.most_disk_bytes};
  std::string ahead;
  for (const ImageId& image : call.ahead) {
    how.ahead.push_back(disks_of(store, image));
    ahead += (ahead.empty() ? "" : " ") + image.str();
  }
  auto properties = co_await around_.instances.hand_over(call.instance, drafting->directories, std::move(how));
  if (!properties) co_return std::unexpected(properties.error());
  if (const auto not_yet = properties->find(workload::not_yet_property); not_yet != properties->end()) {
    reply.detail = not_yet->second;
    co_return reply;
  }
  if (!ahead.empty() && !call.disks_only) (*properties)[vm::ahead_property] = ahead;
  drafting->manifest.properties = std::move(*properties);
  std::function<Result<image::Manifest>()> commit = committing(std::move(*drafting));
  auto committed = co_await around_.workers.run(std::move(commit));
  if (!committed) {
    // Nobody can go on with it but itself.
    if (const auto there = around_.instances.link(call.instance); there && !call.disks_only) (void)co_await there->thaw(call.epoch);
    co_return std::unexpected(committed.error());
  }
  co_await around_.images.added(*committed);
  reply.image = around_.images.report(*committed);
  if (const auto rounds = committed->properties.find(vm::rounds_property); rounds != committed->properties.end()) reply.detail = rounds->second;
  co_return reply;
}

/// An image that is no share is of the `spec`.
asio::awaitable<Status> SideCalls::pull_one(ImageId image, Endpoint from, WorkloadSpec spec, bool in_background) {
  if (around_.images.all().contains(image)) co_return Status{};
  auto peer = wire::Client::tls(around_.io, from.address, from.port, around_.identity, "agent:");
  if (!peer) co_return std::unexpected(peer.error());
  std::function<void(transfer::Progress)> nobody_watches;
  transfer::Pace pace;
  if (in_background && around_.config.background_bytes_per_second != 0) pace = [this](std::uint64_t bytes) { return pace_.after(bytes); };
  auto manifest = co_await transfer::pull(around_.images.store(), around_.workers.executor(), image, *peer, piece_limit,
                                          std::move(nobody_watches), std::move(pace));
  if (!manifest) co_return std::unexpected(manifest.error());
  Result<std::string> hash = manifest->spec_hash;
  if (!manifest->member_of) hash = co_await around_.images.spec_hash(as_of(std::move(spec), *manifest));
  if (!hash || manifest->spec_hash != *hash) {
    (void)co_await around_.images.remove(image);
    if (!hash) co_return std::unexpected(hash.error());
    co_return fail(Errc::conflict,
                   "image {} was taken of another spec or root file system than this host's (same names, sizes and times "
                   "of files on every host?)",
                   image);
  }
  const bool of_running = !manifest->member_of && manifest->properties.contains("cut");  // of a VM with split memory
  co_await around_.images.added(std::move(*manifest));
  if (of_running) use_orders_.fetch(std::move(image), std::move(from));
  co_return Status{};
}

asio::awaitable<Result<CallReply>> SideCalls::pull(PullCall call) {
  // What came is compared with what is here now.
  if (auto looked = co_await around_.images.fresh_spec_hash(call.spec); !looked) co_return std::unexpected(looked.error());
  if (Status root = co_await around_.instances.prepare_root(call.spec); !root) co_return std::unexpected(root.error());
  // Shares first: whoever has the main image may count on them.
  for (const PullCall::Member& member : call.members) {
    Status pulled = co_await pull_one(member.image, member.from, call.spec, call.in_background);
    if (!pulled) co_return std::unexpected(pulled.error());
  }
  Status pulled = co_await pull_one(call.image, call.from, call.spec, call.in_background);
  if (!pulled) co_return std::unexpected(pulled.error());
  // All of it, or nobody counts on it: also what nobody has any more, who was to be asked for it.
  const image::Manifest manifest = around_.images.all().at(call.image);
  if (!call.shares_only && (!manifest.members.empty() || manifest.base)) {
    std::function<Status()> look = [this, id = call.image]() -> Status {
      YADO_ASSIGN(const auto sets, image::sets_of_chain(around_.images.store(), id), "copy");
      for (const auto& set : sets)
        for (const image::Held& held : set)
          if (!held.whole) return fail(Errc::not_found, "image {}: {} was on no host that answers", id, held.manifest.id);
      return {};
    };
    const Status whole = co_await around_.workers.run(std::move(look));
    if (!whole) {
      (void)co_await around_.images.remove(call.image);
      co_return std::unexpected(whole.error());
    }
  }
  CallReply reply;
  reply.image = around_.images.report(manifest);
  co_return reply;
}

}  // namespace yado::agent
