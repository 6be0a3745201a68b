#include "model/names.hpp"

#include <array>
#include <utility>

#include "base/check.hpp"

namespace yado {
namespace {

template <class Enum>
struct Words;  // `list`: every value with its word

#define YADO_WORDS(Enum, ...)                                                          \
  template <>                                                                          \
  struct Words<Enum> {                                                                 \
    static constexpr auto list = std::to_array<std::pair<Enum, std::string_view>>({__VA_ARGS__}); \
  };

YADO_WORDS(Kind, {Kind::container, "container"}, {Kind::vm, "vm"})
YADO_WORDS(Redundancy, {Redundancy::none, "none"}, {Redundancy::replica, "replica"}, {Redundancy::parity, "parity"})
YADO_WORDS(StandbyLevel, {StandbyLevel::cold, "cold"}, {StandbyLevel::image, "image"}, {StandbyLevel::frozen, "frozen"})
YADO_WORDS(Consistency, {Consistency::shared, "shared"}, {Consistency::exclusive, "exclusive"})
YADO_WORDS(Way, {Way::cold, "cold"}, {Way::image, "image"}, {Way::frozen, "frozen"})
YADO_WORDS(InstanceState, {InstanceState::starting, "starting"}, {InstanceState::running, "running"},
           {InstanceState::frozen, "frozen"}, {InstanceState::exited, "exited"})
YADO_WORDS(Purpose, {Purpose::owner, "owner"}, {Purpose::standby, "standby"}, {Purpose::builder, "builder"})
YADO_WORDS(RouteState, {RouteState::asleep, "asleep"}, {RouteState::raising, "raising"}, {RouteState::up, "up"},
           {RouteState::stopped, "stopped"})
YADO_WORDS(Evidence, {Evidence::asleep, "asleep"}, {Evidence::refused, "refused"}, {Evidence::exited, "exited"},
           {Evidence::silent, "silent"}, {Evidence::unresponsive, "unresponsive"}, {Evidence::requested, "requested"})

template <class Enum>
std::string_view word(Enum value) {
  for (const auto& [candidate, name] : Words<Enum>::list)
    if (candidate == value) return name;
  YADO_CHECK(false, "enumeration value {} has no word", static_cast<int>(value));
}

template <class Enum>
std::optional<Enum> value_of(std::string_view name) {
  for (const auto& [value, candidate] : Words<Enum>::list)
    if (candidate == name) return value;
  return std::nullopt;
}

}  // namespace

#define YADO_DEFINE(Enum)                              \
  std::string_view name_of(Enum value) { return word(value); } \
  template <>                                          \
  std::optional<Enum> from_name<Enum>(std::string_view name) { return value_of<Enum>(name); }

YADO_DEFINE(Kind)
YADO_DEFINE(Redundancy)
YADO_DEFINE(StandbyLevel)
YADO_DEFINE(Consistency)
YADO_DEFINE(Way)
YADO_DEFINE(InstanceState)
YADO_DEFINE(Purpose)
YADO_DEFINE(RouteState)
YADO_DEFINE(Evidence)

bool proves_death(Evidence evidence) {
  // Only a supervisor's report does. A refused connection proves that nobody listens, not that the old processes have
  // stopped writing; and what was told to sleep may not have heard it.
  return evidence == Evidence::exited;
}

}  // namespace yado
