#include "workload/container/thaw_order.hpp"

#include <csignal>
#include <map>
#include <set>
#include <thread>

#include "os/clock.hpp"
#include "os/file.hpp"

namespace yado::container {
namespace {

/// What the scheduler says of one thread: how often it went to sleep by itself, and whether it sleeps now.
struct Pulse {
  std::uint64_t slept = 0;
  bool sleeping = false;
};

std::optional<Pulse> pulse_of(pid_t thread) {
  const auto text = os::read_text(fmt::format("/proc/{}/status", thread));
  if (!text) return std::nullopt;  // it has ended
  Pulse pulse;
  if (const std::size_t at = text->find("State:"); at != std::string::npos) {
    const char state = (*text)[text->find_first_not_of(" \t", at + 6)];
    pulse.sleeping = state == 'S' || state == 'I' || state == 'Z' || state == 'T' || state == 't';
  }
  if (const std::size_t at = text->find("\nvoluntary_ctxt_switches:"); at != std::string::npos)
    pulse.slept = std::strtoull(text->c_str() + at + sizeof "\nvoluntary_ctxt_switches:" - 1, nullptr, 10);
  return pulse;
}

std::optional<pid_t> parent_of(pid_t process) {
  const auto text = os::read_text(fmt::format("/proc/{}/stat", process));
  if (!text) return std::nullopt;
  // "pid (name) state ppid …": the name may hold anything, so the last ')' counts.
  const std::size_t close = text->rfind(')');
  if (close == std::string::npos || close + 4 >= text->size()) return std::nullopt;
  return static_cast<pid_t>(std::strtol(text->c_str() + close + 4, nullptr, 10));
}

std::set<pid_t> parents_among(const std::vector<pid_t>& processes) {
  const std::set<pid_t> all(processes.begin(), processes.end());
  std::set<pid_t> parents;
  for (const pid_t process : processes)
    if (const auto parent = parent_of(process); parent && all.contains(*parent)) parents.insert(*parent);
  return parents;
}

/// Waits until every thread has gone back to sleep after the thaw. The kernel tells nobody, so it is looked at, soon
/// at first and ever more rarely.
void wait_until_settled(const std::map<pid_t, std::uint64_t>& before, nanoseconds limit) {
  const Instant started = os::now();
  std::map<pid_t, std::uint64_t> open = before;
  for (nanoseconds pause = 100us; !open.empty() && os::now() - started < limit; pause = std::min<nanoseconds>(pause * 3 / 2, 5ms)) {
    std::this_thread::sleep_for(pause);
    std::erase_if(open, [](const auto& one) {
      const auto pulse = pulse_of(one.first);
      return !pulse || (pulse->sleeping && pulse->slept > one.second);
    });
  }
}

std::map<pid_t, std::uint64_t> pulses_of(const std::vector<pid_t>& threads) {
  std::map<pid_t, std::uint64_t> all;
  for (const pid_t thread : threads)
    if (const auto pulse = pulse_of(thread)) all.emplace(thread, pulse->slept);
  return all;
}

/// How long somebody woken by the nudge may take to run: a busy machine's time slices.
constexpr nanoseconds nudge_limit = 20ms;
constexpr const char* parents_group = "parents";

}  // namespace

Status set_parents_apart(const os::Cgroup& group) {
  YADO_ASSIGN(const std::vector<pid_t> processes, group.processes(), "freeze");
  const std::set<pid_t> parents = parents_among(processes);
  YADO_ASSIGN(os::Cgroup apart, group.freezer_child(parents_group), "freeze");
  YADO_ASSIGN(const std::vector<pid_t> there, apart.processes(), "freeze");
  const std::set<pid_t> settled(there.begin(), there.end());
  const auto move = [&]() -> Status {
    for (const pid_t process : processes) {
      const bool wanted = parents.contains(process), is = settled.contains(process);
      if (wanted == is) continue;
      YADO_TRY(wanted ? apart.add_to_freezer(process) : group.add_to_freezer(process), "set parents apart");
    }
    return {};
  };
  Status moved = move();
  apart.release();  // it stays until the group goes
  return moved;
}

Status thaw_children_first(const os::Cgroup& group, nanoseconds limit, const std::function<void()>& nudge) {
  YADO_ASSIGN(os::Cgroup apart, group.freezer_child(parents_group), "thaw");
  YADO_ASSIGN(const std::vector<pid_t> parents, apart.threads(), "thaw");
  if (parents.empty()) {
    apart.release();
    return group.thaw();
  }
  // They stand still already, with the whole group: there is nothing to wait for.
  (void)apart.freeze(nanoseconds(0));
  YADO_ASSIGN(const std::vector<pid_t> threads, group.threads(), "thaw");
  std::map<pid_t, std::uint64_t> before = pulses_of(threads);
  for (const pid_t thread : parents) before.erase(thread);
  Status thawed = group.thaw();
  if (thawed) {
    wait_until_settled(before, limit);
    for (auto& [thread, slept] : before)
      if (const auto pulse = pulse_of(thread)) slept = pulse->slept;
    nudge();
    // Not everybody need be woken by it: what has not stirred by now does not wait at the port.
    wait_until_settled(before, nudge_limit);
  }
  Status released = apart.thaw();
  apart.release();
  return thawed ? released : thawed;
}

Status continue_children_first(const os::Cgroup& group, nanoseconds limit) {
  YADO_ASSIGN(const std::vector<pid_t> processes, group.processes(), "continue");
  const std::set<pid_t> parents = parents_among(processes);
  std::vector<pid_t> children;
  for (const pid_t process : processes)
    if (!parents.contains(process)) children.push_back(process);
  const std::map<pid_t, std::uint64_t> before = pulses_of(children);
  for (const pid_t process : children) ::kill(process, SIGCONT);
  if (!parents.empty()) wait_until_settled(before, limit);
  for (const pid_t process : parents) ::kill(process, SIGCONT);
  return {};
}

}  // namespace yado::container
