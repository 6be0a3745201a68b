#pragma once
// An owned file descriptor. Move-only; closing is what destruction does, and nothing else has to remember it.

#include <utility>

namespace yado::os {

class Fd {
 public:
  Fd() = default;
  /// Takes ownership of `fd`; a negative number means none.
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    if (this != &other) {
      reset();
      fd_ = std::exchange(other.fd_, -1);
    }
    return *this;
  }
  ~Fd() { reset(); }

  int get() const { return fd_; }
  /// Not `operator bool`: "is there one" must not be mistaken for "is it fd 0".
  bool valid() const { return fd_ >= 0; }
  /// Gives up ownership.
  [[nodiscard]] int release() { return std::exchange(fd_, -1); }
  void reset();

 private:
  int fd_ = -1;
};

}  // namespace yado::os
