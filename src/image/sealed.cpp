#include "image/sealed.hpp"

#include <xxhash.h>

namespace yado::image {

Seal seal_of(std::string_view bytes) {
  XXH128_canonical_t canonical;
  XXH128_canonicalFromHash(&canonical, XXH3_128bits(bytes.data(), bytes.size()));
  Seal seal;
  std::memcpy(seal.data(), canonical.digest, seal.size());
  return seal;
}

bool sealed(std::string_view bytes) {
  constexpr std::size_t seal_bytes = sizeof(Seal);
  if (bytes.size() < seal_bytes) return false;
  const Seal seal = seal_of(bytes.substr(0, bytes.size() - seal_bytes));
  return std::memcmp(seal.data(), bytes.data() + bytes.size() - seal_bytes, seal_bytes) == 0;
}

}  // namespace yado::image
