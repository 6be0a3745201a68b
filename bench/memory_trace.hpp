#pragma once
// Where the memory of a VM is that several hosts keep, looked at four times a second, and a picture of it.

#include <condition_variable>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"

namespace yado::bench {

/// What its pager said at one moment. Counters begin anew with every epoch: another pager.
struct MemorySample {
  Instant at;
  std::string main_host;
  std::uint64_t epoch = 0;
  std::map<std::string, std::uint64_t> bytes;             ///< by host, the main host among them
  std::uint64_t faults = 0, paged_in = 0, paged_out = 0;  ///< faults of any kind; pages
  std::uint64_t fault_p50_us = 0, fault_p99_us = 0;       ///< of the newest faults
};
/// "h1 95 MiB, h2 41 MiB, h3 37 MiB".
std::string describe(const MemorySample& sample);

/// Something that happened, for the picture.
struct Mark {
  Instant at;
  std::string kind;  ///< checkpoint, fault, recovered, restored
};

/// Looks on a thread of its own until it is destroyed or finished. While nobody owns the VM, there are no samples.
class MemoryTrace {
 public:
  MemoryTrace(std::string control_socket, std::string workload);
  ~MemoryTrace();
  MemoryTrace(const MemoryTrace&) = delete;

  /// One look, now; an error when nobody has answered within a second: the host may just have died.
  static Result<MemorySample> look(const std::string& control_socket, const std::string& workload);
  std::vector<MemorySample> finish();

 private:
  void run();

  const std::string control_socket_, workload_;
  std::mutex mutex_;
  std::condition_variable wake_;
  bool stopping_ = false;              // guarded by mutex_
  std::vector<MemorySample> samples_;  // guarded by mutex_
  std::thread thread_;
};

/// Seconds count from the first sample.
nlohmann::json trace_json(const std::vector<MemorySample>& samples, const std::vector<Mark>& marks);
Status draw_trace(const std::filesystem::path& script, const std::filesystem::path& svg,
                  const std::vector<MemorySample>& samples, const std::vector<Mark>& marks,
                  const std::vector<std::string>& hosts, const std::string& title);

}  // namespace yado::bench
