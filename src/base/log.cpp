#include "base/log.hpp"

#include <memory>

#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

namespace yado::log {
namespace {

spdlog::level::level_enum spd_level(Level level) {
  switch (level) {
    case Level::debug: return spdlog::level::debug;
    case Level::info: return spdlog::level::info;
    case Level::warn: return spdlog::level::warn;
    case Level::error: return spdlog::level::err;
    case Level::off: return spdlog::level::off;
  }
  return spdlog::level::info;
}

spdlog::logger& logger() {
  static auto instance = [] {
    auto made = std::make_shared<spdlog::logger>("yado", std::make_shared<spdlog::sinks::stderr_sink_mt>());
    made->set_level(spdlog::level::warn);
    return made;
  }();
  return *instance;
}

}  // namespace

void start(std::string_view role, Level level) {
  logger().set_pattern(fmt::format("%H:%M:%S.%e {} %l %v", role));
  logger().set_level(spd_level(level));
}

void write(Level level, std::string_view line) { logger().log(spd_level(level), line); }

bool enabled(Level level) { return logger().should_log(spd_level(level)); }

}  // namespace yado::log
