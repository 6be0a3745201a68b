#pragma once
// For tests only, and only as root: guests that tools/make-guest made, below $YADO_GUESTS.

#include <cstdlib>
#include <filesystem>
#include <map>
#include <sstream>
#include <string>

#include <unistd.h>

#include "base/units.hpp"
#include "image/temporary_directory.hpp"
#include "workload/vm/vm.hpp"

namespace yado::vm::testing {

inline constexpr nanoseconds hang = 120s;  ///< keeps a broken test from hanging; never what a test asserts

/// The directory of a guest; empty: not made.
inline std::filesystem::path guest(const std::string& name) {
  const char* guests = std::getenv("YADO_GUESTS");
  if (guests == nullptr) return {};
  const auto found = std::filesystem::path(guests) / name;
  return ::access((found / "kernel").c_str(), R_OK) == 0 ? found : std::filesystem::path();
}

/// Why these tests cannot run here; empty: they can.
inline std::string why_not() {
  if (::geteuid() != 0) return "needs root: cgroups and taps";
  if (::access(Qemu().system.c_str(), X_OK) != 0) return "needs " + Qemu().system.native() + " (package qemu-system-x86)";
  if (::access(Qemu().image_tool.c_str(), X_OK) != 0) return "needs " + Qemu().image_tool.native() + " (package qemu-utils)";
  if (guest("verify").empty()) return "needs the guest `verify`: tools/make-guest verify $YADO_GUESTS/verify, and YADO_GUESTS in the environment";
  return {};
}

/// Always TCG: what tests show must not depend on where they run.
inline Qemu qemu() { return {.accelerator = {Accelerator::tcg, "chosen by the test"}, .limit = hang}; }

/// The verifying guest with `pattern` MiB under its eyes.
inline VmSpec verifier(std::uint64_t memory = 128_MiB, unsigned pattern_mib = 32) {
  VmSpec spec;
  spec.name = "verify";
  spec.kernel = guest("verify") / "kernel";
  spec.initramfs = guest("verify") / "initramfs";
  spec.kernel_command_line = fmt::format("console=ttyS0 quiet verify.mib={}", pattern_mib);
  spec.memory_bytes = memory;
  return spec;
}

/// "GUEST verified pages=8192 bad_words=0 …" -> {"pages": "8192", "bad_words": "0", …}
inline std::map<std::string, std::string> values_of(const std::string& line) {
  std::map<std::string, std::string> values;
  std::istringstream words(line);
  for (std::string word; words >> word;)
    if (const std::size_t equals = word.find('='); equals != std::string::npos) values[word.substr(0, equals)] = word.substr(equals + 1);
  return values;
}

/// Has the guest check every word it has.
inline Result<std::map<std::string, std::string>> verify(Vm& vm) {
  YADO_TRY(vm.console().send("v"), "verify");
  YADO_ASSIGN(const std::string line, vm.console().wait_for("GUEST verified", hang), "verify");
  return values_of(line);
}

inline bool flawless(const std::map<std::string, std::string>& values) {
  return values.at("bad_words") == "0" && values.at("stale_pages") == "0" && values.at("lost_counts") == "0" && values.at("disk") != "differs";
}

}  // namespace yado::vm::testing
