#pragma once
// One image of a store from near, for people.

#include <cstdint>
#include <functional>
#include <string>

#include "base/error.hpp"
#include "image/store.hpp"

namespace yado::image {

/// A JSON object (docs/cli.md, "Images from near"), with what it is a delta of and what it has on other hosts. Reads manifests and
/// indices: milliseconds. What cannot be read says so inside.
std::string describe(const Store& store, const Held& held);

struct Verified {
  std::size_t images = 0;
  std::uint64_t bytes = 0;
};
/// Compares every checksum of the image, its members, and what they are deltas of, as far as they are here as images. `progress`: bytes so far, of all.
/// Errors: the first difference.
Result<Verified> verify_with_all(const Store& store, const Held& held, const std::function<void(std::uint64_t done, std::uint64_t of)>& progress = {});

}  // namespace yado::image
