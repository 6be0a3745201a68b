#include "workload/container/thaw_order.hpp"

#include <algorithm>
#include <csignal>
#include <optional>
#include <set>
#include <thread>

#include "os/clock.hpp"
#include "os/file.hpp"

namespace yado::container {
namespace {

/// True when the thread sleeps, or is no more. Whoever was woken by a thaw, a signal or a connection is runnable by
/// the time that call returned: so "all sleep again" means "all have run".
bool sleeps(pid_t thread) {
  const auto text = os::read_text(fmt::format("/proc/{}/stat", thread));
  if (!text) return true;
  const std::size_t close = text->rfind(')');
  return close == std::string::npos || close + 2 >= text->size() || (*text)[close + 2] != 'R';
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

/// Waits until every thread has gone back to sleep. The kernel tells nobody, so it is looked at, soon at first and
/// ever more rarely.
void wait_until_asleep(std::vector<pid_t> threads, Instant deadline) {
  for (nanoseconds pause = 50us;; pause = std::min<nanoseconds>(pause * 3 / 2, 5ms)) {
    std::erase_if(threads, sleeps);
    if (threads.empty() || os::now() >= deadline) return;
    std::this_thread::sleep_for(pause);
  }
}

/// A server with more workers than this gets some of them replaced by their parent.
constexpr std::size_t most_nudges = 64;
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

Status thaw_children_first(const os::Cgroup& group, const ThawSteps& steps) {
  YADO_ASSIGN(os::Cgroup apart, group.freezer_child(parents_group), "thaw");
  YADO_ASSIGN(const std::vector<pid_t> parents, apart.threads(), "thaw");
  if (parents.empty()) {
    apart.release();
    YADO_TRY(group.thaw(), "thaw");
    steps.running();
    return {};
  }
  // They stand still already, with the whole group: there is nothing to wait for.
  (void)apart.freeze(nanoseconds(0));
  const std::set<pid_t> held(parents.begin(), parents.end());
  YADO_ASSIGN(std::vector<pid_t> children, group.threads(), "thaw");
  std::erase_if(children, [&](pid_t thread) { return held.contains(thread); });
  // One per child process; threads are told apart from processes by the list of the latter.
  YADO_ASSIGN(const std::vector<pid_t> processes, group.processes(), "thaw");
  const auto nudges = std::min<std::size_t>(most_nudges, static_cast<std::size_t>(std::ranges::count_if(
      processes, [&](pid_t process) { return !held.contains(process); })));
  Status thawed = group.thaw();
  if (thawed) {
    steps.running();
    const Instant deadline = os::now() + steps.limit;
    wait_until_asleep(children, deadline);
    for (std::size_t i = 0; i < nudges && os::now() < deadline; ++i) {
      steps.nudge();
      wait_until_asleep(children, deadline);
    }
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
  for (const pid_t process : children) ::kill(process, SIGCONT);
  if (!parents.empty()) wait_until_asleep(children, os::now() + limit);
  for (const pid_t process : parents) ::kill(process, SIGCONT);
  return {};
}

}  // namespace yado::container
