#pragma once
// The instance's log: bounded, one rotation, its end at hand for error messages.

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::supervisor {

class LogFile {
 public:
  /// Appends to what is there.
  static Result<LogFile> open(std::filesystem::path path, std::uint64_t bound_bytes);

  /// A full disk loses log lines, never the instance: errors are counted, not returned.
  void append(std::string_view text);
  /// The last `bytes` at most, from the start of a line.
  std::string tail(std::size_t bytes) const;
  const std::filesystem::path& path() const { return path_; }

 private:
  void rotate();
  std::filesystem::path path_;
  std::uint64_t bound_bytes_ = 0;
  std::uint64_t bytes_ = 0;
  os::Fd file_;
  std::string recent_;
};

}  // namespace yado::supervisor
