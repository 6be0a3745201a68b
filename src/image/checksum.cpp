#include "image/checksum.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <span>
#include <vector>

#include "base/check.hpp"
#include "base/units.hpp"
#include "image/extents.hpp"
#include "image/file_io.hpp"
#include "image/pass.hpp"

namespace yado::image {
namespace {

struct Free {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

void add_zeros(Checksum& sum, std::uint64_t bytes) {
  static constexpr std::array<char, 64_KiB> zeros{};
  for (; bytes > 0; bytes -= std::min<std::uint64_t>(bytes, zeros.size()))
    sum.add({zeros.data(), std::min<std::uint64_t>(bytes, zeros.size())});
}

}  // namespace

struct Checksum::State {
  std::unique_ptr<XXH3_state_t, Free> xxh{XXH3_createState()};  // XXH3 wants 64-byte alignment: its own allocator
};

Checksum::Checksum() : state_(std::make_unique<State>()) {
  YADO_CHECK(state_->xxh && XXH3_128bits_reset(state_->xxh.get()) == XXH_OK, "no memory for a checksum");
}
Checksum::Checksum(Checksum&&) noexcept = default;
Checksum& Checksum::operator=(Checksum&&) noexcept = default;
Checksum::~Checksum() = default;

void Checksum::add(std::string_view data) { XXH3_128bits_update(state_->xxh.get(), data.data(), data.size()); }

void Checksum::add_field(std::string_view field) {
  add_field(field.size());
  add(field);
}

// Little-endian by hand: the same on every machine.
void Checksum::add_field(std::uint64_t number) {
  std::array<char, 8> bytes;
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(number >> (8 * i));
  add({bytes.data(), bytes.size()});
}

std::string Checksum::hex() const {
  const XXH128_hash_t hash = XXH3_128bits_digest(state_->xxh.get());
  return fmt::format("{:016x}{:016x}", hash.high64, hash.low64);
}

std::string checksum_of(std::string_view data) {
  Checksum sum;
  sum.add(data);
  return sum.hex();
}

Result<FileSum> checksum_of(const os::Fd& file) {
  struct stat status {};
  if (::fstat(file.get(), &status) != 0) return fail_errno("stat");
  const auto bytes = static_cast<std::uint64_t>(status.st_size);
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  Checksum sum;
  FileSum result{.bytes = bytes};
  std::vector<char> buffer(256_KiB);
  for (std::uint64_t at = 0; at < bytes;) {
    YADO_TAKE(const Extent data, next_data(file, at, bytes));
    add_zeros(sum, data.first - at);
    ::posix_fadvise(file.get(), static_cast<off_t>(data.first), static_cast<off_t>(data.bytes()), POSIX_FADV_WILLNEED);
    for (at = data.first; at < data.end;) {
      const std::span wanted = std::span(buffer).first(std::min<std::uint64_t>(buffer.size(), data.end - at));
      YADO_TAKE(const std::size_t got, read_at(file, std::as_writable_bytes(wanted), at));
      sum.add({buffer.data(), got});
      at += got;
      result.data_bytes += got;
      if (got == wanted.size()) continue;
      result.bytes = at;  // it became shorter: whoever asked compares lengths
      result.xxh128 = sum.hex();
      return result;
    }
  }
  result.xxh128 = sum.hex();
  return result;
}

}  // namespace yado::image
