#include "split_vm_image.hpp"

#include <fcntl.h>
#include <unistd.h>

#include "os/file.hpp"

namespace yado::bench {

Result<SplitImage> take_image(const vm::Vm& vm, const WorkDirectories& work, const std::string& name, const SplitImage* base) {
  SplitImage image{.name = name, .cut = image::CutId::of(name), .saved = {}, .shares = {}, .directory = work.of(0) / name};
  for (const char* part : {"device-state", "disk", "memory"}) {
    std::error_code error;
    std::filesystem::create_directories(image.directory / part, error);
    if (error) return fail_errno(error.value(), "make " + (image.directory / part).native());
  }
  vm::PagedMemory memory({.control = vm.pager(), .part = image.directory / "memory", .name = name, .cut = image.cut,
                          .base_cut = base ? base->cut : image::CutId(), .progress = {}});
  YADO_ASSIGN(image.saved, vm.save(image.directory / "device-state", image.directory / "disk", memory), "save");
  YADO_TRY(memory.keep(), "save");
  // Servers fsync their shares themselves, and the pager the main host's; this is for devices and directories.
  YADO_ASSIGN(const os::Fd disk, os::open_path(image.directory, O_RDONLY | O_DIRECTORY), "save");
  if (::syncfs(disk.get()) < 0) return fail_errno("sync the image");
  image.shares = memory.shares();
  return image;
}

}  // namespace yado::bench
