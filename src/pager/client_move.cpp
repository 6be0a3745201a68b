#include "pager/client_move.hpp"

#include <nlohmann/json.hpp>
#include <optional>

#include "pager/order_of_use.hpp"
#include "pager/write_back.hpp"

namespace yado::pager {
namespace fs = std::filesystem;
using nlohmann::json;

/// A move to another main host: as long as it is there, the servers stay the same.
class MoveCalls::Leaving {
 public:
  Leaving(ServerSet& set, Pager& pager, Network& network, std::vector<SplitSave::Server> servers, WriteBack::Options options)
      : set_(set), back_(std::in_place, pager, network.memory(), network.executor(), std::move(servers), options) {}
  ~Leaving() {
    back_.reset();
    set_.end_checkpoint();
  }
  Leaving(const Leaving&) = delete;
  Leaving& operator=(const Leaving&) = delete;
  WriteBack* operator->() { return &*back_; }

 private:
  ServerSet& set_;
  std::optional<WriteBack> back_;
};

MoveCalls::MoveCalls(ServedMemory& memory) : pager_(memory.pager), network_(memory.network) {}
MoveCalls::~MoveCalls() = default;

Result<json> MoveCalls::leave(const json& call) {
  to_ = call.value("to", "");
  network_.wait_for_redundancy();
  YADO_TRY(network_.may_leave(), "move");
  YADO_ASSIGN(auto servers, network_.servers().begin_checkpoint(), "move");
  WriteBack::Options options{.landing = std::nullopt, .local_limit = pager_.local_limit(), .seed = network_.seed()};
  for (std::size_t i = 0; i < servers.size(); ++i)
    if (servers[i].link && servers[i].host == to_) options.landing = i;
  leaving_ = std::make_unique<Leaving>(network_.servers(), pager_, network_, std::move(servers), options);
  return answer("begin", call);
}

Result<json> MoveCalls::answer(const std::string& what, const json& call) {
  Result<json> done = json::object();
  if (what == "begin" || what == "round") {
    const Status begun = what == "begin" ? (*leaving_)->begin() : Status();
    const auto round = begun ? (*leaving_)->round() : std::unexpected(begun.error());
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
  YADO_TRY((*leaving_)->finish(), "move");
  YADO_ASSIGN(const auto servers, network_.leave_to(to_), "move");
  return json{{"servers", json::parse(to_text(servers))}};
}

}  // namespace yado::pager
