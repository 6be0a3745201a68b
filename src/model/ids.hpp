#pragma once
#include "base/id.hpp"

namespace yado {

using HostId = Name<struct HostTag>;          ///< "h1"
using WorkloadId = Name<struct WorkloadTag>;  ///< "site"
using InstanceId = Name<struct InstanceTag>;  ///< "site.7": the 7th incarnation of site
using ImageId = Name<struct ImageTag>;        ///< "site-img.3"

/// The number of the right to run a workload. It only grows; a call that carries an older one is refused.
///
/// The low 8 bits name who granted it (0 = control, 1.. = a gate that had to act while control was down), so that
/// two granters never give the same number to two owners.
class Epoch {
 public:
  constexpr Epoch() = default;
  constexpr explicit Epoch(std::uint64_t value) : value_(value) {}
  static constexpr Epoch make(std::uint64_t counter, std::uint8_t granter) { return Epoch(counter << 8 | granter); }

  constexpr std::uint64_t value() const { return value_; }
  constexpr std::uint64_t counter() const { return value_ >> 8; }
  constexpr std::uint8_t granter() const { return static_cast<std::uint8_t>(value_ & 0xff); }
  /// The smallest epoch of `granter` that is newer than this one.
  constexpr Epoch next(std::uint8_t granter = 0) const { return make(counter() + 1, granter); }
  constexpr auto operator<=>(const Epoch&) const = default;

 private:
  std::uint64_t value_ = 0;  ///< 0: never granted
};

}  // namespace yado

template <>
struct fmt::formatter<yado::Epoch> : fmt::formatter<std::string_view> {
  template <class Context>
  auto format(yado::Epoch epoch, Context& context) const {
    if (epoch.granter() == 0) return fmt::format_to(context.out(), "e{}", epoch.counter());
    return fmt::format_to(context.out(), "e{}g{}", epoch.counter(), epoch.granter());
  }
};
