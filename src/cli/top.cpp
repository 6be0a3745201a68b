// yado top: where the memory of VMs is that several hosts keep, and how it moves.

#include <chrono>
#include <thread>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/table.hpp"
#include "os/clock.hpp"

namespace yado::cli {
namespace {

using nlohmann::json;

struct TopOptions {
  Common common;
  bool once = false;
  double interval = 1;  // seconds
};

/// What the pagers say, by workload, and when.
struct Look {
  Instant at;
  std::map<std::string, json> memory;
  std::map<std::string, std::string> hosts;
};

Result<Look> look(Client& client) {
  YADO_ASSIGN(const json all, client.call("GET", "/v1/workloads"), "workloads");
  Look seen{.at = os::now(), .memory = {}, .hosts = {}};
  for (const json& one : all["workloads"]) {
    const json& spec = one["spec"];
    if (!spec.contains("vm") || !spec["vm"].contains("split") || !one["owner"].is_object()) continue;
    const std::string name = one.value("name", "");
    auto memory = client.call("GET", fmt::format("/v1/workloads/{}/memory", name));
    if (!memory) continue;  // it moves, or has just ended
    seen.memory[name] = std::move(*memory);
    seen.hosts[name] = one["owner"].value("host", "");
  }
  return seen;
}

std::uint64_t number(const json& object, const char* key) { return object.value(key, std::uint64_t{0}); }

/// Per second since the look before; nothing to compare with: none.
std::string rate(const Look* before, const Look& now, const std::string& name, const char* key, bool bytes) {
  if (before == nullptr || !before->memory.contains(name)) return "";
  const std::uint64_t old = number(before->memory.at(name), key), is = number(now.memory.at(name), key);
  const double each = static_cast<double>(is - std::min(old, is)) / (to_ms(now.at - before->at) / 1000);
  return bytes ? format_bytes(static_cast<unsigned long long>(each * 4096)) : fmt::format("{:.0f}", each);
}

void show(const Look* before, const Look& now) {
  std::vector<std::vector<std::string>> rows{{"WORKLOAD", "HOST", "MEMORY", "HOT", "FAULTS/s", "IN/s", "OUT/s", "FAULT P50", "P99", "NOTE"}};
  for (const auto& [name, memory] : now.memory) {
    std::string note;
    if (number(memory, "waiting") > 0) note = fmt::format("{} faults wait for room", number(memory, "waiting"));
    if (number(memory, "over_limit") > 0) note = "the memory servers take no more pages";
    if (number(memory, "pages_without_redundancy") > 0) note = fmt::format("{} without redundancy", format_bytes(number(memory, "pages_without_redundancy") * 4096));
    rows.push_back({name, now.hosts.at(name), format_bytes(number(memory, "local_bytes")), format_bytes(number(memory, "hot_bytes")),
                    rate(before, now, name, "faults", false), rate(before, now, name, "paged_in", true), rate(before, now, name, "paged_out", true),
                    fmt::format("{} us", number(memory, "fault_p50_us")), fmt::format("{} us", number(memory, "fault_p99_us")), note});
    for (const json& server : memory.value("servers", json::array()))
      rows.push_back({"", server.value("host", ""), format_bytes(number(server, "pages") * 4096), "", "", "", "", "", "",
                      !server.value("alive", true) ? "dead" : server.value("leaving", false) ? "leaves" : ""});
  }
  fmt::print("{}", format_table(rows));
}

int top(const TopOptions& options) {
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  const bool terminal = ::isatty(STDOUT_FILENO) == 1;
  std::optional<Look> before;
  for (;;) {
    auto now = look(*client);
    if (!now) return complain(*client, now.error());
    if (options.common.json) {
      fmt::print("{}\n", json(now->memory).dump());
    } else if (now->memory.empty()) {
      fmt::print("no VM whose memory is split runs (`split` in a spec's [vm])\n");
    } else if (before || options.once) {
      if (terminal && !options.once) fmt::print("\x1b[H\x1b[2J");
      show(before ? &*before : nullptr, *now);
    }
    std::fflush(stdout);
    if (options.once || std::ferror(stdout) != 0) return Exit::ok;
    before = std::move(*now);
    std::this_thread::sleep_for(std::chrono::duration<double>(options.interval));
  }
}

}  // namespace

void add_top(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<TopOptions>();
  CLI::App* command = app.add_subcommand("top", "Show where the memory of VMs is that several hosts keep, and how it moves");
  command->add_flag("--once", options->once, "One look, without rates, and end");
  command->add_option("--interval", options->interval, "Seconds between two looks")->check(CLI::Range(0.1, 3600.0))->capture_default_str();
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return top(*options); });
}

}  // namespace yado::cli
