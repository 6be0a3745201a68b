#include "split_vm_disk.hpp"

#include <cerrno>
#include <cstdlib>
#include <memory>
#include <random>
#include <sstream>
#include <utility>

#include <fcntl.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/time.hpp"
#include "base/units.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "program.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;

constexpr std::uint64_t probe_bytes = 512_MiB, chunk_bytes = 1_MiB, sector_bytes = 512;
constexpr const char* blkio = "/sys/fs/cgroup/blkio";
const fs::path unified = "/sys/fs/cgroup";

std::string device_of(int number) { return fmt::format("/dev/loop{}", number); }
fs::path settings_of(int number) { return fmt::format("/sys/block/loop{}", number); }

Result<os::Fd> loop_control() { return os::open_path("/dev/loop-control", O_RDWR); }

/// A device of that number without a past: no file, and no limit on it.
Status add_device(int number) {
  YADO_ASSIGN(const os::Fd control, loop_control(), "loop device");
  if (::ioctl(control.get(), LOOP_CTL_REMOVE, number) < 0 && errno != ENODEV)
    return fail_errno(fmt::format("take over {}: another process uses it", device_of(number)));
  if (::ioctl(control.get(), LOOP_CTL_ADD, number) < 0) return fail_errno(fmt::format("add {}", device_of(number)));
  return {};
}

/// Past the page cache of the disk below; released with the last one who has it open or mounted.
Result<os::Fd> attach(int number, const os::Fd& file) {
  YADO_ASSIGN(os::Fd device, os::open_path(device_of(number), O_RDWR), "loop device");
  loop_config config{};
  config.fd = static_cast<__u32>(file.get());
  config.info.lo_flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO;
  if (::ioctl(device.get(), LOOP_CONFIGURE, &config) < 0) return fail_errno(fmt::format("configure {}", device_of(number)));
  return device;
}

Status check_space(const fs::path& backing, std::uint64_t bytes) {
  struct statvfs space {};
  if (::statvfs(backing.c_str(), &space) < 0) return fail_errno(fmt::format("look at {}", backing.native()));
  const std::uint64_t free_bytes = static_cast<std::uint64_t>(space.f_bavail) * space.f_frsize;
  if (free_bytes < bytes) return fail(Errc::no_space, "{} has {} MiB free; a host's disk needs {}", backing.native(), free_bytes >> 20, bytes >> 20);
  return {};
}

/// Without a name, all holes.
Result<os::Fd> make_file(const fs::path& backing, std::uint64_t bytes) {
  YADO_TRY(check_space(backing, bytes), "room");
  YADO_ASSIGN(os::Fd file, os::open_path(backing, O_RDWR | O_TMPFILE, 0600), "room");
  if (::ftruncate(file.get(), static_cast<off_t>(bytes)) < 0) return fail_errno("room");
  return file;
}

Result<std::string> device_number(int number) {
  YADO_ASSIGN(std::string text, os::read_text(settings_of(number) / "dev"), "loop device");
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

struct FreeMemory {
  void operator()(void* memory) const { std::free(memory); }
};
using Chunk = std::unique_ptr<void, FreeMemory>;

Chunk incompressible_chunk() {
  Chunk chunk(std::aligned_alloc(4096, chunk_bytes));
  std::mt19937_64 random(1);
  auto* words = static_cast<std::uint64_t*>(chunk.get());
  for (std::size_t i = 0; i < chunk_bytes / sizeof *words; ++i) words[i] = random();
  return chunk;
}

}  // namespace

Result<LimitedDisk> LimitedDisk::create_bare(const fs::path& backing, std::uint64_t bytes, int number) {
  const std::string doing = device_of(number);
  YADO_ASSIGN(const os::Fd file, make_file(backing, bytes), doing);
  YADO_TRY(add_device(number), doing);
  LimitedDisk disk;
  disk.number_ = number;
  YADO_ASSIGN(disk.bare_, attach(number, file), doing);
  return disk;
}

Result<LimitedDisk> LimitedDisk::create(const fs::path& directory, const fs::path& backing, std::uint64_t bytes, int number) {
  const std::string doing = fmt::format("disk {}", directory.native());
  YADO_ASSIGN(const os::Fd file, make_file(backing, bytes), doing);

  // The device first: whoever has it has the directory too, and removing that would take away another one's mount.
  YADO_TRY(add_device(number), doing);
  LimitedDisk disk;
  disk.number_ = number;
  disk.directory_ = directory;
  std::error_code error;
  fs::create_directories(directory, error);
  if (error) return fail_errno(error.value(), doing);
  YADO_ASSIGN(const os::Fd device, attach(number, file), doing);
  // Nothing is left to be done in the background: it would count as somebody's writing.
  YADO_TRY(run_program({"/sbin/mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", device_of(number)}), doing);
  if (::mount(device_of(number).c_str(), directory.c_str(), "ext4", MS_NOSUID | MS_NODEV | MS_NOATIME, nullptr) < 0) return fail_errno(doing);
  disk.mounted_ = true;
  return disk;
}

LimitedDisk::LimitedDisk(LimitedDisk&& other) noexcept
    : directory_(std::exchange(other.directory_, {})), number_(std::exchange(other.number_, -1)), bare_(std::move(other.bare_)), mounted_(std::exchange(other.mounted_, false)) {}

LimitedDisk::~LimitedDisk() {
  if (mounted_) ::umount(directory_.c_str());
  bare_.reset();
  if (number_ >= 0)
    if (const auto control = loop_control(); control && ::ioctl(control->get(), LOOP_CTL_REMOVE, number_) < 0)
      fmt::print(stderr, "{} is still in use and stays: losetup -d {}\n", device_of(number_), device_of(number_));
  if (!directory_.empty()) ::rmdir(directory_.c_str());
}

std::string LimitedDisk::device() const { return device_of(number_); }

Status LimitedDisk::limit(std::uint64_t bytes_per_second, const std::string& cgroup) const {
  YADO_ASSIGN(const std::string device, device_number(number_), "limit");
  if (fs::exists(fs::path(blkio) / "blkio.throttle.write_bps_device")) {
    for (const char* way : {"read", "write"})
      YADO_TRY(os::write_kernel_file(fmt::format("{}/blkio.throttle.{}_bps_device", blkio, way), fmt::format("{} {}", device, bytes_per_second)), "limit a disk by cgroup v1");
    return {};
  }
  fs::path at = unified;
  for (const fs::path& part : fs::path(cgroup)) {
    YADO_TRY(os::write_kernel_file(at / "cgroup.subtree_control", "+io"), "limit a disk by cgroup v2 (CONFIG_BLK_DEV_THROTTLING?)");
    at /= part;
  }
  YADO_TRY(os::write_kernel_file(at / "io.max", fmt::format("{} rbps={} wbps={}", device, bytes_per_second, bytes_per_second)), "limit a disk by cgroup v2");
  return {};
}

Result<LimitedDisk::Moved> LimitedDisk::moved() const {
  // Field 3: sectors read, field 7: sectors written (kernel: Documentation/block/stat.rst).
  YADO_ASSIGN(const std::string text, os::read_text(settings_of(number_) / "stat"), "disk");
  std::istringstream fields(text);
  std::uint64_t field[7] = {};
  for (std::uint64_t& value : field) fields >> value;
  if (!fields) return fail(Errc::corrupt, "disk: {} holds \"{}\"", (settings_of(number_) / "stat").native(), text);
  return Moved{.written = field[6] * sector_bytes, .read = field[2] * sector_bytes};
}

void remove_loop_device(int number) {
  if (const auto control = loop_control()) (void)::ioctl(control->get(), LOOP_CTL_REMOVE, number);
}

Result<double> raw_write_rate(const fs::path& directory) {
  YADO_ASSIGN(const os::Fd file, os::open_path(directory, O_RDWR | O_TMPFILE | O_DIRECT, 0600), "measure the disk");
  const Chunk chunk = incompressible_chunk();
  const Instant begun = os::now();
  for (std::uint64_t at = 0; at < probe_bytes; at += chunk_bytes)
    if (::pwrite(file.get(), chunk.get(), chunk_bytes, static_cast<off_t>(at)) != static_cast<ssize_t>(chunk_bytes)) return fail_errno("measure the disk: write");
  if (::fsync(file.get()) < 0) return fail_errno("measure the disk: fsync");
  return static_cast<double>(probe_bytes) / (to_ms(os::now() - begun) / 1000);
}

}  // namespace yado::bench
