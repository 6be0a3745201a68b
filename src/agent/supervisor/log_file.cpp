#include "agent/supervisor/log_file.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os/file.hpp"

namespace yado::supervisor {
namespace {
constexpr std::size_t recent_bytes = 16 * 1024;
}

Result<LogFile> LogFile::open(std::filesystem::path path, std::uint64_t bound_bytes) {
  LogFile log;
  log.path_ = std::move(path);
  log.bound_bytes_ = bound_bytes;
  YADO_ASSIGN(log.file_, os::open_path(log.path_, O_WRONLY | O_CREAT | O_APPEND, 0600), "log");
  struct stat status {};
  if (::fstat(log.file_.get(), &status) == 0) log.bytes_ = static_cast<std::uint64_t>(status.st_size);
  return log;
}

void LogFile::append(std::string_view text) {
  recent_.append(text);
  if (recent_.size() > 2 * recent_bytes) recent_.erase(0, recent_.size() - recent_bytes);
  if (bytes_ != 0 && bytes_ + text.size() > bound_bytes_) rotate();
  if (os::write_all(file_, text)) bytes_ += text.size();
}

void LogFile::rotate() {
  const std::filesystem::path old = path_.native() + ".1";
  if (::rename(path_.c_str(), old.c_str()) != 0) return;
  if (auto fresh = os::open_path(path_, O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600)) file_ = std::move(*fresh);
  bytes_ = 0;
}

std::string LogFile::tail(std::size_t bytes) const {
  if (recent_.size() <= bytes) return recent_;
  std::string end = recent_.substr(recent_.size() - bytes);
  if (const std::size_t line = end.find('\n'); line != std::string::npos) end.erase(0, line + 1);
  return end;
}

}  // namespace yado::supervisor
