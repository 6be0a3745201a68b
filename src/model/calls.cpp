#include "model/calls.hpp"

#include <array>

namespace yado {

std::string_view name_of(const AgentCall& call) {
  static constexpr std::array<std::string_view, 12> names{"raise", "prepare", "build", "pull", "handover", "stop", "sleep", "drop-image", "inspect", "resplit", "expect", "merge"};
  static_assert(names.size() == std::variant_size_v<AgentCall>);
  return names[call.index()];
}

}  // namespace yado
