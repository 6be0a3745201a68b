#pragma once
// How far a checkpoint has come, host by host, while somebody waits for it.

#include <condition_variable>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>

#include <nlohmann/json_fwd.hpp>

namespace yado::cli {

/// "saving: h1 12 MiB of 96 MiB, h2 3 MiB of 40 MiB", or "waiting until h3 is empty: 20 MiB left", of what GET …/memory says; empty: neither.
std::string describe_saving(const nlohmann::json& memory, const std::string& main_host);

/// Says so on standard error when it takes longer than two seconds: on a terminal in one line, every second; else in lines of their own,
/// ever less often. Asks control on a thread and a connection of its own, until destruction.
class SavingShown {
 public:
  SavingShown(std::string control, std::string workload);
  ~SavingShown();
  SavingShown(const SavingShown&) = delete;
  SavingShown& operator=(const SavingShown&) = delete;

  /// A line of somebody else's on standard error.
  void print(std::string_view line);

 private:
  void look(std::stop_token stop, const std::string& control, const std::string& workload);
  void show(const std::string& text);
  void clear();  // mutex_ is held

  const bool terminal_;
  std::mutex mutex_;
  std::condition_variable_any stopped_;  ///< with mutex_
  std::string shown_;                    // guarded by mutex_: what stands on the terminal's last line, or was said last
  std::jthread thread_;
};

}  // namespace yado::cli
