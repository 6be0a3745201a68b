// The hook lies in the program itself, so that one binary is all there is to install.
#include <fcntl.h>
#include <span>
#include <sys/mman.h>
#include <unistd.h>

#include "pager/guest_memory.hpp"

asm(".section .rodata\n"
    ".balign 16\n"
    ".globl yado_hook_begin\n"
    "yado_hook_begin:\n"
    ".incbin \"" YADO_HOOK_FILE "\"\n"
    ".globl yado_hook_end\n"
    "yado_hook_end:\n"
    ".byte 0\n"
    ".previous\n");
extern "C" const std::byte yado_hook_begin[], yado_hook_end[];

namespace yado::pager {

Result<os::Fd> hook_library() {
  os::Fd file(::memfd_create("libyado_pages.so", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file.valid()) return fail_errno("memfd_create");
  std::span<const std::byte> rest(yado_hook_begin, yado_hook_end);
  while (!rest.empty()) {
    const ssize_t n = ::write(file.get(), rest.data(), rest.size());
    if (n < 0) return fail_errno("write the hook");
    rest = rest.subspan(static_cast<std::size_t>(n));
  }
  if (::fcntl(file.get(), F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) return fail_errno("seal the hook");
  return file;
}

}  // namespace yado::pager
