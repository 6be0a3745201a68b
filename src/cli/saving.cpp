#include "cli/saving.hpp"

#include <chrono>
#include <unistd.h>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "cli/client.hpp"
#include "cli/table.hpp"

namespace yado::cli {

using nlohmann::json;

std::string describe_saving(const json& memory, const std::string& main_host) {
  std::string text;
  for (const json& share : memory.value("saving", json::array())) {
    const std::string host = share.value("host", "");
    const auto saved = share.value("saved_bytes", 0ull), left = share.value("left_bytes", 0ull);
    text += fmt::format("{} {} {} of {}", text.empty() ? "saving:" : ",", host.empty() ? main_host : host, format_bytes(saved), format_bytes(saved + left));
  }
  if (!text.empty()) return text;
  // A checkpoint begins when the hosts of the memory do not change any more.
  for (const json& server : memory.value("servers", json::array()))
    if (server.value("leaving", false) && server.value("alive", true))
      text += fmt::format("{} {} is empty: {} left", text.empty() ? "waiting until" : ", and until", server.value("host", ""), format_bytes(server.value("pages", 0ull) * 4096));
  return text;
}

SavingShown::SavingShown(std::string control, std::string workload)
    : terminal_(::isatty(STDERR_FILENO) == 1),
      thread_([this, control = std::move(control), workload = std::move(workload)](std::stop_token stop) { look(stop, control, workload); }) {}

SavingShown::~SavingShown() {
  thread_.request_stop();
  thread_.join();
  const std::lock_guard lock(mutex_);
  clear();
}

void SavingShown::look(std::stop_token stop, const std::string& control, const std::string& workload) {
  Client client(control);
  const auto known = client.call("GET", "/v1/workloads/" + workload);
  const std::string host = known && known->contains("owner") && (*known)["owner"].is_object() ? (*known)["owner"].value("host", "") : "";
  std::chrono::seconds pause{1};
  for (bool first = true;; first = false) {
    {
      std::unique_lock lock(mutex_);
      stopped_.wait_for(lock, stop, pause, [] { return false; });
    }
    if (stop.stop_requested()) return;
    const auto memory = client.call("GET", fmt::format("/v1/workloads/{}/memory", workload));
    if (first) continue;  // the servers were asked by that
    show(memory ? describe_saving(*memory, host) : "");
    if (!terminal_) pause *= 2;
  }
}

void SavingShown::show(const std::string& text) {
  const std::lock_guard lock(mutex_);
  if (text == shown_) return;
  clear();
  if (!text.empty()) fmt::print(stderr, "{}{}", text, terminal_ ? "" : "\n");
  shown_ = text;
}

void SavingShown::print(std::string_view line) {
  const std::lock_guard lock(mutex_);
  clear();
  fmt::print(stderr, "{}\n", line);
}

void SavingShown::clear() {
  if (!terminal_ || shown_.empty()) return;
  fmt::print(stderr, "\r\x1b[K");
  shown_.clear();
}

}  // namespace yado::cli
