#pragma once
// Bytes as text for JSON: base64 with padding (RFC 4648, section 4).

#include <string>
#include <string_view>

#include "base/error.hpp"

namespace yado {

std::string to_base64(std::string_view bytes);
/// Error `corrupt` for anything else than whole groups of the alphabet.
Result<std::string> from_base64(std::string_view text);

}  // namespace yado
