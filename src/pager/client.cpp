#include "pager/client.hpp"

#include <nlohmann/json.hpp>
#include <unistd.h>

#include "os/file.hpp"
#include "pager/order_of_use.hpp"

namespace yado::pager {
using nlohmann::json;

namespace {

constexpr std::size_t longest_call = 1_MiB;

}  // namespace

json error_of(const Error& error) { return {{"error", {{"code", name_of(error.code)}, {"message", error.message}}}}; }

Client::Client(os::Fd socket, ServedMemory& memory)
    : socket_(std::move(socket)), config_(memory.config), pager_(memory.pager), network_(memory.network), watch_(memory.watch), kept_(memory.kept), checkpoint_(socket_, memory), move_(memory) {}

void Client::serve() {
  std::string heard;
  char text[4096];
  for (;;) {
    const ssize_t n = ::read(socket_.get(), text, sizeof text);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    heard.append(text, static_cast<std::size_t>(n));
    if (heard.size() > longest_call && heard.find('\n') == std::string::npos) {
      (void)os::write_all(socket_, error_of({Errc::invalid_argument, fmt::format("a call is one line of at most {} bytes", longest_call)}).dump() + "\n");
      return;
    }
    for (std::size_t end; (end = heard.find('\n')) != std::string::npos; heard.erase(0, end + 1)) {
      const auto done = answer_to(heard.substr(0, end));
      json said = done ? *done : error_of(done.error());
      if (done) said["ok"] = true;
      if (!os::write_all(socket_, said.dump() + "\n")) return;
    }
  }
}

/// A field of another type than expected is the caller's mistake: this memory must not end of it.
Result<json> Client::answer_to(const std::string& line) try {
  return answer(json::parse(line, nullptr, false));
} catch (const json::exception& wrong) {
  return fail(Errc::invalid_argument, "a call that is not understood: {}", wrong.what());
}

Result<json> Client::answer(const json& call) {
  if (!call.is_object()) return fail(Errc::invalid_argument, "a call is a JSON object on one line");
  const std::string what = call.value("do", "");
  if (what == "figures") return figures();
  if (what == "limit") {
    pager_.set_local_limit(call.value("bytes", std::uint64_t{0}) / page_bytes);
    return json::object();
  }
  if (what == "own") return own(call);
  if (!network_.owns()) return fail(Errc::conflict, "\"{}\": this memory is not inherited yet", what);
  if (what == "used") return used(call);
  if (what == "servers") return servers(call);
  if (what == "drained") {
    YADO_TRY(network_.servers().drained(), "memory");
    return json::object();
  }
  if (what == "save" || what == "leave") {
    if (checkpoint_.under_way() || move_.under_way()) return fail(Errc::conflict, "a checkpoint or a move is under way");
    return what == "save" ? checkpoint_.save(call) : move_.leave(call);
  }
  if (move_.under_way()) return move_.answer(what, call);
  if (checkpoint_.under_way()) return checkpoint_.answer(what);
  return fail(Errc::conflict, "\"{}\": no checkpoint is under way on this connection", what);
}

Result<json> Client::servers(const json& call) {
  const json local_bytes = call.value("local_bytes", json());
  if (!local_bytes.is_number_unsigned()) return fail(Errc::invalid_argument, "servers: how many \"local_bytes\"?");
  YADO_ASSIGN(const auto wanted, servers_from_text(call.value("servers", json()).dump()), "servers");
  const auto set_limit = [&] { pager_.set_local_limit(local_bytes.get<std::uint64_t>() / page_bytes); };
  YADO_ASSIGN(const auto notes, network_.servers().change(wanted, set_limit), "memory");
  return json{{"notes", notes}};
}

Result<json> Client::used(const json& call) {
  const std::lock_guard lock(kept_.mutex);
  const auto cut = image::CutId::from_hex(call.value("cut", ""));
  if (cut.none() || cut != kept_.cut) return fail(Errc::conflict, "used: the last cut is another");
  const std::vector<PageNumber> order = pager_.used_since_cut();
  if (order.empty()) return fail(Errc::not_found, "used: no page, or the next checkpoint is under way");
  YADO_TRY(replace_order_of_use(call.value("into", ""), pager_.pages(), order), "used");
  return json{{"pages", order.size()}};
}

Result<json> Client::own(const json& call) {
  const json epoch = call.value("epoch", json());
  if (!epoch.is_number_unsigned()) return fail(Errc::invalid_argument, "own: under which \"epoch\"?");
  YADO_ASSIGN(const bool begins, network_.own(epoch.get<std::uint64_t>(), pager_), "own");
  if (begins) network_.start(pager_);
  return json::object();
}

}  // namespace yado::pager
