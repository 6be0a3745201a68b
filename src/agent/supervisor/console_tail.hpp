#pragma once
// The last of what an instance wrote, by position, for those who look on: each reads from where it stopped.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace yado::supervisor {

class ConsoleTail {
 public:
  struct Piece {
    std::string text;        ///< at most `longest` bytes
    std::uint64_t next = 0;  ///< where the next piece begins
    std::uint64_t lost = 0;  ///< bytes between the wished position and the text that are not kept any more
  };
  explicit ConsoleTail(std::size_t kept = 256 << 10, std::size_t longest = 64 << 10) : kept_(kept), longest_(longest) {}

  void append(std::string_view text);
  /// Positions count all bytes ever written. Without one: the line that is not ended yet, a prompt perhaps. One that was not
  /// reached yet is somebody else's (another instance's): what is kept, from its beginning.
  Piece since(std::optional<std::uint64_t> from) const;
  std::uint64_t end() const { return begin_ + text_.size(); }

 private:
  std::size_t kept_, longest_;
  std::string text_;
  std::uint64_t begin_ = 0;  ///< position of text_
};

}  // namespace yado::supervisor
