#pragma once
// Deterministic mutations of corpus files: the same seed gives the same bytes on every machine and library.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.hpp"

namespace yado::fuzz {

/// The words of a file in libFuzzer's dictionary format: one `"word"` per line, with \\, \" and \xNN; # comments.
Result<std::vector<std::string>> parse_dictionary(std::string_view text);

class Mutator {
 public:
  /// `others`: the harness's corpus, to borrow pieces from; `dictionary`: words of the format.
  Mutator(std::uint64_t seed, const std::vector<std::string>& others, const std::vector<std::string>& dictionary)
      : state_(seed), others_(others), dictionary_(dictionary) {}

  /// `input` with one to five changes; at most `longest` bytes.
  std::string mutate(std::string input);

 private:
  std::uint64_t next();
  std::size_t below(std::size_t bound) { return bound == 0 ? 0 : static_cast<std::size_t>(next() % bound); }
  void change(std::string& text);
  void change_number(std::string& text);

  static constexpr std::size_t longest = 16 * 1024;
  std::uint64_t state_;
  const std::vector<std::string>& others_;
  const std::vector<std::string>& dictionary_;
};

}  // namespace yado::fuzz
