#include "workload/vm/command_line.hpp"

#include <unistd.h>

#include <nlohmann/json.hpp>

#include "base/units.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using json = nlohmann::json;

// Devices have fixed places on the bus: the guest of an image finds them where they were.
constexpr int first_disk_slot = 0x10;
constexpr int network_slot = 0x08, random_slot = 0x09, panic_slot = 0x0a, agent_slot = 0x0b;
constexpr std::size_t most_disks = 8;

/// In QEMU's option lists a comma is written twice.
std::string escaped(std::string_view text) {
  std::string result;
  for (const char c : text) result.append(c == ',' ? 2 : 1, c);
  return result;
}

Status readable(const fs::path& file, std::string_view what) {
  if (!file.is_absolute()) return fail(Errc::invalid_argument, "{} \"{}\" is no absolute path", what, file.native());
  if (::access(file.c_str(), R_OK) != 0) return fail_errno(fmt::format("{} {}", what, file.native()));
  return {};
}

}  // namespace

Status check(const VmSpec& spec) {
  if (spec.memory_bytes == 0 || spec.memory_bytes % 2_MiB != 0)
    return fail(Errc::invalid_argument, "memory of {} bytes is no multiple of 2 MiB", spec.memory_bytes);
  if (spec.vcpus == 0) return fail(Errc::invalid_argument, "a VM needs at least one vCPU");
  if (spec.kernel.empty() && spec.disks.empty()) return fail(Errc::invalid_argument, "neither a kernel nor a disk to boot from");
  if (spec.disks.size() > most_disks) return fail(Errc::invalid_argument, "{} disks are more than {}", spec.disks.size(), most_disks);
  if (!spec.kernel.empty()) YADO_TRY(readable(spec.kernel, "kernel"), "VM");
  if (!spec.initramfs.empty()) YADO_TRY(readable(spec.initramfs, "initramfs"), "VM");
  for (const fs::path& disk : spec.disks) YADO_TRY(readable(disk, "disk"), "VM");
  return {};
}

std::vector<std::string> build(const CommandLine& call) {
  const VmSpec& spec = call.spec;
  const bool kvm = call.qemu.accelerator.kind == Accelerator::kvm;
  std::vector<std::string> all = {call.qemu.system, "-no-user-config", "-nodefaults", "-display", "none", "-vga", "none", "-S"};
  const auto add = [&](std::string option, std::string value) {
    all.push_back(std::move(option));
    all.push_back(std::move(value));
  };
  const auto add_object = [&](const char* option, const json& value) { add(option, value.dump(-1, ' ', false, json::error_handler_t::replace)); };

  add("-name", fmt::format("guest={},debug-threads=on", escaped(spec.name)));
  // Merging equal pages would tell tenants about each other; a core dump would hold the guest's secrets.
  add("-machine", fmt::format("{},accel={},memory-backend=ram,mem-merge=off,dump-guest-core=off,vmport=off", call.machine, name_of(call.qemu.accelerator.kind)));
  add("-cpu", kvm ? "host" : "max");
  add("-smp", fmt::format("{}", spec.vcpus));
  add("-m", fmt::format("{}M", spec.memory_bytes >> 20));
  add_object("-object", {{"qom-type", "memory-backend-file"}, {"id", "ram"}, {"size", spec.memory_bytes}, {"share", true},
                         {"mem-path", fmt::format("/proc/self/fd/{}", memory_descriptor)}});
  add("-rtc", "base=utc");
  add("-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
  // A panic ends QEMU with a failure, a guest that powers itself off with success.
  add("-action", "panic=exit-failure");

  if (!spec.kernel.empty()) {
    add("-kernel", spec.kernel);
    if (!spec.initramfs.empty()) add("-initrd", spec.initramfs);
    add("-append", spec.kernel_command_line);
  }

  add("-chardev", fmt::format("socket,id=monitor,fd={}", monitor_descriptor));
  add("-mon", "chardev=monitor,mode=control");
  add("-chardev", fmt::format("socket,id=control,fd={},server=on,wait=off", control_descriptor));
  add("-mon", "chardev=control,mode=control");
  add("-chardev", fmt::format("socket,id=console,fd={}", console_descriptor));
  add("-serial", "chardev:console");

  add_object("-object", {{"qom-type", "rng-random"}, {"id", "random"}, {"filename", "/dev/urandom"}});
  add("-device", fmt::format("virtio-rng-pci,rng=random,addr={:#x}", random_slot));
  add("-device", fmt::format("pvpanic-pci,addr={:#x}", panic_slot));
  // Every start has another one: a guest that is restored twice learns that it is another, and draws other secrets (QEMU docs/specs/vmgenid.rst).
  add("-device", "vmgenid,guid=auto");

  add("-chardev", fmt::format("socket,id={},fd={},server=on,wait=off", agent_device, agent_descriptor));
  add("-device", fmt::format("virtio-serial-pci,id=ports,max_ports=2,addr={:#x}", agent_slot));
  add("-device", fmt::format("virtserialport,bus=ports.0,nr=1,chardev={},name=org.qemu.guest_agent.0,id=agent-port", agent_device));

  for (std::size_t i = 0; i < spec.disks.size(); ++i) {
    // Who lies on what is said here, whatever paths the layers' headers hold: on another host they may be others.
    std::string below = fmt::format("base-{}", i);
    add_object("-blockdev", {{"node-name", below}, {"driver", name_of(call.base_formats[i])}, {"read-only", true},
                             {"file", {{"driver", "file"}, {"filename", spec.disks[i].native()}}}});
    for (const fs::path& layer : call.layers[i]) {
      add_object("-blockdev", {{"node-name", node_of(layer)}, {"driver", "qcow2"}, {"backing", below}, {"discard", "unmap"}, {"read-only", is_shared(layer)},
                               {"file", {{"driver", "file"}, {"filename", layer.native()}, {"discard", "unmap"}}}});
      below = node_of(layer);
    }
    const bool boots = i == 0 && spec.kernel.empty();
    add("-device", fmt::format("virtio-blk-pci,drive={},addr={:#x}{}", below, first_disk_slot + static_cast<int>(i), boots ? ",bootindex=0" : ""));
  }
  if (call.network_card) {
    add("-netdev", fmt::format("tap,id=net0,fd={},vhost=off", tap_descriptor));
    // No option ROM: it is for booting from the network, and may differ between versions.
    add("-device", fmt::format("virtio-net-pci,netdev=net0,mac={},romfile=,addr={:#x}", spec.mac ? spec.mac->str() : "", network_slot));
  }
  if (call.incoming) add("-incoming", "defer");
  return all;
}

}  // namespace yado::vm
