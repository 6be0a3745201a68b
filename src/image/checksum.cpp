#include "image/checksum.hpp"

#include <fcntl.h>
#include <unistd.h>
#include <xxhash.h>

#include <array>
#include <cerrno>
#include <vector>

#include "base/check.hpp"
#include "base/units.hpp"

namespace yado::image {
namespace {

struct Free {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

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
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_SEQUENTIAL);
  ::posix_fadvise(file.get(), 0, 0, POSIX_FADV_WILLNEED);
  Checksum sum;
  std::vector<char> buffer(256_KiB);
  std::uint64_t offset = 0;
  for (;;) {
    const ssize_t got = ::pread(file.get(), buffer.data(), buffer.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("read");
    if (got == 0) return FileSum{offset, sum.hex()};
    sum.add({buffer.data(), static_cast<std::size_t>(got)});
    offset += static_cast<std::uint64_t>(got);
  }
}

}  // namespace yado::image
