#include "split_vm_rig.hpp"

#include <algorithm>
#include <sstream>

#include "base/units.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/mount.hpp"
#include "split_vm_link.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;

constexpr int first_loop_device = 1000;  // numbers that nobody gets who asks for a free one
constexpr int most_hosts = 16;
constexpr auto probe_limit = 60s;
constexpr double tolerance = 1.25;       // of a disk's measured rate over its limit: blk-throttle lets a slice pass at once

double mib(double bytes) { return bytes / static_cast<double>(1_MiB); }

/// Seconds of a dd(1) in the host.
Result<double> time_dd(lab::Lab& lab, const HostId& host, const std::vector<std::string>& operands) {
  lab::SpawnOptions spawn;
  spawn.arguments = {"/bin/dd", "bs=1M", "status=none"};
  spawn.arguments.insert(spawn.arguments.end(), operands.begin(), operands.end());
  const Instant begun = os::now();
  YADO_ASSIGN(lab::HostProcess process, lab.spawn(host, spawn), "dd");
  YADO_ASSIGN(const auto ended, process.wait(probe_limit), "dd");
  if (!ended || !ended->success()) return fail(Errc::io, "dd: {}", ended ? ended->text() : "takes too long");
  return to_ms(os::now() - begun) / 1000;
}

struct Rates {
  double write = 0, read = 0;
};
/// One second's worth each way, by a process of the host.
Result<Rates> measure_disk(lab::Lab& lab, const HostId& host, const fs::path& disk, std::uint64_t limit) {
  const fs::path file = disk / "probe";
  const std::uint64_t chunks = std::max<std::uint64_t>(limit >> 20, 16);
  const std::string count = fmt::format("count={}", chunks), name = file.native();
  const double bytes = static_cast<double>(chunks << 20);
  Rates rates;
  YADO_ASSIGN(const double writing_s, time_dd(lab, host, {"if=/dev/zero", "of=" + name, count, "oflag=direct", "conv=fsync"}), "measure the disk");
  YADO_ASSIGN(const double reading_s, time_dd(lab, host, {"if=" + name, "of=/dev/null", count, "iflag=direct"}), "measure the disk");
  std::error_code ignored;
  fs::remove(file, ignored);
  return Rates{bytes / writing_s, bytes / reading_s};
}

/// Bytes that the namespace's eth0 has sent: the ninth number of its line (proc(5), /proc/net/dev).
Result<std::uint64_t> sent_by(const os::Netns& netns) {
  return os::run_in(netns, []() -> Result<std::uint64_t> {
    YADO_ASSIGN(const std::string text, os::read_text("/proc/thread-self/net/dev"), "link");
    const std::size_t at = text.find("eth0:");
    if (at == std::string::npos) return fail(Errc::not_found, "link: no eth0");
    std::istringstream fields(text.substr(at + 5));
    std::uint64_t value = 0;
    for (int field = 0; field < 9; ++field) fields >> value;
    return value;
  });
}

}  // namespace

Result<RigDisks> RigDisks::create(const RigOptions& options) {
  RigDisks made;
  for (int host = 1; host <= most_hosts; ++host) remove_loop_device(first_loop_device + host);  // of a run that was killed
  YADO_TRY(os::enter_private_mounts(), "disks");
  YADO_ASSIGN(made.raw_bytes_per_second, raw_write_rate(options.backing), "disks");
  for (std::uint32_t host = 1; host <= options.hosts; ++host) {
    const fs::path directory = options.run_directory / fmt::format("{}-disks/h{}", rig_name, host);
    YADO_ASSIGN(LimitedDisk disk, LimitedDisk::create(directory, options.backing, options.disk_bytes, first_loop_device + static_cast<int>(host)), "disks");
    made.disks.push_back(std::move(disk));
  }
  return made;
}

Result<Rig> Rig::create(const RigOptions& options, const RigDisks& disks, const Say& say) {
  const double together = static_cast<double>(options.disk_bytes_per_second) * options.hosts;
  if (together > disks.raw_bytes_per_second / 2)
    return fail(Errc::conflict, "{} hosts' disks of {:.0f} MiB/s are more than half of what the disk below takes ({:.0f} MiB/s measured): use a lower --disk-rate",
                options.hosts, mib(static_cast<double>(options.disk_bytes_per_second)), mib(disks.raw_bytes_per_second));
  lab::LabOptions wanted;
  wanted.name = rig_name;
  wanted.hosts = options.hosts;
  wanted.link_bits_per_second = options.link_bits_per_second;
  wanted.run_directory = options.run_directory;
  YADO_ASSIGN(lab::Lab lab, lab::Lab::create(wanted), "rig");
  Rig rig(options, disks, std::move(lab));
  YADO_TRY(rig.limit_disks(), "rig");
  YADO_TRY(rig.measure_link(), "rig");
  say(rig.describe());
  return rig;
}

Status Rig::limit_disks() {
  const double limit = static_cast<double>(options_.disk_bytes_per_second);
  for (std::size_t i = 0; i < hosts().size(); ++i) {
    const HostId& host = hosts()[i];
    YADO_TRY(disks_.disks[i].limit(options_.disk_bytes_per_second, lab_.cgroup(host)), "disk");
    YADO_ASSIGN(const Rates rates, measure_disk(lab_, host, disk(host), options_.disk_bytes_per_second), "disk");
    if (rates.write > limit * tolerance || rates.read > limit * tolerance)
      return fail(Errc::conflict, "the disk of {} writes {:.0f} and reads {:.0f} MiB/s, limited to {:.0f}: does this process run in a blkio group of its own?", host,
                  mib(rates.write), mib(rates.read), mib(limit));
    write_rate_ = i == 0 ? rates.write : std::min(write_rate_, rates.write);
    read_rate_ = i == 0 ? rates.read : std::min(read_rate_, rates.read);
  }
  return {};
}

Status Rig::measure_link() {
  const HostId &first = hosts().front(), &last = hosts().back();
  if (first == last) return {};
  YADO_ASSIGN(const os::Netns* from, lab_.netns(last), "link");
  YADO_ASSIGN(const os::Netns* to, lab_.netns(first), "link");
  YADO_ASSIGN(link_rate_, bench::link_rate(*from, *to, lab_.address(first), options_.link_bits_per_second), "link");
  return {};
}

double Rig::bound(std::uint32_t hosts) const {
  const double n = hosts;
  return link_rate_ > 0 ? std::max(n, (n - 1) * write_rate_ / link_rate_) : n;
}

const fs::path& Rig::disk(const HostId& host) const {
  const auto at = std::ranges::find(hosts(), host) - hosts().begin();
  return disks_.disks.at(static_cast<std::size_t>(at)).path();
}

Result<Traffic> Rig::traffic() const {
  Traffic all;
  for (const LimitedDisk& disk : disks_.disks) {
    YADO_ASSIGN(const LimitedDisk::Moved moved, disk.moved(), "traffic");
    all.disk_written += moved.written;
    all.disk_read += moved.read;
  }
  for (const HostId& host : hosts()) {
    YADO_ASSIGN(const os::Netns* netns, lab_.netns(host), "traffic");
    YADO_ASSIGN(const std::uint64_t sent, sent_by(*netns), "traffic");
    all.wire += sent;
  }
  return all;
}

std::string Rig::describe() const {
  return fmt::format("{} hosts, links of {:.1f} Gbit/s (measured: {:.0f} MiB/s), disks limited to {:.0f} MiB/s each (slowest measured: writes {:.0f}, reads {:.0f}); the disk below writes {:.0f} MiB/s",
                     hosts().size(), static_cast<double>(options_.link_bits_per_second) / 1e9, mib(link_rate_), mib(static_cast<double>(options_.disk_bytes_per_second)), mib(write_rate_),
                     mib(read_rate_), mib(disks_.raw_bytes_per_second));
}

}  // namespace yado::bench
