#include "fuzz/mutator.hpp"

#include <algorithm>
#include <array>

namespace yado::fuzz {
namespace {

using namespace std::string_view_literals;

constexpr std::string_view bytes = "\0\t\n\r \"#'(),-./0:;=[\\]_{}\x7f\x80\xc3\xed\xf4\xff"sv;
// Where types end: one too many of everything.
constexpr std::array<std::string_view, 16> numbers{"0",
                                                   "-1",
                                                   "1e999",
                                                   "127",
                                                   "255",
                                                   "256",
                                                   "65535",
                                                   "65536",
                                                   "2147483648",
                                                   "4294967296",
                                                   "9223372036854775807",
                                                   "9223372036854775808",
                                                   "18446744073709551615",
                                                   "18446744073709551616",
                                                   "99999999999999999999999999",
                                                   "0.5"};

bool digit(char c) { return c >= '0' && c <= '9'; }

int hex(char c) {
  if (digit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

Result<std::vector<std::string>> parse_dictionary(std::string_view text) {
  std::vector<std::string> words;
  for (int line_number = 1; !text.empty(); ++line_number) {
    const std::string_view line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.empty() || line.front() == '#') continue;
    if (line.size() < 3 || line.front() != '"' || line.back() != '"')
      return fail(Errc::invalid_argument, "line {}: not a word in quotes", line_number);
    std::string word;
    for (std::size_t i = 1; i + 1 < line.size(); ++i) {
      if (line[i] != '\\') {
        word += line[i];
      } else if (i + 2 < line.size() && (line[i + 1] == '\\' || line[i + 1] == '"')) {
        word += line[++i];
      } else if (i + 4 < line.size() && line[i + 1] == 'x' && hex(line[i + 2]) >= 0 && hex(line[i + 3]) >= 0) {
        word += static_cast<char>(hex(line[i + 2]) * 16 + hex(line[i + 3]));
        i += 3;
      } else {
        return fail(Errc::invalid_argument, "line {}: an escape that libFuzzer does not know", line_number);
      }
    }
    words.push_back(std::move(word));
  }
  return words;
}

/// splitmix64 (Steele, Lea, Flood 2014): short, and the same everywhere.
std::uint64_t Mutator::next() {
  std::uint64_t z = state_ += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

std::string Mutator::mutate(std::string input) {
  for (std::size_t changes = 1 + below(5); changes > 0; --changes) change(input);
  input.resize(std::min(input.size(), longest));
  return input;
}

void Mutator::change(std::string& text) {
  const std::size_t at = below(text.size() + 1);
  const std::size_t rest = text.size() - at;
  const std::size_t few = std::min(rest, 1 + below(16));
  switch (below(10)) {
    case 0:
      if (rest > 0) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
      break;
    case 1:
      if (rest > 0) text[at] = bytes[below(bytes.size())];
      break;
    case 2:
      text.insert(at, 1, bytes[below(bytes.size())]);
      break;
    case 3:
      text.erase(at, few);
      break;
    case 4:
      text.insert(at, text.substr(below(text.size() + 1), 1 + below(64)));
      break;
    case 5:
      text.resize(at);
      break;
    case 6:
      change_number(text);
      break;
    case 7:
      if (const std::string& other = others_[below(others_.size())]; !other.empty())
        text.insert(at, other.substr(below(other.size()), 1 + below(128)));
      break;
    case 8:
      if (!dictionary_.empty()) text.insert(at, dictionary_[below(dictionary_.size())]);
      break;
    case 9:
      if (!dictionary_.empty()) text.replace(at, few, dictionary_[below(dictionary_.size())]);
      break;
  }
}

/// Another value for one of the numbers in the text.
void Mutator::change_number(std::string& text) {
  const auto begin =
      std::find_if(text.begin() + static_cast<std::ptrdiff_t>(below(text.size() + 1)), text.end(), digit);
  const auto end = std::find_if_not(begin, text.end(), digit);
  if (begin != end) text.replace(begin, end, numbers[below(numbers.size())]);
}

}  // namespace yado::fuzz
