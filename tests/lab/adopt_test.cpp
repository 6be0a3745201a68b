// Virtual machines that bring everything on their disks: booted by the firmware, with an address by DHCP; and one that was a domain of a real libvirt's before.

#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "base/units.hpp"
#include "drill/load.hpp"
#include "lab_test.hpp"

namespace yado::labtest {
namespace {

namespace fs = std::filesystem;

class AdoptTest : public LabTest<AdoptTest> {
 public:
  static ClusterOptions cluster_options() { return {.hosts = 2, .criu = false, .database = false}; }

 protected:
  void SetUp() override {
    LabTest<AdoptTest>::SetUp();
    const char* guests = std::getenv("YADO_GUESTS");
    disk_ = fs::path(guests ? guests : ".") / "dhcpweb/disk.qcow2";
    if (::access(disk_.c_str(), R_OK) != 0) GTEST_SKIP() << "needs the guest dhcpweb: tools/make-guest dhcpweb $YADO_GUESTS/dhcpweb";
    if (::access("/usr/sbin/dnsmasq", X_OK) != 0) GTEST_SKIP() << "needs /usr/sbin/dnsmasq (package dnsmasq-base)";
  }
  /// A client gets the page that only this guest has.
  bool answers(const std::string& host) {
    drill::LoadOptions options;
    options.address = cluster().gate();
    options.host = host;
    options.path = "/";
    options.contains = "booted from its disk";
    auto load = drill::Load::start(std::move(options));
    return load && (*load)->wait_for([](const drill::Sample& sample) { return sample.correct; }, generous);
  }

  fs::path disk_;
};

/// With a daemon of its own (tests/libvirt), and what it runs ended with the test.
class AdoptFromLibvirtTest : public AdoptTest {
 protected:
  void SetUp() override {
    for (const char* program : {"/usr/sbin/libvirtd", "/usr/bin/virsh"})
      if (::access(program, X_OK) != 0) GTEST_SKIP() << "needs " << program << " (packages libvirt-daemon, libvirt-clients)";
    AdoptTest::SetUp();
    if (IsSkipped()) return;
    std::string made = "/tmp/yado-adopt-XXXXXX";
    ASSERT_NE(::mkdtemp(made.data()), nullptr);
    directory_ = made;
    fs::create_directories(directory_ / "libvirt");
    fs::copy_file(disk_, directory_ / "disk.qcow2");
    const char* source = std::getenv("YADO_SOURCE");
    os::Spawn wanted;
    wanted.arguments = {fs::absolute(source ? source : ".") / "tests/libvirt/private-libvirtd", directory_ / "libvirt"};
    wanted.environment = {"PATH=/usr/sbin:/usr/bin:/sbin:/bin"};
    wanted.standard_output = wanted.standard_error = STDERR_FILENO;
    wanted.death_signal = SIGKILL;
    auto daemon = os::spawn(wanted);
    ASSERT_TRUE(daemon) << daemon.error().text();
    daemon_ = std::move(*daemon);
    while (virsh({"list"}).status != 0) ASSERT_FALSE(daemon_.pidfd().ended_within(100ms).value_or(true)) << "libvirtd has ended";
  }
  void TearDown() override {
    if (!directory_.empty()) {
      (void)virsh({"destroy", "Web_1"});
      daemon_.kill();
      fs::remove_all(directory_);
    }
    AdoptTest::TearDown();
  }
  std::string uri() const { return fmt::format("qemu+unix:///system?socket={}/libvirt/run/libvirt-sock", directory_.native()); }
  Ended virsh(std::vector<std::string> command) const {
    command.insert(command.begin(), {"/usr/bin/virsh", "-q", "-c", uri()});
    auto ended = run_program(std::move(command));
    return ended ? *ended : Ended{-1, ended.error().text()};
  }
  /// In the test's directory, where it leaves its spec.
  Ended adopt(std::vector<std::string> more) {
    const fs::path before = fs::current_path();
    fs::current_path(directory_);
    more.insert(more.begin(), {"adopt", "Web_1", "--uri", uri()});
    Ended ended = cluster().yado(std::move(more));
    fs::current_path(before);
    return ended;
  }
  /// Booted by libvirt, on a network of QEMU's own; `devices`: more of them.
  void define(const std::string& devices) const {
    std::ofstream(directory_ / "domain.xml") << fmt::format(R"(
<domain type='qemu'>
  <name>Web_1</name><uuid>6f1c1f0e-3b0e-4b8e-9d55-6a1c25f0a001</uuid>
  <memory unit='MiB'>128</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='q35'>hvm</type><boot dev='hd'/></os>
  <features><acpi/></features>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{}/disk.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <interface type='user'><mac address='52:54:00:00:00:07'/><model type='virtio'/></interface>
    {}
  </devices>
</domain>)", directory_.native(), devices);
    const Ended defined = virsh({"define", directory_ / "domain.xml"});
    ASSERT_EQ(defined.status, 0) << defined.output;
  }

  fs::path directory_;
  os::Process daemon_;
};

TEST_F(AdoptTest, AGuestThatBootsFromItsDiskAndAsksForItsAddressIsServed) {
  LAB_MUST(const json spec, cluster().spec("dhcpweb", "dhcpweb"));
  ASSERT_OK(cluster().deploy(spec));
  EXPECT_TRUE(answers("dhcp.test"));
  EXPECT_EQ(cluster().yado({"rm", "dhcpweb"}).status, 0);
}

TEST_F(AdoptFromLibvirtTest, ARunningDomainBecomesAWorkloadThatAnswers) {
  ASSERT_NO_FATAL_FAILURE(define("<filesystem type='mount' accessmode='mapped'><source dir='/tmp'/><target dir='shared'/></filesystem>"));
  const std::vector<std::string> wishes{"--host-name", "adopted.test", "--port", "8080"};
  const Ended refused = adopt(wishes);
  EXPECT_EQ(refused.status, 1) << refused.output;
  EXPECT_NE(refused.output.find("a shared file system"), std::string::npos) << refused.output;
  fs::remove(directory_ / "web-1.toml");

  ASSERT_NO_FATAL_FAILURE(define(""));
  ASSERT_EQ(virsh({"autostart", "Web_1"}).status, 0);
  ASSERT_EQ(virsh({"start", "Web_1"}).status, 0);
  const Ended only = adopt({"--spec-only"});
  EXPECT_EQ(only.status, 0) << only.output;
  EXPECT_NE(only.output.find("52:54:00:00:00:07"), std::string::npos) << only.output;
  EXPECT_EQ(virsh({"domstate", "Web_1"}).output, "running\n");
  const Ended kept = adopt(wishes);
  EXPECT_EQ(kept.status, 1) << "a spec that somebody may have edited: " << kept.output;
  EXPECT_EQ(virsh({"domstate", "Web_1"}).output, "running\n");
  fs::remove(directory_ / "web-1.toml");

  // Pressed until it hears: it is booting.
  const Ended adopted = adopt(wishes);
  ASSERT_EQ(adopted.status, 0) << adopted.output;
  EXPECT_TRUE(answers("adopted.test")) << adopted.output;
  EXPECT_EQ(virsh({"domstate", "Web_1"}).output, "shut off\n");
  EXPECT_NE(virsh({"dominfo", "Web_1"}).output.find("Autostart:      disable"), std::string::npos);
  EXPECT_NE(virsh({"start", "Web_1"}).status, 0) << "QEMU's lock on the disk keeps libvirt from running it beside ours";
  EXPECT_EQ(cluster().yado({"rm", "web-1"}).status, 0);
}

}  // namespace
}  // namespace yado::labtest
