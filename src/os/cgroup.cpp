#include "os/cgroup.hpp"

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <csignal>
#include <map>
#include <sstream>
#include <thread>

#include <poll.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/pidfd.hpp"

namespace yado::os {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t default_period_us = 100'000;  // of CPU limits, the kernel's
constexpr std::int64_t least_quota_us = 1000;         // the same

/// Where the hierarchies are mounted. The root of the mount is used, whatever group this process is in.
struct Hierarchies {
  std::map<std::string, fs::path> v1;  ///< controller -> mount point
  fs::path v2;                         ///< empty: not mounted
  bool v2_controllers = false;         ///< memory, cpu and pids are v2's
};

Result<Hierarchies> find_hierarchies() {
  YADO_ASSIGN(const std::string table, read_text("/proc/thread-self/mountinfo"), "find cgroups");
  Hierarchies found;
  std::istringstream lines(table);
  for (std::string line; std::getline(lines, line);) {
    const std::size_t dash = line.find(" - ");
    if (dash == std::string::npos) continue;
    std::istringstream before(line.substr(0, dash)), after(line.substr(dash + 3));
    std::string skip, root, point, type, source, options;
    before >> skip >> skip >> skip >> root >> point;
    after >> type >> source >> options;
    if (type == "cgroup2" && found.v2.empty()) found.v2 = point;
    if (type != "cgroup") continue;
    std::istringstream words(options);
    for (std::string word; std::getline(words, word, ',');) found.v1.try_emplace(word, point);
  }
  if (!found.v2.empty()) {
    const auto controllers = read_text(found.v2 / "cgroup.controllers");
    found.v2_controllers = controllers && controllers->find("memory") != std::string::npos;
  }
  return found;
}

std::uint64_t number_in(std::string_view text) {
  std::uint64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

/// The value of `key` in lines "key value".
std::uint64_t field_of(std::string_view text, std::string_view key) {
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = text.substr(at, end - at);
    if (line.starts_with(key) && line.size() > key.size() && line[key.size()] == ' ')
      return number_in(line.substr(key.size() + 1));
    at = end + 1;
  }
  return 0;
}

Status collect(const fs::path& directory, const char* file, std::vector<pid_t>& into) {
  const auto text = read_text(directory / file);
  if (!text) return text.error().code == Errc::not_found ? Status{} : Status(std::unexpected(text.error()));
  std::istringstream lines(*text);
  for (std::string line; std::getline(lines, line);)
    if (!line.empty()) into.push_back(static_cast<pid_t>(number_in(line)));
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored))
    if (entry.is_directory()) YADO_TRY(collect(entry.path(), file, into), "cgroup below");
  return {};
}

Status make_directory(const fs::path& path) {
  if (::mkdir(path.c_str(), 0755) != 0 && errno != EEXIST) return fail_errno(fmt::format("mkdir {}", path.native()));
  return {};
}

/// Makes `name` under `root`, switching the v2 controllers on for every level above it.
Status make_tree_once(const fs::path& root, const std::string& name, bool controllers) {
  fs::path at = root;
  for (const fs::path& part : fs::path(name)) {
    if (controllers) {
      // One at a time: a controller that is missing or cannot be delegated must not take the others with it; the
      // limit that needs it will say so by its own missing file.
      for (const char* controller : {"+cpu", "+memory", "+pids"})
        (void)write_kernel_file(at / "cgroup.subtree_control", controller);
    }
    at /= part;
    YADO_TRY(make_directory(at), "cgroup");
  }
  return {};
}

/// Repeated when a parent that had become empty was removed under its hands (Cgroup::remove of another process).
Status make_tree(const fs::path& root, const std::string& name, bool controllers) {
  constexpr int tries = 10;
  for (int i = 1;; ++i) {
    Status made = make_tree_once(root, name, controllers);
    if (made || made.error().code != Errc::not_found || i == tries) return made;
  }
}

}  // namespace

Cgroup::Cgroup(std::string name, bool own) : name_(std::move(name)), owned_(own) {}

Cgroup& Cgroup::operator=(Cgroup&& other) noexcept {
  if (this != &other) {
    if (owned_ && valid()) (void)remove();
    name_ = std::exchange(other.name_, {});
    owned_ = std::exchange(other.owned_, false);
    freezer_v2_ = other.freezer_v2_;
    freezer_only_ = other.freezer_only_;
    unified_ = other.unified_;
    freezer_ = std::move(other.freezer_);
    memory_ = std::move(other.memory_);
    cpu_ = std::move(other.cpu_);
    cpuacct_ = std::move(other.cpuacct_);
    pids_ = std::move(other.pids_);
  }
  return *this;
}

Cgroup::~Cgroup() {
  if (owned_ && valid()) (void)remove();
}

std::vector<fs::path> Cgroup::directories() const {
  std::vector<fs::path> all;
  for (const fs::path* path : {&freezer_, &memory_, &cpu_, &cpuacct_, &pids_})
    if (!path->empty() && std::find(all.begin(), all.end(), *path) == all.end()) all.push_back(*path);
  return all;
}

namespace {
bool has_freezer(const fs::path& group) { return ::access((group / "cgroup.freeze").c_str(), F_OK) == 0; }
}  // namespace

Result<Cgroup> Cgroup::create(const std::string& name) {
  YADO_ASSIGN(const Hierarchies found, find_hierarchies(), "cgroup");
  Cgroup group(name, false);
  group.unified_ = found.v2_controllers;
  if (!found.v2.empty()) {
    YADO_TRY(make_tree(found.v2, name, found.v2_controllers), "cgroup " + name);
    group.freezer_ = found.v2 / name;
    // cgroup.freeze came with Linux 5.2.
    group.freezer_v2_ = has_freezer(group.freezer_);
  }
  const auto place = [&](const char* controller, fs::path& path) -> Status {
    if (found.v2_controllers) {
      path = found.v2 / name;
      return {};
    }
    const auto mount = found.v1.find(controller);
    if (mount == found.v1.end()) return {};
    path = mount->second / name;
    return make_tree(mount->second, name, false);
  };
  YADO_TRY(place("memory", group.memory_), "cgroup");
  YADO_TRY(place("cpu", group.cpu_), "cgroup");
  YADO_TRY(place("cpuacct", group.cpuacct_), "cgroup");
  YADO_TRY(place("pids", group.pids_), "cgroup");
  if (!group.freezer_v2_) {
    if (found.v2_controllers) return fail(Errc::unsupported, "cgroup {}: this kernel's cgroup v2 has no freezer", name);
    YADO_TRY(place("freezer", group.freezer_), "cgroup");
    if (!found.v1.contains("freezer"))
      return fail(Errc::unsupported, "cgroup {}: neither a v2 tree nor the v1 freezer is mounted", name);
  }
  YADO_ASSIGN(const std::vector<pid_t> there, group.processes(), "cgroup");
  if (!there.empty())
    return fail(Errc::conflict, "cgroup {} already holds {} processes (of an earlier run?)", name, there.size());
  (void)group.thaw();
  group.owned_ = true;
  return group;
}

Result<Cgroup> Cgroup::open(const std::string& name) {
  YADO_ASSIGN(const Hierarchies found, find_hierarchies(), "cgroup");
  Cgroup group(name, false);
  group.unified_ = found.v2_controllers;
  const auto there = [&](const fs::path& root) { return !root.empty() && fs::exists(root / name); };
  if (there(found.v2)) {
    group.freezer_ = found.v2 / name;
    group.freezer_v2_ = has_freezer(group.freezer_);
  }
  const auto place = [&](const char* controller, fs::path& path) {
    if (found.v2_controllers) {
      if (there(found.v2)) path = found.v2 / name;
    } else if (const auto mount = found.v1.find(controller); mount != found.v1.end() && there(mount->second)) {
      path = mount->second / name;
    }
  };
  place("memory", group.memory_);
  place("cpu", group.cpu_);
  place("cpuacct", group.cpuacct_);
  place("pids", group.pids_);
  if (!group.freezer_v2_) place("freezer", group.freezer_);
  if (group.directories().empty()) return fail(Errc::not_found, "there is no cgroup {}", name);
  return group;
}

Status Cgroup::add(pid_t pid) const {
  for (const fs::path& directory : directories())
    YADO_TRY(write_kernel_file(directory / "cgroup.procs", fmt::format("{}", pid)), "cgroup " + name_);
  return {};
}

Status Cgroup::add_to_freezer(pid_t pid) const {
  return write_kernel_file(freezer_ / "cgroup.procs", fmt::format("{}", pid));
}

Status Cgroup::set(const fs::path& directory, const char* file, const std::string& value) const {
  if (directory.empty())
    return fail(Errc::unsupported, "cgroup {}: the controller of {} is not available on this machine", name_, file);
  return write_kernel_file(directory / file, value);
}

/// Quota -1: none.
Status Cgroup::set_cpus(std::int64_t quota_us, std::uint64_t period_us) const {
  if (unified_) return set(cpu_, "cpu.max", quota_us < 0 ? fmt::format("max {}", period_us) : fmt::format("{} {}", quota_us, period_us));
  YADO_TRY(set(cpu_, "cpu.cfs_period_us", fmt::format("{}", period_us)), "CPU limit");
  return set(cpu_, "cpu.cfs_quota_us", fmt::format("{}", quota_us));
}

Status Cgroup::limit(const CgroupLimits& limits) const {
  if (limits.memory_bytes != 0) {
    const std::string bytes = fmt::format("{}", limits.memory_bytes);
    YADO_TRY(set(memory_, unified_ ? "memory.max" : "memory.limit_in_bytes", bytes), "memory limit");
  }
  if (limits.cpus > 0) {
    const auto quota_us = std::max(least_quota_us, static_cast<std::int64_t>(limits.cpus * default_period_us));
    YADO_TRY(set_cpus(quota_us, default_period_us), "CPU limit");
  }
  if (limits.pids != 0) YADO_TRY(set(pids_, "pids.max", fmt::format("{}", limits.pids)), "limit of processes");
  return {};
}

Status Cgroup::limit_cpus(double cpus) const {
  if (cpus <= 0) return set_cpus(-1, default_period_us);
  constexpr double shortest_period_us = 10'000;
  const double period_us = std::clamp(static_cast<double>(least_quota_us) / cpus, shortest_period_us, double{default_period_us});
  const auto quota_us = std::max(least_quota_us, static_cast<std::int64_t>(cpus * period_us));
  return set_cpus(quota_us, static_cast<std::uint64_t>(period_us));
}

Result<CgroupUse> Cgroup::use() const {
  CgroupUse use;
  if (unified_) {
    YADO_ASSIGN(const std::string cpu, read_text(cpu_ / "cpu.stat"), "cgroup use");
    use.cpu = std::chrono::microseconds(field_of(cpu, "usage_usec"));
    if (const auto memory = read_text(memory_ / "memory.current")) use.memory_bytes = number_in(*memory);
    if (const auto events = read_text(memory_ / "memory.events")) use.memory_limit_kills = field_of(*events, "oom_kill");
    return use;
  }
  if (!cpuacct_.empty()) {
    YADO_ASSIGN(const std::string cpu, read_text(cpuacct_ / "cpuacct.usage"), "cgroup use");
    use.cpu = nanoseconds(number_in(cpu));
  }
  if (!memory_.empty()) {
    if (const auto memory = read_text(memory_ / "memory.usage_in_bytes")) use.memory_bytes = number_in(*memory);
    if (const auto control = read_text(memory_ / "memory.oom_control"))
      use.memory_limit_kills = field_of(*control, "oom_kill");
  }
  return use;
}

Result<std::vector<pid_t>> Cgroup::processes() const {
  std::vector<pid_t> all;
  for (const fs::path& directory : directories()) YADO_TRY(collect(directory, "cgroup.procs", all), "cgroup " + name_);
  std::sort(all.begin(), all.end());
  all.erase(std::unique(all.begin(), all.end()), all.end());
  return all;
}

Result<std::vector<pid_t>> Cgroup::threads() const {
  std::vector<pid_t> all;
  YADO_TRY(collect(freezer_, freezer_v2_ ? "cgroup.threads" : "tasks", all), "cgroup " + name_);
  return all;
}

Result<bool> Cgroup::frozen() const {
  if (freezer_v2_) {
    YADO_ASSIGN(const std::string events, read_text(freezer_ / "cgroup.events"), "freezer");
    return field_of(events, "frozen") == 1;
  }
  YADO_ASSIGN(const std::string state, read_text(freezer_ / "freezer.state"), "freezer");
  return state.starts_with("FROZEN");
}

Status Cgroup::freeze(nanoseconds limit) const {
  const Instant deadline = now() + limit;
  const auto late = [&] {
    return fail(Errc::timed_out, "cgroup {}: not every task stood still within {:.0f} ms", name_, to_ms(limit));
  };
  if (freezer_v2_) {
    // The events file tells of every change by POLLPRI, counted from when it was last read through this descriptor.
    YADO_ASSIGN(const Fd events, open_path(freezer_ / "cgroup.events", 0 /* O_RDONLY */), "freeze");
    YADO_TRY(write_kernel_file(freezer_ / "cgroup.freeze", "1"), "freeze");
    for (;;) {
      char buffer[256];
      const ssize_t n = ::pread(events.get(), buffer, sizeof buffer, 0);
      if (n < 0) return fail_errno("read cgroup.events");
      if (field_of(std::string_view(buffer, static_cast<std::size_t>(n)), "frozen") == 1) return {};
      YADO_ASSIGN(const bool changed, readable_within(events.get(), deadline - now(), POLLPRI), "freeze");
      if (!changed) return late();
    }
  }
  // v1 has no event, and a task that forks while FREEZING can hold it up until the state is written again.
  for (nanoseconds pause = 50us;; pause = std::min<nanoseconds>(pause * 2, 10ms)) {
    YADO_TRY(write_kernel_file(freezer_ / "freezer.state", "FROZEN"), "freeze");
    YADO_ASSIGN(const bool done, frozen(), "freeze");
    if (done) return {};
    if (now() >= deadline) return late();
    std::this_thread::sleep_for(pause);
  }
}

Status Cgroup::thaw() const {
  return freezer_v2_ ? write_kernel_file(freezer_ / "cgroup.freeze", "0")
                     : write_kernel_file(freezer_ / "freezer.state", "THAWED");
}

Result<Cgroup> Cgroup::freezer_child(const std::string& name) const {
  Cgroup child(name_ + "/" + name, false);
  child.freezer_ = freezer_ / name;
  child.freezer_v2_ = freezer_v2_;
  child.unified_ = unified_;
  child.freezer_only_ = true;
  YADO_TRY(make_directory(child.freezer_), "cgroup");
  child.owned_ = true;
  return child;
}

Status Cgroup::kill_all() const {
  YADO_CHECK(!freezer_only_, "kill_all on a part of a group");
  for (;;) {
    YADO_ASSIGN(const std::vector<pid_t> all, processes(), "kill");
    if (all.empty()) return {};
    std::vector<Pidfd> dying;
    for (const pid_t pid : all) {
      auto process = Pidfd::open(pid);
      if (!process) continue;
      (void)process->send(SIGKILL);
      dying.push_back(std::move(*process));
    }
    (void)thaw();  // under the v1 freezer a frozen process cannot die
    if (!freezer_.empty()) {
      std::error_code ignored;
      for (const auto& entry : fs::directory_iterator(freezer_, ignored))
        if (entry.is_directory())
          (void)write_kernel_file(entry.path() / (freezer_v2_ ? "cgroup.freeze" : "freezer.state"),
                                  freezer_v2_ ? "0" : "THAWED");
    }
    // A round per generation: what forked between the listing and the kill is in the next one.
    for (const Pidfd& process : dying) YADO_TRY(process.ended_within(std::nullopt), "kill");
  }
}

Status Cgroup::remove() {
  if (!freezer_only_) YADO_TRY(kill_all(), "remove cgroup " + name_);
  Status result;
  for (const fs::path& directory : directories()) {
    std::error_code ignored;
    for (const auto& entry : fs::directory_iterator(directory, ignored))
      if (entry.is_directory()) ::rmdir(entry.path().c_str());
    // The last exiting task may be off the list a moment before it lets go of the directory (EBUSY).
    const Instant deadline = now() + 2s;
    for (nanoseconds pause = 100us;; pause *= 2) {
      if (::rmdir(directory.c_str()) == 0 || errno == ENOENT) break;
      if (errno != EBUSY || now() > deadline) {
        result = fail_errno(fmt::format("rmdir {}", directory.native()));
        break;
      }
      std::this_thread::sleep_for(pause);
    }
    // Parents that hold nothing any more go with it; the kernel refuses for the others.
    fs::path parent = directory.parent_path();
    if (!freezer_only_)
      for (fs::path above = fs::path(name_).parent_path(); !above.empty(); above = above.parent_path()) {
        if (::rmdir(parent.c_str()) != 0) break;
        parent = parent.parent_path();
      }
  }
  if (result) release();
  return result;
}

void Cgroup::release() {
  owned_ = false;
  name_.clear();
}

}  // namespace yado::os
