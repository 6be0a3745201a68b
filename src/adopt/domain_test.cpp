#include "adopt/domain.hpp"

#include <algorithm>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "base/units.hpp"
#include "spec/spec.hpp"

namespace yado::adopt {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

/// As virt-install writes it for a Debian guest, with what libvirt 9 adds.
constexpr std::string_view installed = R"(
<domain type='kvm'>
  <name>Debian12_Web</name>
  <uuid>1b826d71-8a5b-4c33-8d39-0f1fbb0a6d11</uuid>
  <metadata><libosinfo:libosinfo xmlns:libosinfo="http://libosinfo.org/xmlns/libvirt/domain/1.0"><libosinfo:os id="http://debian.org/debian/12"/></libosinfo:libosinfo></metadata>
  <memory unit='KiB'>2097152</memory>
  <currentMemory unit='KiB'>2097152</currentMemory>
  <vcpu placement='static'>2</vcpu>
  <os><type arch='x86_64' machine='pc-q35-7.2'>hvm</type><boot dev='hd'/></os>
  <features><acpi/><apic/></features>
  <cpu mode='host-passthrough' check='none' migratable='on'/>
  <clock offset='utc'><timer name='rtc' tickpolicy='catchup'/></clock>
  <on_poweroff>destroy</on_poweroff><on_reboot>restart</on_reboot><on_crash>destroy</on_crash>
  <pm><suspend-to-mem enabled='no'/></pm>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/><source file='/var/lib/libvirt/images/debian12, a.qcow2'/>
      <target dev='vda' bus='virtio'/><address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>
    </disk>
    <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><target dev='sda' bus='sata'/><readonly/></disk>
    <controller type='usb' index='0' model='qemu-xhci' ports='15'/><controller type='pci' index='0' model='pcie-root'/>
    <interface type='network'>
      <mac address='52:54:00:6b:3c:58'/><source network='default'/><model type='virtio'/>
    </interface>
    <serial type='pty'><target type='isa-serial' port='0'/></serial>
    <console type='pty'><target type='serial' port='0'/></console>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <input type='tablet' bus='usb'/>
    <graphics type='spice' autoport='yes'/><sound model='ich9'/><audio id='1' type='spice'/><video><model type='virtio'/></video>
    <redirdev bus='usb' type='spicevmc'/><redirdev bus='usb' type='spicevmc'/>
    <memballoon model='virtio'/><rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
  </devices>
</domain>)";

/// `installed` with one piece replaced by another.
std::string with(std::string_view piece, std::string_view other) {
  std::string text(installed);
  const auto at = text.find(piece);
  EXPECT_NE(at, std::string::npos) << piece;
  return text.replace(at, piece.size(), other);
}
std::string with_device(std::string_view device) { return with("</devices>", fmt::format("{}</devices>", device)); }

Domain read(std::string_view xml) {
  auto domain = read_domain(xml);
  EXPECT_TRUE(domain) << domain.error().text();
  return domain ? std::move(*domain) : Domain{};
}

TEST(AdoptTest, AnInstalledGuestIsTakenOverAndWhatIsOtherwiseIsSaid) {
  const Domain domain = read(installed);
  EXPECT_EQ(domain.name, "Debian12_Web");
  EXPECT_EQ(domain.workload, "debian12-web");
  EXPECT_EQ(domain.vm.memory_bytes, 2_GiB);
  EXPECT_EQ(domain.vm.vcpus, 2U);
  EXPECT_THAT(domain.vm.disks, ElementsAre("/var/lib/libvirt/images/debian12, a.qcow2"));
  EXPECT_EQ(domain.vm.kernel, "");
  EXPECT_THAT(domain.obstacles, IsEmpty());
  for (const char* said : {"52:54:00:6b:3c:58", "no screen", "no sound", "no balloon", "processor model", "redirected USB", "graphics card"})
    EXPECT_THAT(domain.changes, Contains(HasSubstr(said)));
  EXPECT_EQ(domain.changes.size(), 7U) << "what it has here as it had there is not spoken of: " << ::testing::PrintToString(domain.changes);
}

TEST(AdoptTest, ItsSpecIsReadAsItIsWrittenOnceAPersonHasFilledItIn) {
  const Domain domain = read(installed);
  const std::string open = spec_text(domain, {.workload = "web", .hosts = {}, .port = 0});
  const auto incomplete = spec::parse(open, "web.toml", {});
  ASSERT_FALSE(incomplete);
  EXPECT_THAT(incomplete.error().message, HasSubstr("service.hosts: is missing"));
  EXPECT_THAT(incomplete.error().message, HasSubstr("service.port: is missing"));
  const auto spec = spec::parse(spec_text(domain, {.workload = "web", .hosts = {"web.test"}, .port = 8080}), "web.toml", {});
  ASSERT_TRUE(spec) << spec.error().message;
  VmSpec expected = domain.vm;
  expected.split.emplace();
  expected.split->local_bytes = expected.memory_bytes;
  EXPECT_EQ(spec->vm, expected);
  EXPECT_EQ(spec->service.port, 8080);
  EXPECT_EQ(spec->policy.consistency, Consistency::exclusive);
  EXPECT_EQ(spec->policy.standby, StandbyLevel::image) << "its checkpoints";
}

TEST(AdoptTest, AKernelOfTheHostsIsBootedWithItsCommandLine) {
  const Domain domain = read(with("<boot dev='hd'/>", "<kernel>/k</kernel><initrd>/i</initrd><cmdline>root=/dev/vda1 a=&quot;b c&quot; ${HOME}</cmdline>"));
  EXPECT_EQ(domain.vm.kernel, "/k");
  EXPECT_EQ(domain.vm.initramfs, "/i");
  EXPECT_EQ(domain.vm.command_line, "root=/dev/vda1 a=\"b c\" ${HOME}");
  EXPECT_THAT(domain.changes, Contains(HasSubstr("console=ttyS0")));
  const auto spec = spec::parse(spec_text(domain, {.workload = "web", .hosts = {"web.test"}, .port = 80}), "web.toml", {});
  ASSERT_TRUE(spec) << spec.error().message;
  EXPECT_EQ(spec->vm.command_line, domain.vm.command_line);
}

TEST(AdoptTest, TheDiskThatBootsIsTheFirst) {
  const Domain domain = read(with_device(R"(
    <disk type='file' device='disk'><driver type='raw'/><source file='/data.raw'/><target dev='vdb' bus='virtio'/></disk>
    <disk type='file'><source file='/boot.raw'/><target dev='vdc' bus='virtio'/><boot order='1'/></disk>
    <disk type='file' device='cdrom'><source file='/install.iso'/><target dev='sdb' bus='sata'/></disk>)"));
  EXPECT_THAT(domain.obstacles, IsEmpty());
  EXPECT_THAT(domain.vm.disks, ElementsAre("/boot.raw", "/var/lib/libvirt/images/debian12, a.qcow2", "/data.raw"));
  EXPECT_THAT(domain.changes, Contains(HasSubstr("/dev/vda in the guest, and was \"vdc\"")));
  EXPECT_THAT(domain.changes, Contains(HasSubstr("/install.iso")));
}

TEST(AdoptTest, WhatTheGuestWouldMissIsAnObstacleAndSaysWhy) {
  const auto obstacles = [](const std::string& xml) { return read(xml).obstacles; };
  const auto disk = [](std::string_view inside) { return with_device(fmt::format("<disk {}<target dev='vdb' bus='virtio'/></disk>", inside)); };
  EXPECT_THAT(obstacles(with_device("<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0' bus='3' slot='0' function='0'/></source></hostdev>")),
              ElementsAre(HasSubstr("a device of the host (hostdev)")));
  EXPECT_THAT(obstacles(with_device("<interface type='bridge'><mac address='52:54:00:00:00:02'/><source bridge='br0'/></interface>")),
              ElementsAre(HasSubstr("\"52:54:00:00:00:02\" (bridge br0): a guest has one card here")));
  EXPECT_THAT(obstacles(with_device("<filesystem type='mount'><source dir='/srv'/><target dir='srv'/></filesystem>")), ElementsAre(HasSubstr("a shared file system")));
  EXPECT_THAT(obstacles(with_device("<tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>")), ElementsAre(HasSubstr("a TPM")));
  EXPECT_THAT(obstacles(with("<boot dev='hd'/>", "<loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.fd</loader><nvram>/v</nvram><boot dev='hd'/>")),
              ElementsAre(HasSubstr("UEFI firmware /usr/share/OVMF/OVMF_CODE_4M.fd")));
  EXPECT_THAT(obstacles(with("<os>", "<os firmware='efi'>")), ElementsAre(HasSubstr("UEFI")));
  EXPECT_THAT(obstacles(disk("type='block' device='disk'><source dev='/dev/vg/web'/>")), ElementsAre(HasSubstr("its source is of type \"block\"")));
  EXPECT_THAT(obstacles(disk("type='network' device='disk'><source protocol='rbd' name='p/i'/>")), ElementsAre(HasSubstr("\"network\"")));
  EXPECT_THAT(obstacles(disk("type='file' device='disk'><driver type='vmdk'/><source file='/v'/>")), ElementsAre(HasSubstr("qemu-img convert")));
  EXPECT_THAT(obstacles(disk("type='file' device='lun'><source file='/v'/>")), ElementsAre(HasSubstr("\"lun\"")));
  EXPECT_THAT(obstacles(disk("type='file'>")), ElementsAre(HasSubstr("names no file")));
  EXPECT_THAT(obstacles(with("dev='vda' bus='virtio'", "dev='sda' bus='sata'")), ElementsAre(HasSubstr("on the bus \"sata\"")));
  EXPECT_THAT(obstacles(with("type='kvm'", "type='xen'")), ElementsAre(HasSubstr("type \"xen\"")));
  EXPECT_THAT(obstacles(with("x86_64' machine", "aarch64' machine")), ElementsAre(HasSubstr("\"aarch64\"")));
  EXPECT_THAT(obstacles(with("<disk type='file' device='disk'>", "<disk type='dir' device='disk'>")), Contains(HasSubstr("neither a kernel nor a disk")));
  EXPECT_THAT(obstacles(with("2097152</memory>", "lots</memory>")), Contains(HasSubstr("not a size")));
  EXPECT_THAT(obstacles(with("'KiB'>2097152", "'TiB'>99999999999999999999")), Contains(HasSubstr("not a size")));
  EXPECT_THAT(obstacles(with("/var/lib/libvirt/images/debian12", "images/web")), ElementsAre(HasSubstr("is not an absolute path")));
  EXPECT_THAT(obstacles(with(">2</vcpu>", ">256</vcpu>")), ElementsAre(HasSubstr("256 is not between 1 and 255")));
}

TEST(AdoptTest, WhatIsNotKnownIsSaidAndNotDropped) {
  EXPECT_THAT(read(with_device("<teleporter/>")).changes, Contains(HasSubstr("\"teleporter\"")));
  EXPECT_THAT(read(with("<pm>", "<fancy/><pm>")).changes, Contains(HasSubstr("\"fancy\"")));
  EXPECT_THAT(read(with("<apic/>", "<apic/><hyperv><relaxed state='on'/></hyperv>")).changes, Contains(HasSubstr("hyperv")));
  EXPECT_THAT(read(with("pc-q35-7.2", "pc-i440fx-7.2")).changes, Contains(HasSubstr("pc-i440fx-7.2")));
  EXPECT_THAT(read(with("model type='virtio'/>\n    </interface>", "model type='e1000e'/></interface>")).changes, Contains(HasSubstr("e1000e")));
  const Domain rounded = read(with("unit='KiB'>2097152</memory>", "unit='b'>2000000000</memory>"));
  EXPECT_EQ(rounded.vm.memory_bytes % 2_MiB, 0U);
  EXPECT_GE(rounded.vm.memory_bytes, 2'000'000'000U);
  EXPECT_THAT(rounded.changes, Contains(HasSubstr("2000000000 bytes")));
  EXPECT_THAT(read(with("<devices>", "<qemu:commandline xmlns:qemu='q'><qemu:arg value='-s'/></qemu:commandline><devices>")).changes, Contains(HasSubstr(": -s")));
}

TEST(AdoptTest, BrokenXmlIsAnErrorThatSaysWhere) {
  for (const std::string& broken : {std::string(), std::string("<domain"), std::string("<network><name>x</name></network>"), std::string("<domain type='kvm'/>"),
                                    std::string(installed.substr(0, installed.size() / 2)), std::string(2_MiB, '<')}) {
    const auto domain = read_domain(broken);
    ASSERT_FALSE(domain) << broken.substr(0, 40);
    EXPECT_EQ(domain.error().code, Errc::invalid_argument);
  }
  // Depth is no more than length.
  std::string deep = "<domain type='kvm'><name>x</name>";
  for (int i = 0; i < 100'000; ++i) deep += "<a>";
  EXPECT_FALSE(read_domain(deep));
}

RC_GTEST_PROP(AdoptPropertyTest, AnyTextOfTheDomainIsReadBackFromTheSpec, (std::vector<unsigned char> bytes)) {
  std::string text, escaped;
  for (const unsigned char byte : bytes) {
    const char c = static_cast<char>(byte % 0x60 + 0x20);  // printable, and DEL
    text += c;
    escaped += fmt::format("&#{};", static_cast<int>(c));
  }
  const auto domain = read_domain(with("<boot dev='hd'/>", fmt::format("<kernel>/k</kernel><cmdline>x{}x</cmdline>", escaped)));
  RC_ASSERT(domain.has_value());
  RC_ASSERT(domain->vm.command_line == "x" + text + "x");
  const auto spec = spec::parse(spec_text(*domain, {.workload = "web", .hosts = {"web.test"}, .port = 80}), "web.toml", {});
  RC_ASSERT(spec.has_value());
  RC_ASSERT(spec->vm.command_line == "x" + text + "x");
}

/// Whatever is cut out of it or doubled in it: a domain or an error, and a domain's spec has no mistake but what it says itself.
RC_GTEST_PROP(AdoptPropertyTest, DamagedXmlIsReadOrRefused, (bool twice)) {
  std::string xml(installed);
  const auto at = *rc::gen::inRange<std::size_t>(0, xml.size()), length = *rc::gen::inRange<std::size_t>(1, 40);
  if (twice) xml.insert(at, xml.substr(at, length));
  else xml.erase(at, length);
  const auto domain = read_domain(xml);
  if (!domain) RC_SUCCEED("refused");
  const auto spec = spec::parse(spec_text(*domain, {.workload = "web", .hosts = {"web.test"}, .port = 80}), "web.toml", {});
  RC_ASSERT(spec.has_value() || !domain->obstacles.empty());
}

}  // namespace
}  // namespace yado::adopt
