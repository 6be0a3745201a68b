#pragma once
// A client's calls that leave the memory to another main host: leave, round, left (service.hpp).

#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>

#include "pager/served_memory.hpp"

namespace yado::pager {

/// Destruction ends what was not left: the memory goes on as before.
class MoveCalls {
 public:
  /// `memory` outlives this.
  explicit MoveCalls(ServedMemory& memory);
  ~MoveCalls();

  bool under_way() const { return leaving_ != nullptr; }
  /// Begins one; nothing else is under way.
  Result<nlohmann::json> leave(const nlohmann::json& call);
  /// The calls of the one under way; after an error it is over.
  Result<nlohmann::json> answer(const std::string& what, const nlohmann::json& call);

 private:
  struct Leaving;
  Result<nlohmann::json> left(const std::filesystem::path& part);
  void leave_changes(const std::filesystem::path& part) const;

  Pager& pager_;
  Network& network_;
  KeptCut& kept_;
  // Of the one under way:
  std::string to_;
  std::unique_ptr<Leaving> leaving_;
};

}  // namespace yado::pager
