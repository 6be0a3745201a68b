#pragma once
// XXH3-128, the checksum of images: finds damage, proves no origin (docs/formats/image.md).

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::image {

class Checksum {
 public:
  Checksum();
  Checksum(Checksum&&) noexcept;
  Checksum& operator=(Checksum&&) noexcept;
  ~Checksum();

  void add(std::string_view data);
  /// With its length in front, so that ("ab", "c") and ("a", "bc") differ.
  void add_field(std::string_view field);
  void add_field(std::uint64_t number);
  /// 32 lower-case hex digits of all that was added so far.
  std::string hex() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

std::string checksum_of(std::string_view data);

struct FileSum {
  std::uint64_t bytes = 0;
  std::uint64_t data_bytes = 0;  ///< of which are no holes
  std::string xxh128;
};
/// Reads the data of the file in pieces (a mapping would end the process by SIGBUS when the file shrinks under it);
/// holes count as the zeros that they are, without being read.
Result<FileSum> checksum_of(const os::Fd& file);

}  // namespace yado::image
