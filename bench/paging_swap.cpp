#include "paging_swap.hpp"

#include <cerrno>
#include <sstream>

#include <sys/swap.h>
#include <unistd.h>

#include "os/file.hpp"
#include "program.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;

constexpr int loop_device = 1000;  // the rig's hosts have those behind it
const fs::path zram_control = "/sys/class/zram-control", page_cluster_file = "/proc/sys/vm/page-cluster";

std::string zram_device(int number) { return fmt::format("/dev/zram{}", number); }
fs::path zram_settings(int number) { return fmt::format("/sys/block/zram{}", number); }
fs::path note_of(const fs::path& run_directory) { return run_directory / fmt::format("{}-swap", rig_name); }

Status swap_on(const std::string& device) {
  YADO_TRY(run_program({"/sbin/mkswap", "-q", device}), "swap");
  constexpr int before_others = SWAP_FLAG_PREFER | 32767;
  if (::swapon(device.c_str(), before_others) < 0) return fail_errno("swapon " + device);
  return {};
}

/// Success also when it was not on.
Status swap_off(const std::string& device) {
  if (::swapoff(device.c_str()) < 0 && errno != EINVAL && errno != ENOENT && errno != ENXIO) return fail_errno("swapoff " + device);
  return {};
}

void remove_zram(int number) {
  (void)swap_off(zram_device(number));
  (void)os::write_kernel_file(zram_settings(number) / "reset", "1");
  (void)os::write_kernel_file(zram_control / "hot_remove", fmt::format("{}", number));
}

/// What a run left that was killed with its supervisor.
void sweep(const fs::path& run_directory) {
  (void)swap_off(fmt::format("/dev/loop{}", loop_device));
  remove_loop_device(loop_device);
  const auto note = os::read_text(note_of(run_directory));
  if (!note) return;
  int zram = -1, page_cluster = -1;
  std::istringstream(*note) >> zram >> page_cluster;
  if (zram >= 0) remove_zram(zram);
  if (page_cluster >= 0) (void)os::write_kernel_file(page_cluster_file, fmt::format("{}", page_cluster));
  ::unlink(note_of(run_directory).c_str());
}

/// "[lzo-rle] lzo lz4": the one in brackets.
std::string chosen(const std::string& list) {
  const std::size_t open = list.find('['), close = list.find(']');
  return open == std::string::npos || close == std::string::npos ? list : list.substr(open + 1, close - open - 1);
}

}  // namespace

Result<std::unique_ptr<SwapAreas>> SwapAreas::create(const Options& options) {
  sweep(options.run_directory);
  std::unique_ptr<SwapAreas> made(new SwapAreas(options));
  YADO_ASSIGN(const std::string page_cluster, os::read_text(page_cluster_file), "swap");
  made->page_cluster_ = std::atoi(page_cluster.c_str());
  YADO_TRY(made->write_note(), "swap");
  if (const Status zram = made->make_zram(); !zram) made->why_no_zram_ = zram.error().message;
  auto disk = LimitedDisk::create_bare(options.backing, options.bytes, loop_device);
  if (disk) made->disk_.emplace(std::move(*disk));
  else made->why_no_disk_ = disk.error().message;
  // Whether this machine lets us swap at all is known only by trying.
  for (const SwapKind kind : {SwapKind::zram, SwapKind::disk}) {
    if (!made->why_not(kind).empty()) continue;
    std::string& why = kind == SwapKind::zram ? made->why_no_zram_ : made->why_no_disk_;
    if (const Status tried = made->on(kind, std::nullopt); !tried) why = tried.error().message;
    YADO_TRY(made->off(), "swap");
  }
  return made;
}

Status SwapAreas::write_note() const {
  std::error_code ignored;
  fs::create_directories(options_.run_directory, ignored);
  return os::replace_text(note_of(options_.run_directory), fmt::format("{} {}\n", zram_, page_cluster_));
}

Status SwapAreas::make_zram() {
  if (!fs::exists(zram_control)) return fail(Errc::unsupported, "no zram in this kernel: modprobe zram");
  // Reading makes a device and says its number.
  YADO_ASSIGN(const std::string number, os::read_text(zram_control / "hot_add"), "zram");
  zram_ = std::atoi(number.c_str());
  YADO_TRY(write_note(), "zram");
  YADO_ASSIGN(const std::string algorithms, os::read_text(zram_settings(zram_) / "comp_algorithm"), "zram");
  algorithm_ = chosen(algorithms);
  return {};
}

SwapAreas::~SwapAreas() {
  if (const Status off_again = off(); !off_again) fmt::print(stderr, "{}\n", off_again.error().message);
  disk_.reset();
  if (zram_ >= 0) remove_zram(zram_);
  ::unlink(note_of(options_.run_directory).c_str());
}

std::string SwapAreas::why_not(SwapKind kind) const { return kind == SwapKind::zram ? why_no_zram_ : why_no_disk_; }

std::string SwapAreas::describe() const {
  return fmt::format("swap: zram {}; disk {}; page-cluster {}, swappiness {}", why_no_zram_.empty() ? "with " + algorithm_ : "left out (" + why_no_zram_ + ")",
                     why_no_disk_.empty() ? fmt::format("limited to {} MiB/s", options_.disk_bytes_per_second >> 20) : "left out (" + why_no_disk_ + ")", page_cluster_,
                     std::atoi(os::read_text("/proc/sys/vm/swappiness").value_or("?").c_str()));
}

Status SwapAreas::on(SwapKind kind, std::optional<int> page_cluster) {
  YADO_TRY(os::write_kernel_file(page_cluster_file, fmt::format("{}", page_cluster.value_or(page_cluster_))), "page-cluster");
  if (kind == SwapKind::disk) return swap_on(disk_->device());
  YADO_TRY(os::write_kernel_file(zram_settings(zram_) / "disksize", fmt::format("{}", options_.bytes)), "zram");
  return swap_on(zram_device(zram_));
}

Status SwapAreas::off() {
  if (disk_) YADO_TRY(swap_off(disk_->device()), "swap");
  if (zram_ >= 0) {
    YADO_TRY(swap_off(zram_device(zram_)), "swap");
    YADO_TRY(os::write_kernel_file(zram_settings(zram_) / "reset", "1"), "zram");
  }
  return os::write_kernel_file(page_cluster_file, fmt::format("{}", page_cluster_));
}

Result<ZramUse> SwapAreas::zram_use() const {
  // orig_data_size, compr_data_size, mem_used_total.
  YADO_ASSIGN(const std::string text, os::read_text(zram_settings(zram_) / "mm_stat"), "zram");
  std::istringstream fields(text);
  std::uint64_t stored = 0, compressed = 0, taken = 0;
  fields >> stored >> compressed >> taken;
  if (!fields) return fail(Errc::corrupt, "zram: mm_stat holds \"{}\"", text);
  return ZramUse{.stored = stored, .taken = taken};
}

}  // namespace yado::bench
