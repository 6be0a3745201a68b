#pragma once
// The touching program (bench/guest/touch.c) and where its memory is: paged by our pager, or limited by a control group, so that
// the kernel swaps it.

#include <map>
#include <string>

#include "os/cgroup.hpp"
#include "os/process.hpp"
#include "workload/vm/paging.hpp"

namespace yado::bench {

class TouchProgram {
 public:
  /// In `cgroup` (relative to the root of every hierarchy). With a pager, which outlives this object, its memory is paged. It dies
  /// with the calling thread.
  static Result<TouchProgram> start(std::uint64_t memory_bytes, const std::string& cgroup, vm::PagerProcess* pager);
  TouchProgram(TouchProgram&&) noexcept = default;
  ~TouchProgram();

  /// What it has so far, and this much of its memory, fit; the kernel swaps the rest. Before the memory is filled.
  Status limit(std::uint64_t local_bytes) const;
  using Answer = std::map<std::string, double>;
  /// touch.c says what. `corrupt` when it found a wrong word.
  Result<Answer> ask(const std::string& command);

 private:
  TouchProgram() = default;
  Result<Answer> answer();
  std::uint64_t memory_bytes_ = 0;
  os::Fd memory_, in_, out_;
  os::Cgroup cgroup_;
  os::Process process_;
};

}  // namespace yado::bench
