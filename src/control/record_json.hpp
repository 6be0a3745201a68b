#pragma once
// Control's records as JSON: what the store keeps, one per workload. Missing keys keep their defaults, so that a newer
// control reads an older one's store.

#include <string>
#include <string_view>

#include "base/error.hpp"
#include "control/core/records.hpp"

namespace yado::control {

std::string dump_record(const Record& record);
/// `corrupt` when it is no record: the store was written by something else, or damaged.
Result<Record> parse_record(std::string_view text);

}  // namespace yado::control
