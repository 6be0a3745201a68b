#include "pager/client_checkpoint.hpp"

#include <algorithm>
#include <future>
#include <nlohmann/json.hpp>
#include <poll.h>

#include "os/pidfd.hpp"
#include "pager/order_of_use.hpp"

namespace yado::pager {
using nlohmann::json;

/// A checkpoint's saving.
struct CheckpointCalls::Saving {
  Saving(ServerSet::Unchanged same, Pager& pager, Network& network, SplitSave::Options options)
      : set(std::move(same)), watched(*options.watch),
        save(pager, network.memory(), network.executor(), set.servers(), [&network](PageNumber page) { return network.holder(page); }, std::move(options)) {}
  ServerSet::Unchanged set;
  SaveWatch::UnderWay watched;
  SplitSave save;
};

CheckpointCalls::CheckpointCalls(const os::Fd& socket, ServedMemory& memory)
    : socket_(socket), config_(memory.config), pager_(memory.pager), network_(memory.network), watch_(memory.watch), kept_(memory.kept) {}
CheckpointCalls::~CheckpointCalls() = default;

Result<json> CheckpointCalls::save(const json& call) {
  YADO_TRY(begin(call), "checkpoint");
  return round(Pager::Hot::leave);
}

Result<json> CheckpointCalls::answer(const std::string& what) {
  if (what == "round") return round(Pager::Hot::leave);
  if (what == "rest") return round(Pager::Hot::save);
  if (what == "copy") return copy();
  Result<json> done = json::object();
  if (what == "fix") {
    if (const Status fixed = saving_->save.fix(); !fixed) done = std::unexpected(fixed.error());
  } else if (what == "finish") {
    done = finish();
  } else if (what == "keep") {
    const auto kept = keep();
    done = kept ? Result<json>(shares_json(*kept)) : std::unexpected(kept.error());
    saving_.reset();
  } else {
    return fail(Errc::invalid_argument, "there is no call \"{}\"", what);
  }
  if (!done) saving_.reset();
  return done;
}

Status CheckpointCalls::begin(const json& call) {
  network_.wait_for_redundancy();
  limit_ = smaller_limit(config_.save_bytes_per_second, call.value("bytes_per_second", std::uint64_t{0}));
  SplitSave::Options options{call.value("name", ""), call.value("part", ""), image::CutId::from_hex(call.value("cut", "")), image::CutId::from_hex(call.value("base_cut", "")), call.value("base", ""), limit_,
                             [this](SavePace::Time then) { return wait_until(then); }, network_.chain(), watch_};
  YADO_ASSIGN(auto set, network_.servers().hold_unchanged(), "checkpoint");  // nothing can be wrong with the call any more
  const std::lock_guard lock(kept_.mutex);
  // Of any other base nobody knows what changed since.
  if (options.base_cut != kept_.cut) options.base_cut = {}, options.base.clear();
  part_ = options.part;
  cut_ = options.cut;
  base_cut_ = options.base_cut;
  saving_ = std::make_unique<Saving>(std::move(set), pager_, network_, std::move(options));
  const Status begun = saving_->save.begin();
  if (!begun) saving_.reset();
  return begun;
}

/// The client may end meanwhile.
Status CheckpointCalls::wait_until(SavePace::Time then) const {
  const auto left = std::max(then - std::chrono::steady_clock::now(), SavePace::Time::duration(0));
  YADO_ASSIGN(const bool hung_up, os::readable_within(socket_.get(), left, POLLRDHUP), "checkpoint");
  return hung_up ? fail(Errc::canceled, "whoever asked for the checkpoint has ended") : Status();
}

Result<json> CheckpointCalls::round(Pager::Hot hot) {
  const auto done = saving_->save.round(hot);
  if (!done) {
    saving_.reset();
    return std::unexpected(done.error());
  }
  return json{{"pages", done->pages}, {"here", done->here}, {"left", done->left}, {"memory_pages", pager_.pages()}};
}

Result<json> CheckpointCalls::copy() {
  const auto left = saving_->save.copy();
  if (left) return json{{"left", *left}};
  saving_.reset();
  return std::unexpected(left.error());
}

Result<json> CheckpointCalls::finish() {
  YADO_TRY(pager_.copy_rest(), "checkpoint");  // first of all: the workload waits for these pages
  pager_.watch_use();
  const auto shares = saving_->save.finish();
  if (!shares) return std::unexpected(shares.error());
  YADO_TRY(write_order_of_use(part_, pager_.pages(), pager_.order_of_use()), "checkpoint");
  return shares_json(*shares);
}

Result<std::vector<SplitSave::Share>> CheckpointCalls::keep() {
  const std::lock_guard lock(kept_.mutex);
  auto shares = saving_->save.keep();
  if (shares) kept_.cut = cut_;
  return shares;
}

json CheckpointCalls::shares_json(const std::vector<SplitSave::Share>& shares) const {
  json all = json::array();
  for (const SplitSave::Share& share : shares)
    all.push_back({{"host", share.host}, {"pages", share.pages}, {"bytes", share.bytes}, {"sum", share.sum}});
  return json{{"shares", std::move(all)}, {"base_cut", base_cut_.none() ? "" : base_cut_.hex()}, {"bytes_per_second", limit_}};
}

}  // namespace yado::pager
