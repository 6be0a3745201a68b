#pragma once
// What a workload's spec must keep to, whoever wrote it: a TOML file (spec.hpp) or a JSON request. One list of rules.

#include <string>
#include <vector>

#include "base/error.hpp"
#include "model/workload.hpp"

namespace yado::spec {

struct Problem {
  std::string field;    ///< as in the spec file: "service.hosts[1]"
  std::string message;  ///< what is wrong and what is allowed
  bool operator==(const Problem&) const = default;
};

/// Everything that is wrong, in the order of docs/spec.md; empty when the spec may be admitted.
std::vector<Problem> problems_of(const WorkloadSpec& spec);

/// The same as one error (`invalid_argument`), one line per problem.
Status check(const WorkloadSpec& spec);

/// A workload's name is also the first part of its instances' and images' names ("site-img.12"), which have 63
/// characters like every name; this leaves them room.
inline constexpr std::size_t longest_workload_name = 40;

}  // namespace yado::spec
