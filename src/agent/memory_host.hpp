#pragma once
// This host as a keeper of other hosts' pages: its memory server, and the images that this makes of the shares it holds.

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "image/store.hpp"
#include "pager/image_archive.hpp"
#include "pager/memory_server.hpp"

namespace yado::agent {

/// Shares of split memories in the host's store: an image each, named <main image>.<this host>. Called on the memory
/// server's threads.
class MemoryArchive final : public pager::PageArchive {
 public:
  /// `added` is told of every image that came into being, `store` outlives this.
  MemoryArchive(const image::Store& store, std::function<void(image::Manifest)> added) : store_(store), added_(std::move(added)) {}

  Result<std::filesystem::path> begin(const std::string& session, const std::string& name, const std::string& base) override;
  Result<std::string> keep(const std::string& session, const std::string& name, const image::PageIndex& index) override;
  void abandon(const std::string& session, const std::string& name) override;
  Result<std::filesystem::path> open(const std::string& session, const std::string& name) override;

 private:
  const image::Store& store_;
  std::function<void(image::Manifest)> added_;
  std::mutex mutex_;
  struct Unfinished {
    image::Draft draft;
    std::string base;
  };
  std::map<std::string, Unfinished> drafts_;  // guarded by mutex_
};

/// Half of this machine's memory: what pagers of other hosts may have together when nobody says otherwise.
std::uint64_t memory_to_offer();

}  // namespace yado::agent
