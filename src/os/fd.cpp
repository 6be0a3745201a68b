#include "os/fd.hpp"

#include <unistd.h>

namespace yado::os {

void Fd::reset() {
  // Linux frees the number even when close() says EINTR: repeating it could close somebody else's (close(2)).
  if (fd_ >= 0) ::close(std::exchange(fd_, -1));
}

}  // namespace yado::os
