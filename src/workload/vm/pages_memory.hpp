#pragma once
// A guest's memory as a part of pages of an image (docs/formats/pages.md), all of it in one part.

#include <filesystem>

#include "workload/vm/memory_part.hpp"

namespace yado::vm {

class PagesMemory final : public MemoryPart {
 public:
  /// `part`: a directory that exists.
  explicit PagesMemory(std::filesystem::path part) : part_(std::move(part)) {}
  /// Holes and zero pages take no room. Error `no_space`; after an error nothing is left in the directory.
  Status save(const os::Fd& memory, std::uint64_t bytes) override;
  /// Every page is compared with its checksum. Errors `corrupt`, naming the page.
  Status load(const os::Fd& memory, std::uint64_t bytes) override;

 private:
  std::filesystem::path part_;
};

}  // namespace yado::vm
