#include "adopt/domain.hpp"

#include <algorithm>
#include <charconv>
#include <cctype>
#include <map>
#include <optional>
#include <set>
#include <utility>

#include <pugixml.hpp>

#include "base/units.hpp"
#include "spec/check.hpp"
#include "spec/values.hpp"

namespace yado::adopt {
namespace {

using spec::quote;
using Node = pugi::xml_node;

constexpr std::size_t longest_xml = 1 << 20;
constexpr std::size_t most_disks = 8;

// Elements that are a change for themselves: at the top and in <devices>.
const std::map<std::string_view, std::string_view> told_at_top{
    {"cpu", "processor model and topology: it sees the host's processor (KVM) or QEMU's fullest one (TCG), each vCPU a socket"},
    {"cputune", "processor limits (cputune): set vm.cpus"},
    {"numatune", "NUMA placement (numatune)"},
    {"memtune", "memory limits (memtune)"},
    {"memoryBacking", "how its memory is backed (huge pages, locked, shared): it is an ordinary shared file without a name"},
    {"maxMemory", "memory that could be added while it runs (maxMemory)"},
    {"blkiotune", "disk limits (blkiotune)"},
    {"iothreads", "I/O threads"},
    {"sysinfo", "what the firmware says of the machine (sysinfo): a guest that is told its configuration by that hears nothing"},
    {"genid", "the VM generation id (genid)"},
    {"idmap", "the id map (idmap)"},
    {"perf", "performance events (perf)"},
    {"keywrap", "key wrapping (keywrap)"},
};
const std::map<std::string_view, std::string_view> told_in_devices{
    {"graphics", "no screen (graphics): its serial port is the workload's log, and where `yado exec --console` leads"},
    {"video", "no graphics card (video)"},
    {"sound", "no sound card (sound)"},
    {"redirdev", "no redirected USB devices (redirdev)"},
    {"smartcard", "no smart card reader (smartcard)"},
    {"watchdog", "no watchdog: readiness is what is looked at"},
    {"vsock", "no socket to the host (vsock)"},
    {"memballoon", "no balloon: it has all of its memory"},
    {"parallel", "no parallel port"},
    {"iommu", "no IOMMU"},
};
const std::map<std::string_view, std::string_view> obstacles_in_devices{
    {"hostdev", "a device of the host (hostdev): the guest must run on any host"},
    {"filesystem", "a shared file system (filesystem): put what is in it on a disk, or let the guest reach it by network"},
    {"tpm", "a TPM: what the guest keeps in it would stay with libvirt"},
    {"memory", "a memory module: memory is one piece here"},
    {"shmem", "memory that it shares with others (shmem)"},
    {"lease", "a lock manager's lease"},
    {"nvram", "an NVRAM device"},
};
// What every guest has here, what is only the shape of the machine, and what is nobody's loss.
const std::set<std::string_view> passed_over_at_top{"name", "uuid", "title", "description", "metadata", "memory", "currentMemory", "vcpu", "vcpus", "os", "devices",
                                                    "on_poweroff", "on_reboot", "on_crash", "on_lockfailure", "pm", "resource", "seclabel", "features", "clock", "launchSecurity",
                                                    "iothreadids", "bootloader", "bootloader_args"};
const std::set<std::string_view> passed_over_in_devices{"emulator", "controller", "input", "console", "serial", "channel", "rng", "panic", "audio", "hub", "disk", "interface"};

std::optional<std::uint64_t> number(std::string_view text) {
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.front()))) text.remove_prefix(1);
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.remove_suffix(1);
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

/// libvirt's "scaled integer".
std::optional<std::uint64_t> bytes_of(Node node) {
  static const std::map<std::string_view, std::uint64_t> units{{"b", 1}, {"bytes", 1}, {"KB", 1'000}, {"", 1_KiB}, {"k", 1_KiB}, {"KiB", 1_KiB}, {"MB", 1'000'000}, {"M", 1_MiB},
                                                               {"MiB", 1_MiB}, {"GB", 1'000'000'000}, {"G", 1_GiB}, {"GiB", 1_GiB}, {"TB", 1'000'000'000'000}, {"T", 1024_GiB},
                                                               {"TiB", 1024_GiB}};
  const auto count = number(node.text().get());
  const auto unit = units.find(node.attribute("unit").value());
  if (!count || unit == units.end() || *count > (std::uint64_t{1} << 62) / unit->second) return std::nullopt;
  return *count * unit->second;
}

std::string name_from(std::string_view name) {
  std::string made;
  for (const char c : name) {
    const char lower = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    const bool allowed = (lower >= 'a' && lower <= 'z') || (lower >= '0' && lower <= '9') || lower == '.';
    made += allowed ? lower : '-';
  }
  made.resize(std::min(made.size(), spec::longest_workload_name));
  const auto edge = [](char c) { return c == '-' || c == '.'; };
  while (!made.empty() && edge(made.back())) made.pop_back();
  made.erase(made.begin(), std::ranges::find_if_not(made, edge));
  return made;
}

class Reader {
 public:
  Domain read(Node root) {
    made_.name = root.child("name").text().get();
    made_.workload = name_from(made_.name);
    if (const std::string type = root.attribute("type").value(); type != "kvm" && type != "qemu")
      obstacle("a domain of type {}: only kvm and qemu can be run here", quote(type));
    system(root.child("os"));
    memory(root);
    processors(root.child("vcpu"));
    machine(root);
    disks(root.child("devices"));
    cards(root.child("devices"));
    others(root);
    rules();
    return std::move(made_);
  }

 private:
  template <class... Arguments>
  void obstacle(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
    say(made_.obstacles, fmt::format(format, std::forward<Arguments>(arguments)...));
  }
  template <class... Arguments>
  void change(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
    say(made_.changes, fmt::format(format, std::forward<Arguments>(arguments)...));
  }
  static void say(std::vector<std::string>& lines, const std::string& text) {
    const std::string line = spec::printable(text);
    if (std::ranges::find(lines, line) == lines.end()) lines.push_back(line);
  }

  void system(Node os) {
    const Node type = os.child("type");
    if (const std::string kind = type.text().get(); kind != "hvm") obstacle("an operating system of type {}: only hvm can be run here", quote(kind));
    if (const std::string arch = type.attribute("arch").value(); !arch.empty() && arch != "x86_64") obstacle("a {} processor: only x86_64 can be run here", quote(arch));
    if (const std::string shape = type.attribute("machine").value(); !shape.empty() && shape.find("q35") == std::string::npos)
      change("the machine is a q35 and was {}", quote(shape));
    const Node loader = os.child("loader");
    if (std::string_view(os.attribute("firmware").value()) == "efi" || std::string_view(loader.attribute("type").value()) == "pflash" || os.child("nvram"))
      obstacle("UEFI firmware{}{}: guests boot by BIOS here, and its boot variables would stay with libvirt", loader.text().empty() ? "" : " ", loader.text().get());
    else if (loader) change("firmware {}: it boots with QEMU's own", quote(loader.text().get()));
    made_.vm.kernel = os.child("kernel").text().get();
    if (made_.vm.kernel.empty()) {
      if (const std::string_view first = os.child("boot").attribute("dev").value(); !first.empty() && first != "hd") change("it booted from {} first, and boots from its first disk", quote(first));
      return;
    }
    made_.vm.initramfs = os.child("initrd").text().get();
    made_.vm.command_line = os.child("cmdline").text().get();
    if (made_.vm.command_line.find("console=ttyS0") == std::string::npos) change("without console=ttyS0 on its kernel's command line the workload's log is empty");
  }

  void memory(Node root) {
    const auto bytes = bytes_of(root.child("memory"));
    if (!bytes || *bytes == 0) return obstacle("memory of {} {}: not a size", quote(root.child("memory").text().get()), quote(root.child("memory").attribute("unit").value()));
    made_.vm.memory_bytes = (*bytes + 2_MiB - 1) / 2_MiB * 2_MiB;
    if (made_.vm.memory_bytes != *bytes) change("memory of {} bytes becomes {} MiB: it is a multiple of 2 MiB", *bytes, made_.vm.memory_bytes >> 20);
    if (const auto current = bytes_of(root.child("currentMemory")); current && *current != *bytes) change("of its memory it was left {} MiB (currentMemory), and has all of it", *current >> 20);
  }

  void processors(Node vcpu) {
    const std::string_view current = vcpu.attribute("current").value();
    const auto count = number(current.empty() ? std::string_view(vcpu.text().get()) : current);
    if (!vcpu) return;  // one
    if (!count) return obstacle("vCPUs: {} is not a number", quote(vcpu.text().get()));
    made_.vm.vcpus = static_cast<std::uint32_t>(std::min<std::uint64_t>(*count, 1'000'000));
    if (!current.empty()) change("no vCPUs can be added while it runs: it has the {} it had (of {})", *count, quote(vcpu.text().get()));
  }

  void machine(Node root) {
    if (root.child("launchSecurity")) obstacle("encrypted memory (launchSecurity): it could be neither paged nor saved");
    if (const std::string_view offset = root.child("clock").attribute("offset").value(); !offset.empty() && offset != "utc")
      change("its clock is set to UTC, and was {}", quote(offset));
    for (const Node feature : root.child("features").children())
      if (const std::string_view name = feature.name(); name != "acpi" && name != "apic" && name != "pae" && name != "vmport") change("the machine's feature {} is left out", name);
    std::string arguments;
    for (const Node argument : root.child("qemu:commandline").children()) arguments += fmt::format(" {}", *argument.attribute("value").value() ? argument.attribute("value").value() : argument.attribute("name").value());
    if (!arguments.empty()) change("QEMU's own arguments and environment (qemu:commandline):{}", arguments);
  }

  struct Disk {
    std::string file, device;
    std::uint64_t boot_order = ~std::uint64_t{0};
  };

  void disks(Node devices) {
    std::vector<Disk> found;
    for (const Node node : devices.children("disk"))
      if (auto disk = disk_of(node)) found.push_back(std::move(*disk));
    if (made_.vm.kernel.empty() && !found.empty()) {
      const auto first = std::ranges::min_element(found, {}, &Disk::boot_order);  // of equal ones the first in the file, as in libvirt
      std::rotate(found.begin(), first, first + 1);
    }
    if (found.size() > most_disks) obstacle("{} disks: at most {} can be had here", found.size(), most_disks);
    for (std::size_t i = 0; i < std::min(found.size(), most_disks); ++i) {
      made_.vm.disks.push_back(found[i].file);
      if (const std::string now(1, static_cast<char>('a' + i)); found[i].device != "vd" + now)
        change("the disk {} is /dev/vd{} in the guest, and was {}", found[i].file, now, quote(found[i].device));
    }
  }

  std::optional<Disk> disk_of(Node node) {
    const std::string kind = *node.attribute("device").value() ? node.attribute("device").value() : "disk";
    const Node target = node.child("target"), source = node.child("source");
    const std::string device = target.attribute("dev").value();
    if (kind == "cdrom" || kind == "floppy") {
      if (source) change("no {} drive ({}), nor what is in it", kind == "cdrom" ? "CD-ROM" : "floppy disk", source.attribute("file").value());
      return std::nullopt;
    }
    const auto refuse = [&](std::string_view what) -> std::optional<Disk> {
      obstacle("the disk {}: {}", device, what);
      return std::nullopt;
    };
    const std::string type = node.attribute("type").value(), format = node.child("driver").attribute("type").value(), bus = target.attribute("bus").value();
    if (kind != "disk") return refuse(fmt::format("a device {} is not supported", quote(kind)));
    if (type != "file") return refuse(fmt::format("its source is of type {}; a disk is a file, at the same path on every host that may run it", quote(type)));
    if (!format.empty() && format != "raw" && format != "qcow2") return refuse(fmt::format("format {}; supported are raw and qcow2 (qemu-img convert)", quote(format)));
    if (node.child("encryption") || source.child("encryption")) return refuse("it is encrypted by libvirt");
    Disk disk{.file = source.attribute("file").value(), .device = device};
    if (disk.file.empty()) return refuse("it names no file");
    if (const auto order = number(node.child("boot").attribute("order").value())) disk.boot_order = *order;
    if (bus != "virtio")
      obstacle("the disk {} is on the bus {}; here it would be a virtio disk: let the guest start with it on virtio first (virsh edit), so that its driver is known to be there", device, quote(bus));
    if (node.child("shareable")) change("the disk {} was shared with others: it is not written to, every instance has an overlay of its own", disk.file);
    if (node.child("iotune") || source.child("iotune")) change("the limits of the disk {} (iotune)", disk.file);
    return disk;
  }

  void cards(Node devices) {
    bool first = true;
    for (const Node card : devices.children("interface")) {
      const std::string mac = card.child("mac").attribute("address").value(), model = card.child("model").attribute("type").value(), type = card.attribute("type").value();
      std::string source;
      for (const char* const where : {"network", "bridge", "dev"})
        if (const char* const value = card.child("source").attribute(where).value(); source.empty() && *value) source = value;
      const std::string what = fmt::format("the network card {} ({}{}{})", quote(mac), type, source.empty() ? "" : " ", source);
      if (!std::exchange(first, false)) {
        obstacle("{}: a guest has one card here, and the first is taken", what);
        continue;
      }
      if (type == "hostdev" || type == "vhostuser" || type == "vdpa") obstacle("{} is hardware or another program of the host's: the guest must run on any host", what);
      if (!model.empty() && !model.starts_with("virtio")) change("its network card is a virtio one, and was {}: the guest needs the driver", quote(model));
      change("{} has another MAC here, another place on the bus (so perhaps another name), and by DHCP the address 10.87.0.2: the guest must take any card, and ask. Its neighbours in that network "
             "reach it by the gate only", what);
    }
  }

  void others(Node root) {
    for (const Node node : root.children()) {
      const std::string_view name = node.name();
      if (const auto told = told_at_top.find(name); told != told_at_top.end()) change("{}", told->second);
      else if (node.type() == pugi::node_element && !passed_over_at_top.contains(name) && name != "qemu:commandline") change("the setting {} is left out", quote(name));
    }
    for (const Node node : root.child("devices").children()) {
      const std::string_view name = node.name();
      if (const auto told = obstacles_in_devices.find(name); told != obstacles_in_devices.end()) obstacle("{}", told->second);
      else if (name == "memballoon" && std::string_view(node.attribute("model").value()) == "none") continue;
      else if (const auto known = told_in_devices.find(name); known != told_in_devices.end()) change("{}", known->second);
      else if (node.type() == pugi::node_element && !passed_over_in_devices.contains(name)) change("no device {}", quote(name));
    }
    if (const auto serial = root.child("devices").children("serial"); std::distance(serial.begin(), serial.end()) > 1) change("it has one serial port");
  }

  /// What every spec must keep to.
  void rules() {
    WorkloadSpec spec;
    spec.kind = Kind::vm;
    spec.vm = made_.vm;
    for (const spec::Problem& problem : spec::problems_of(spec))
      if (problem.field.starts_with("vm")) obstacle("{}: {}", problem.field, problem.message);
  }

  Domain made_;
};

}  // namespace

Result<Domain> read_domain(std::string_view xml) {
  if (xml.size() > longest_xml) return fail(Errc::invalid_argument, "the domain's XML has {} bytes, and may have 1 MiB", xml.size());
  pugi::xml_document document;
  if (const auto parsed = document.load_buffer(xml.data(), xml.size()); !parsed)
    return fail(Errc::invalid_argument, "the domain's XML cannot be read at byte {}: {}", parsed.offset, parsed.description());
  const Node root = document.child("domain");
  if (!root) return fail(Errc::invalid_argument, "the XML is not that of a domain: it has no element <domain>");
  if (*root.child("name").text().get() == '\0') return fail(Errc::invalid_argument, "the domain's XML has no name");
  return Reader().read(root);
}

}  // namespace yado::adopt
