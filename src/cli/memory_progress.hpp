#pragma once
// How far a checkpoint or a live move of a VM with split memory has come, while somebody waits for it.

#include <memory>
#include <string>
#include <string_view>

#include <nlohmann/json_fwd.hpp>

#include "cli/client.hpp"

namespace yado::cli {

/// "saving: h1 12 MiB of 96 MiB, h2 3 MiB of 40 MiB", "moving: 40 MiB left on h1" or "waiting until h3 is empty: 20 MiB left", of what
/// GET …/memory says; empty: nothing of these.
std::string describe_progress(const nlohmann::json& memory);

/// Says so on standard error when it takes longer than two seconds: on a terminal in one line, every second; else in lines of their own,
/// ever less often. Asks while `client` waits for something else.
class MemoryProgress {
 public:
  MemoryProgress(Client& client, const std::string& workload);
  ~MemoryProgress();
  MemoryProgress(const MemoryProgress&) = delete;
  MemoryProgress& operator=(const MemoryProgress&) = delete;

  /// A line of somebody else's on standard error.
  void print(std::string_view line);

 private:
  struct Line;
  std::shared_ptr<Line> line_;  ///< a question that is under way at the end knows by it that nobody wants its answer
};

}  // namespace yado::cli
