#pragma once
// Numbers handed out in a circle, so that one that was given back rests as long as possible: peers may still hold
// connections to it.

#include <cstdint>
#include <optional>
#include <set>

namespace yado::agent {

class FreeList {
 public:
  /// first to last, both included.
  FreeList(std::uint32_t first, std::uint32_t last) : first_(first), last_(last), next_(first) {}

  /// Nothing when all are taken.
  std::optional<std::uint32_t> take() {
    for (std::uint32_t tried = 0; tried <= last_ - first_; ++tried) {
      const std::uint32_t number = next_;
      next_ = next_ == last_ ? first_ : next_ + 1;
      if (taken_.insert(number).second) return number;
    }
    return std::nullopt;
  }
  void mark_taken(std::uint32_t number) {
    if (number < first_ || number > last_) return;
    taken_.insert(number);
    next_ = number == last_ ? first_ : number + 1;
  }
  void give_back(std::uint32_t number) { taken_.erase(number); }

 private:
  std::uint32_t first_, last_, next_;
  std::set<std::uint32_t> taken_;
};

}  // namespace yado::agent
