#include "workload/container/thaw_order.hpp"

#include <map>
#include <set>
#include <thread>

#include "base/log.hpp"
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

}  // namespace

Status thaw_children_first(const os::Cgroup& group, nanoseconds limit) {
  YADO_ASSIGN(const std::vector<pid_t> processes, group.processes(), "thaw");
  const std::set<pid_t> parents = parents_among(processes);
  if (parents.empty()) return group.thaw();

  YADO_ASSIGN(os::Cgroup held, group.freezer_child("parents"), "thaw");
  // Nothing is in it yet: there is nothing whose standstill could be confirmed.
  (void)held.freeze(nanoseconds(0));
  for (const pid_t parent : parents) YADO_TRY(held.add_to_freezer(parent), "hold a parent");

  std::map<pid_t, std::uint64_t> before;
  YADO_ASSIGN(const std::vector<pid_t> threads, group.threads(), "thaw");
  YADO_ASSIGN(const std::vector<pid_t> held_threads, held.threads(), "thaw");
  for (const pid_t thread : threads)
    if (const auto pulse = pulse_of(thread)) before.emplace(thread, pulse->slept);
  for (const pid_t thread : held_threads) before.erase(thread);

  Status thawed = group.thaw();
  if (thawed) wait_until_settled(before, limit);
  (void)held.thaw();
  // Back into the group, so that the next freeze is one step again. One that ended meanwhile is no failure.
  YADO_ASSIGN(const std::vector<pid_t> moved, held.processes(), "thaw");
  for (const pid_t parent : moved)
    if (auto back = group.add_to_freezer(parent); !back) log::debug("after a thaw: {}", back.error().text());
  return thawed;
}

}  // namespace yado::container
