#include "pager/client_move.hpp"

#include <nlohmann/json.hpp>
#include <optional>

#include "base/log.hpp"
#include "pager/changed_pages.hpp"
#include "pager/order_of_use.hpp"
#include "pager/write_back.hpp"

namespace yado::pager {
namespace fs = std::filesystem;
using nlohmann::json;

/// A move to another main host.
struct MoveCalls::Leaving {
  Leaving(ServerSet::Unchanged same, Pager& pager, Network& network, const WriteBack::Options& options)
      : set(std::move(same)), back(pager, network.memory(), network.executor(), set.servers(), options) {}
  ServerSet::Unchanged set;
  WriteBack back;
};

MoveCalls::MoveCalls(ServedMemory& memory) : pager_(memory.pager), network_(memory.network), kept_(memory.kept) {}
MoveCalls::~MoveCalls() = default;

Result<json> MoveCalls::leave(const json& call) {
  to_ = call.value("to", "");
  network_.wait_for_redundancy();
  YADO_TRY(network_.may_leave(), "move");
  YADO_ASSIGN(auto set, network_.servers().hold_unchanged(), "move");
  WriteBack::Options options{.landing = std::nullopt, .local_limit = pager_.local_limit(), .seed = network_.seed()};
  for (std::size_t i = 0; i < set.servers().size(); ++i)
    if (set.servers()[i].link && set.servers()[i].host == to_) options.landing = i;
  leaving_ = std::make_unique<Leaving>(std::move(set), pager_, network_, options);
  return answer("begin", call);
}

Result<json> MoveCalls::answer(const std::string& what, const json& call) {
  Result<json> done = json::object();
  if (what == "begin" || what == "round") {
    const Status begun = what == "begin" ? leaving_->back.begin() : Status();
    const auto round = begun ? leaving_->back.round() : std::unexpected(begun.error());
    done = round ? Result<json>(json{{"pages", round->pages}, {"left", round->left}}) : std::unexpected(round.error());
  } else if (what == "left") {
    done = left(call.value("part", ""));
  } else {
    done = fail(Errc::conflict, "\"{}\": a move is under way", what);
  }
  if (!done) leaving_.reset();
  return done;
}

Result<json> MoveCalls::left(const fs::path& part) {
  if (!part.is_absolute()) return fail(Errc::invalid_argument, "left: \"part\" is an absolute path");
  YADO_TRY(write_order_of_use(part, pager_.pages(), pager_.by_recency()), "move");
  YADO_TRY(leaving_->back.finish(), "move");
  leave_changes(part);
  YADO_ASSIGN(const auto servers, network_.leave_to(to_), "move");
  return json{{"servers", json::parse(to_text(servers))}};
}

/// Without it the next checkpoint has all of the memory.
void MoveCalls::leave_changes(const fs::path& part) const {
  const std::lock_guard lock(kept_.mutex);
  auto changed = pager_.changed();
  if (kept_.cut.none() || !changed) return;
  if (const Status left = write_changed_pages(part, {kept_.cut, std::move(*changed)}); !left) log::warn("pager: {}", left.error().text());
}

}  // namespace yado::pager
