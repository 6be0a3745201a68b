#pragma once
// Log lines for operators, on stderr. What users and programs consume are events (docs/api.md), not these.
// Thread-safe. Nothing secret (specs' environment, image contents) may be logged.

#include <string_view>

#include <fmt/format.h>

namespace yado::log {

enum class Level { debug, info, warn, error, off };

/// `role` is printed in front of every line ("gate", "agent h2").
void start(std::string_view role, Level level);
void write(Level level, std::string_view line);
bool enabled(Level level);

template <class... Args>
void debug(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::debug)) write(Level::debug, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void info(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::info)) write(Level::info, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void warn(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::warn)) write(Level::warn, fmt::format(format, std::forward<Args>(args)...));
}
template <class... Args>
void error(fmt::format_string<Args...> format, Args&&... args) {
  if (enabled(Level::error)) write(Level::error, fmt::format(format, std::forward<Args>(args)...));
}

}  // namespace yado::log
