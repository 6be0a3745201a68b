#include "workload/vm/memory_part.hpp"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os/file.hpp"
#include "workload/vm/disk.hpp"

namespace yado::vm {

Status FlatMemory::save(const os::Fd& memory, std::uint64_t) {
  YADO_ASSIGN(const os::Fd target, os::open_path(file_, O_WRONLY | O_CREAT | O_EXCL, 0600), "memory");
  if (Status copied = copy_sparse(memory, target); !copied) {
    ::unlink(file_.c_str());
    return context(copied.error(), fmt::format("memory to {}", file_.native()));
  }
  return {};
}

Status FlatMemory::load(const os::Fd& memory, std::uint64_t bytes) {
  YADO_ASSIGN(const os::Fd source, os::open_path(file_, O_RDONLY), "memory");
  struct stat status {};
  if (::fstat(source.get(), &status) != 0) return fail_errno("memory: stat");
  if (static_cast<std::uint64_t>(status.st_size) != bytes)
    return fail(Errc::corrupt, "memory: {} has {} bytes, the guest's memory {}", file_.native(), status.st_size, bytes);
  YADO_TRY(copy_sparse(source, memory), fmt::format("memory from {}", file_.native()));
  return {};
}

}  // namespace yado::vm
