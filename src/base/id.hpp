#pragma once
// Strong names. A HostId is never taken for a WorkloadId; both print as their text.

#include <compare>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include <fmt/format.h>

namespace yado {

template <class Tag>
class Name {
 public:
  Name() = default;
  explicit Name(std::string text) : text_(std::move(text)) {}

  const std::string& str() const { return text_; }
  bool empty() const { return text_.empty(); }
  auto operator<=>(const Name&) const = default;

 private:
  std::string text_;
};

/// True for 1 to 63 characters of a-z, 0-9, '-' and '.', starting and ending with a letter or digit: what may
/// stand in a file name, a cgroup, a host name and a URL path alike (RFC 1123).
bool valid_name(std::string_view text);

}  // namespace yado

template <class Tag>
struct std::hash<yado::Name<Tag>> {
  std::size_t operator()(const yado::Name<Tag>& name) const { return std::hash<std::string>{}(name.str()); }
};

template <class Tag>
struct fmt::formatter<yado::Name<Tag>> : fmt::formatter<std::string_view> {
  template <class Context>
  auto format(const yado::Name<Tag>& name, Context& context) const {
    return fmt::formatter<std::string_view>::format(name.str(), context);
  }
};
