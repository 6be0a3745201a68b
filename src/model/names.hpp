#pragma once
// The words of the enumerations: one spelling for specs, JSON, tables and logs.

#include <optional>
#include <string_view>

#include "model/cluster.hpp"

namespace yado {

std::string_view name_of(Kind);
std::string_view name_of(Redundancy);
std::string_view name_of(StandbyLevel);
std::string_view name_of(Consistency);
std::string_view name_of(Way);
std::string_view name_of(InstanceState);
std::string_view name_of(Purpose);
std::string_view name_of(RouteState);
std::string_view name_of(Evidence);

/// The value of a word, or nothing: `from_name<Way>("image")`. Defined for every enumeration above.
template <class Enum>
std::optional<Enum> from_name(std::string_view name);

/// True when the evidence proves that the old instance is dead, so that nobody has to wait for its lease.
bool proves_death(Evidence);

}  // namespace yado
