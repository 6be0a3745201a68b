#pragma once
// libvirt, asked by its own client: virsh(1). All calls block.

#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"

namespace yado::cli {

class Virsh {
 public:
  /// One domain by its name, number or UUID. `uri` empty: virsh's own choice.
  Virsh(std::string uri, std::string domain) : uri_(std::move(uri)), domain_(std::move(domain)) {}

  /// As it would be started.
  Result<std::string> xml() const;
  /// It has a QEMU: running, paused, on its way down. One that libvirt does not know (any more) is an error of xml() and here not active.
  Result<bool> active() const;
  /// Its memory is kept in a file, and its disks wait for that (`virsh managedsave`).
  Result<bool> has_saved_memory() const;
  /// By the power button, again and again, until it is not active. Error `timed_out`: it runs.
  Status shut_down(nanoseconds limit) const;
  /// At once.
  Status destroy() const;
  /// One that is gone, because it was never defined, is not started either.
  Status forget_autostart() const;

 private:
  Result<std::string> run(std::vector<std::string> command) const;
  Result<std::string> info(std::string_view line) const;

  std::string uri_, domain_;
};

}  // namespace yado::cli
