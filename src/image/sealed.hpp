#pragma once
// Integers and lists of them as the page formats have them: little-endian, closed by the XXH3-128 of all bytes before.
// Internal to src/image.

#include <array>
#include <bit>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "base/check.hpp"
#include "base/error.hpp"

namespace yado::image {

static_assert(std::endian::native == std::endian::little, "lists of integers are copied as they lie in memory");

/// XXH3-128 in canonical form.
using Seal = std::array<std::uint8_t, 16>;
Seal seal_of(std::string_view bytes);

template <class T>
void append(std::string& bytes, std::span<const T> list) {
  static_assert(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>);
  bytes.append(reinterpret_cast<const char*>(list.data()), list.size_bytes());
}
template <class T>
void append(std::string& bytes, const T& one) {
  append(bytes, std::span<const T>(&one, 1));
}
inline void append_seal(std::string& bytes) { append(bytes, seal_of(bytes)); }
/// True when the last 16 bytes are the seal of those before.
bool sealed(std::string_view bytes);
/// A regular file, not behind a link, as long as the file system says it is.
Result<std::string> read_whole(const std::filesystem::path& path);
/// Makes the file, which must not exist, and makes it durable; not its directory. No file stays after an error.
Status write_new_file(const std::filesystem::path& path, std::string_view bytes);

/// Takes from the front; whoever uses it has compared the length before.
class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}

  template <class T>
  void take(std::span<T> list) {
    static_assert(std::is_trivially_copyable_v<T> && std::has_unique_object_representations_v<T>);
    YADO_CHECK(list.size_bytes() <= bytes_.size(), "{} of {} bytes", list.size_bytes(), bytes_.size());
    if (!list.empty()) std::memcpy(list.data(), bytes_.data(), list.size_bytes());
    bytes_.remove_prefix(list.size_bytes());
  }
  template <class T>
  T take() {
    T one;
    take(std::span<T>(&one, 1));
    return one;
  }

 private:
  std::string_view bytes_;
};

}  // namespace yado::image
