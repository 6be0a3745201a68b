#include "agent/supervisor/console_tail.hpp"

#include <algorithm>

namespace yado::supervisor {

void ConsoleTail::append(std::string_view text) {
  text_.append(text);
  if (text_.size() <= 2 * kept_) return;  // not for every byte
  const std::size_t over = text_.size() - kept_;
  text_.erase(0, over);
  begin_ += over;
}

ConsoleTail::Piece ConsoleTail::since(std::optional<std::uint64_t> from) const {
  if (!from) {
    const std::size_t line = text_.rfind('\n');
    from = begin_ + (line == std::string::npos ? 0 : line + 1);
  }
  if (*from > end()) from = begin_;
  const std::uint64_t first = std::max(*from, begin_);
  Piece piece{.text = text_.substr(first - begin_, longest_), .lost = first - *from};
  piece.next = first + piece.text.size();
  return piece;
}

}  // namespace yado::supervisor
