#include "cli/memory_progress.hpp"

#include <chrono>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/table.hpp"

namespace yado::cli {

using nlohmann::json;

std::string describe_progress(const json& memory) {
  const std::string main_host = memory.value("host", "");
  std::string text;
  for (const json& share : memory.value("saving", json::array())) {
    const std::string host = share.value("host", "");
    const auto saved = share.value("saved_bytes", 0ull), left = share.value("left_bytes", 0ull);
    text += fmt::format("{} {} {} of {}", text.empty() ? "saving:" : ",", host.empty() ? main_host : host, format_bytes(saved), format_bytes(saved + left));
  }
  if (!text.empty()) return text;
  if (const auto left = memory.value("to_move_bytes", 0ull); left > 0) return fmt::format("moving: {} left on {}", format_bytes(left), main_host);
  // A checkpoint and a move begin when the hosts of the memory do not change any more.
  for (const json& server : memory.value("servers", json::array()))
    if (server.value("leaving", false) && server.value("alive", true))
      text += fmt::format("{} {} is empty: {} left", text.empty() ? "waiting until" : ", and until", server.value("host", ""), format_bytes(server.value("pages", 0ull) * 4096));
  return text;
}

/// What was said last; on a terminal it stands there still.
struct MemoryProgress::Line {
  const bool terminal = ::isatty(STDERR_FILENO) == 1;
  std::string shown;

  void show(const std::string& text) {
    if (text == shown) return;
    clear();
    if (!text.empty()) fmt::print(stderr, "{}{}", text, terminal ? "" : "\n");
    shown = text;
  }
  void clear() {
    if (!terminal || shown.empty()) return;
    fmt::print(stderr, "\r\x1b[K");
    shown.clear();
  }
};

MemoryProgress::MemoryProgress(Client& client, const std::string& workload) : line_(std::make_shared<Line>()) {
  const auto look = [line = std::weak_ptr(line_), first = true, pause = std::chrono::seconds(1)](const Result<json>& memory) mutable -> std::optional<nanoseconds> {
    const auto there = line.lock();
    if (!there) return std::nullopt;
    // The servers are asked by the first look.
    if (!std::exchange(first, false)) {
      there->show(memory ? describe_progress(*memory) : "");
      if (!there->terminal) pause *= 2;
    }
    return pause;
  };
  client.ask_meanwhile(fmt::format("/v1/workloads/{}/memory", workload), std::chrono::seconds(1), look);
}

MemoryProgress::~MemoryProgress() { line_->clear(); }

void MemoryProgress::print(std::string_view line) {
  line_->clear();
  fmt::print(stderr, "{}\n", line);
}

}  // namespace yado::cli
