#include "memory_trace.hpp"

#include <cmath>
#include <nlohmann/json.hpp>

#include "api/answer.hpp"
#include "cli/table.hpp"
#include "os/clock.hpp"
#include "program.hpp"
#include "wire/client.hpp"
#include "wire/run.hpp"

namespace yado::bench {
using nlohmann::json;

namespace {

constexpr auto pace = 250ms;
constexpr auto look_limit = 1s;  ///< control itself would wait longer for a host that has just died
constexpr double page_mib = 4096.0 / (1 << 20);

struct Owner {
  std::string host;
  std::uint64_t epoch = 0;
  bool operator==(const Owner&) const = default;
};

/// GET, over control's socket.
class Control {
 public:
  explicit Control(const std::string& socket) : client_(wire::Client::unix_socket(io_, socket)) {}
  Result<json> get(const std::string& target) {
    wire::Request request;
    request.target = target;
    YADO_ASSIGN(const wire::Response answer, wire::run(io_, client_.call(std::move(request), look_limit)), target);
    return api::body_of(answer);
  }
  Result<Owner> owner_of(const std::string& workload) {
    YADO_ASSIGN(const json seen, get("/v1/workloads/" + workload), "owner");
    if (!seen["owner"].is_object()) return fail(Errc::conflict, "{} is {}", workload, seen.value("state", ""));
    return Owner{seen["owner"].value("host", ""), seen.value("epoch", std::uint64_t{0})};
  }

 private:
  boost::asio::io_context io_;
  wire::Client client_;
};

double seconds_since(Instant begin, Instant at) { return to_ms(at - begin) / 1000; }

}  // namespace

std::string describe(const MemorySample& sample) {
  std::string text;
  for (const auto& [host, bytes] : sample.bytes)
    text += fmt::format("{}{} {}", text.empty() ? "" : ", ", host, cli::format_bytes(bytes));
  return text;
}

MemoryTrace::MemoryTrace(std::string control_socket, std::string workload)
    : control_socket_(std::move(control_socket)), workload_(std::move(workload)), thread_([this] { run(); }) {}

MemoryTrace::~MemoryTrace() { (void)finish(); }

Result<MemorySample> MemoryTrace::look(const std::string& control_socket, const std::string& workload) {
  Control control(control_socket);
  YADO_ASSIGN(const Owner owner, control.owner_of(workload), "memory");
  YADO_ASSIGN(const json memory, control.get(fmt::format("/v1/workloads/{}/memory", workload)), "memory");
  MemorySample sample{.at = os::now(), .main_host = owner.host, .epoch = owner.epoch};
  YADO_ASSIGN(const Owner after, control.owner_of(workload), "memory");
  if (after != owner) return fail(Errc::conflict, "{} has moved meanwhile", workload);
  for (const json& server : memory.value("servers", json::array()))
    sample.bytes[server.value("host", "")] += server.value("pages", std::uint64_t{0}) * 4096;
  sample.bytes[owner.host] += memory.value("local_bytes", std::uint64_t{0});
  sample.faults = memory.value("faults", std::uint64_t{0});
  sample.paged_in = memory.value("paged_in", std::uint64_t{0});
  sample.paged_out = memory.value("paged_out", std::uint64_t{0});
  sample.fault_p50_us = memory.value("fault_p50_us", std::uint64_t{0});
  sample.fault_p99_us = memory.value("fault_p99_us", std::uint64_t{0});
  return sample;
}

void MemoryTrace::run() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const Instant next = os::now() + pace;
    lock.unlock();
    auto sample = look(control_socket_, workload_);
    lock.lock();
    if (sample) samples_.push_back(std::move(*sample));
    wake_.wait_for(lock, next - os::now(), [&] { return stopping_; });
  }
}

std::vector<MemorySample> MemoryTrace::finish() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
  const std::lock_guard lock(mutex_);
  return samples_;
}

json trace_json(const std::vector<MemorySample>& samples, const std::vector<Mark>& marks) {
  const Instant begin = samples.empty() ? Instant{} : samples.front().at;
  const auto second = [&](Instant at) { return std::round(seconds_since(begin, at) * 1000) / 1000; };
  json all_samples = json::array(), all_marks = json::array();
  for (const MemorySample& one : samples)
    all_samples.push_back({{"s", second(one.at)},
                           {"main_host", one.main_host},
                           {"epoch", one.epoch},
                           {"bytes", one.bytes},
                           {"faults", one.faults},
                           {"paged_in", one.paged_in},
                           {"paged_out", one.paged_out},
                           {"fault_p50_us", one.fault_p50_us},
                           {"fault_p99_us", one.fault_p99_us}});
  for (const Mark& mark : marks) all_marks.push_back({{"s", second(mark.at)}, {"kind", mark.kind}});
  return {{"samples", all_samples}, {"marks", all_marks}};
}

/// The script gets "trace" (seconds, MiB by host, then rates since the sample before: faults/s, MiB/s in, MiB/s out; a
/// blank line between two pagers) and "settings".
Status draw_trace(const std::filesystem::path& script, const std::filesystem::path& svg,
                  const std::vector<MemorySample>& samples, const std::vector<Mark>& marks,
                  const std::vector<std::string>& hosts, const std::string& title) {
  if (samples.empty()) return fail(Errc::invalid_argument, "nothing was seen: nothing to draw");
  const Instant begin = samples.front().at;
  std::string trace;
  for (std::size_t i = 0; i < samples.size(); ++i) {
    const MemorySample& now = samples[i];
    const bool first = i == 0 || samples[i - 1].epoch != now.epoch;
    if (first && i > 0) trace += "\n";
    trace += fmt::format("{:.3f}", seconds_since(begin, now.at));
    for (const std::string& host : hosts)
      trace +=
          fmt::format(" {:.3f}", now.bytes.contains(host) ? static_cast<double>(now.bytes.at(host)) / (1 << 20) : 0.0);
    const double passed = first ? 0 : seconds_since(samples[i - 1].at, now.at);
    const auto rate = [&](std::uint64_t MemorySample::*counter, double unit) {
      return first
                 ? std::string(" NaN")
                 : fmt::format(" {:.3f}", static_cast<double>(now.*counter - samples[i - 1].*counter) * unit / passed);
    };
    trace += rate(&MemorySample::faults, 1) + rate(&MemorySample::paged_in, page_mib) +
             rate(&MemorySample::paged_out, page_mib) + "\n";
  }
  std::string settings = fmt::format("machine = \"{}\"\nlast_s = {:.3f}\nhosts = {}\nmarks = {}\n", title,
                                     seconds_since(begin, samples.back().at), hosts.size(), marks.size());
  for (std::size_t i = 0; i < hosts.size(); ++i) settings += fmt::format("host_{} = '{}'\n", i, hosts[i]);
  for (std::size_t i = 0; i < marks.size(); ++i)
    settings +=
        fmt::format("mark_{} = {:.3f}\nkind_{} = '{}'\n", i, seconds_since(begin, marks[i].at), i, marks[i].kind);
  return run_gnuplot(script, svg, {{"trace", trace}, {"settings", settings}});
}

}  // namespace yado::bench
