#pragma once
// A client's calls that make a checkpoint: save, round, rest, copy, fix, finish, keep (service.hpp).

#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "os/fd.hpp"
#include "pager/served_memory.hpp"
#include "pager/split_save.hpp"

namespace yado::pager {

/// Destruction abandons what was not kept.
class CheckpointCalls {
 public:
  /// `socket`: the client's. While a round waits because of a limit, its end ends the checkpoint. Both outlive this.
  CheckpointCalls(const os::Fd& socket, ServedMemory& memory);
  ~CheckpointCalls();

  bool under_way() const { return saving_ != nullptr; }
  /// Begins one; nothing else is under way.
  Result<nlohmann::json> save(const nlohmann::json& call);
  /// The further calls of the one under way; after an error it is over.
  Result<nlohmann::json> answer(const std::string& what);

 private:
  struct Saving;
  Status begin(const nlohmann::json& call);
  Status wait_until(SavePace::Time then) const;
  Result<nlohmann::json> round(Pager::Hot hot);
  Result<nlohmann::json> copy();
  Result<nlohmann::json> finish();
  Result<std::vector<SplitSave::Share>> keep();
  nlohmann::json shares_json(const std::vector<SplitSave::Share>& shares) const;

  const os::Fd& socket_;
  const ServiceConfig& config_;
  Pager& pager_;
  Network& network_;
  std::shared_ptr<SaveWatch> watch_;
  KeptCut& kept_;
  // Of the one under way:
  image::CutId cut_, base_cut_;
  std::uint64_t limit_ = 0;  ///< of each host, in bytes per second; 0: none
  std::filesystem::path part_;
  std::unique_ptr<Saving> saving_;
};

}  // namespace yado::pager
