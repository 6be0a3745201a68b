#include "agent/merger.hpp"

#include <linux/ioprio.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <condition_variable>
#include <cstring>

#include "image/page_files.hpp"
#include "transfer/transfer.hpp"

namespace yado::agent {

namespace asio = boost::asio;

namespace {

/// Of one answer, as of a pull.
constexpr seconds piece_limit{30};

/// The calling thread. Not the idle class of I/O: it may get nothing at all for as long as others write, and who wants the image waits for it.
void step_back() {
  constexpr int lowest_of_best_effort = 7, patient = 10;
  const auto thread = static_cast<id_t>(::syscall(SYS_gettid));
  (void)::setpriority(PRIO_PROCESS, thread, patient);
  (void)::syscall(SYS_ioprio_set, IOPRIO_WHO_PROCESS, thread, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, lowest_of_best_effort));
}

/// The answer to a coroutine of the io_context's thread that another thread waits for.
struct Answer {
  std::mutex mutex;
  std::condition_variable_any came;
  std::optional<Result<std::string>> bytes;  // guarded by mutex
};

asio::awaitable<Result<std::string>> ask(std::shared_ptr<wire::Client> peer, ImageId id, std::string part, std::uint64_t offset, std::uint64_t bytes) {
  co_return co_await transfer::pull_bytes(std::move(id), std::move(part), std::string(image::log_file), offset, bytes, *peer, piece_limit);
}

/// The main image first: as long as its members here are deltas it goes on naming its base, for whoever gets a copy of it and members from hosts
/// that have not merged them yet.
std::vector<ImageId> shares_of(const std::map<ImageId, image::Manifest>& images, const ImageId& main) {
  std::vector<ImageId> shares;
  if (images.contains(main)) shares.push_back(main);
  for (const auto& [id, manifest] : images)
    if (manifest.member_of == main) shares.push_back(id);
  return shares;
}

}  // namespace

asio::awaitable<Result<CallReply>> Merger::run(MergeCall call) {
  if (busy_) co_return fail(Errc::conflict, "merge {}: another image is being merged here", call.image);
  busy_ = true;
  const std::string doing = fmt::format("merge {}", call.image);
  auto merged = co_await merge(std::move(call));
  // What was only needed for this: a host that has shares alone keeps nothing of the others' images.
  std::function<Status()> forget = [this] { return image::forget_indices(around_.images.store()); };
  (void)co_await thread_.run(std::move(forget));
  busy_ = false;
  if (!merged) co_return context(merged.error(), doing);
  co_return merged;
}

asio::awaitable<Result<CallReply>> Merger::merge(MergeCall call) {
  const std::vector<ImageId> shares = shares_of(around_.images.all(), call.image);
  if (shares.empty()) co_return fail(Errc::not_found, "nothing of it is here");
  auto peers = co_await learn_indices(call);
  if (!peers) co_return std::unexpected(peers.error());
  bool changed = false;
  for (const ImageId& share : shares) {
    Peers elsewhere = *peers;
    const auto merged = co_await merge_share(share, std::move(elsewhere));
    if (!merged) co_return std::unexpected(merged.error());
    changed = changed || *merged;
  }
  if (!changed) co_return fail(Errc::conflict, "nothing is left to be merged here before other hosts have merged their shares");
  CallReply reply;
  if (const auto known = around_.images.all().find(shares.front()); known != around_.images.all().end())
    reply.image = around_.images.report(known->second);
  co_return reply;
}

/// Always anew: other hosts may have merged what they have.
asio::awaitable<Result<Merger::Peers>> Merger::learn_indices(const MergeCall& call) {
  std::map<Endpoint, Peer> known;
  Peers peers;
  for (const PullCall::Member& other : call.others) {
    if (around_.images.all().contains(other.image)) continue;
    Peer& peer = known[other.from];
    if (!peer) {
      auto made = wire::Client::tls(around_.io, other.from.address, other.from.port, around_.identity, "agent:");
      if (!made) co_return std::unexpected(made.error());
      peer = std::make_shared<wire::Client>(std::move(*made));
    }
    auto kept = co_await transfer::pull_indices(around_.images.store(), thread_.executor(), other.image, *peer, piece_limit);
    if (!kept) co_return std::unexpected(kept.error());
    peers[other.image] = peer;
  }
  co_return peers;
}

/// True when it is another one now.
asio::awaitable<Result<bool>> Merger::merge_share(ImageId share, Peers peers) {
  const auto known = around_.images.all().find(share);
  if (known == around_.images.all().end()) co_return fail(Errc::canceled, "{} is not here any more", share);
  const image::Manifest before = known->second;
  const auto executor = co_await asio::this_coro::executor;
  auto begun = around_.images.begin_change(share, executor);
  if (!begun) co_return std::unexpected(begun.error());
  const std::stop_token stop = *begun;
  std::function<Result<image::Manifest>()> work = [this, share, stop, peers = std::move(peers)] {
    step_back();
    image::MergeChain how;
    how.stop = stop;
    how.elsewhere = [&](const image::PagePart& part, std::uint64_t offset, std::span<std::byte> bytes) { return read_from(peers, part, offset, bytes, stop); };
    how.copied = [&](std::uint64_t bytes) { return wait_for_turn(bytes, stop); };
    return image::merge_chain(around_.images.store(), share, how);
  };
  auto merged = co_await thread_.run(std::move(work));
  const bool changed = merged && *merged != before;
  if (changed) co_await around_.images.added(*merged);
  around_.images.end_change(share);
  if (!merged) co_return std::unexpected(merged.error());
  co_return changed;
}

/// On the merging thread, which waits.
Status Merger::read_from(const Peers& peers, const image::PagePart& part, std::uint64_t offset, std::span<std::byte> bytes, const std::stop_token& stop) {
  const std::size_t slash = part.name().find('/');  // <image>/<part>
  const ImageId id(part.name().substr(0, slash));
  const auto peer = peers.find(id);
  if (peer == peers.end() || slash == std::string::npos) return fail(Errc::unavailable, "{}: nobody said who has its log", part.name());
  const auto answer = std::make_shared<Answer>();
  const auto tell = [answer](std::exception_ptr thrown, Result<std::string> came) {
    const std::lock_guard lock(answer->mutex);
    if (thrown) answer->bytes = fail(Errc::internal, "an exception while a log was read from another host");
    else answer->bytes = std::move(came);
    answer->came.notify_all();
  };
  asio::co_spawn(around_.io, ask(peer->second, id, part.name().substr(slash + 1), offset, bytes.size()), tell);
  std::unique_lock lock(answer->mutex);
  if (!answer->came.wait(lock, stop, [&] { return answer->bytes.has_value(); })) return fail(Errc::canceled, "stopped");
  if (!*answer->bytes) return context(answer->bytes->error(), part.name());
  std::memcpy(bytes.data(), (*answer->bytes)->data(), bytes.size());
  return {};
}

/// On the merging thread.
Status Merger::wait_for_turn(std::uint64_t bytes, const std::stop_token& stop) {
  const auto turn = around_.pace.after(bytes);
  std::mutex nobodys;
  std::condition_variable_any wake;
  std::unique_lock lock(nobodys);
  wake.wait_until(lock, stop, turn, [] { return false; });
  return stop.stop_requested() ? fail(Errc::canceled, "stopped") : Status();
}

}  // namespace yado::agent
