// A guest as installers make them: the firmware boots it from its disk, and it asks for its address.
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/testing.hpp"
#include "net/guest_network.hpp"
#include "net/host_network.hpp"
#include "net/testing.hpp"
#include "os/file.hpp"
#include "workload/vm/dhcp.hpp"
#include "workload/vm/pages_memory.hpp"
#include "workload/vm/testing.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using namespace testing;
using ::testing::HasSubstr;


class DhcpVmProcessTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = why_not(); !reason.empty()) GTEST_SKIP() << reason;
    if (::access(Qemu().dhcp_server.c_str(), X_OK) != 0) GTEST_SKIP() << "needs " << Qemu().dhcp_server << " (package dnsmasq-base)";
    if (guest("dhcpweb").empty()) GTEST_SKIP() << "needs the guest dhcpweb: tools/make-guest dhcpweb $YADO_GUESTS/dhcpweb";
    spec_.name = "dhcpweb";
    spec_.memory_bytes = 128_MiB;
    spec_.disks = {guest("dhcpweb") / "disk.qcow2"};
    spec_.mac = net::guest_mac();
    spec_.dhcp = true;
  }
  /// An instance's network on a host of its own, as the agent and the driver make it.
  Result<os::Netns> network() {
    YADO_ASSIGN(os::Netns host, os::Netns::create(), "host");
    YADO_ASSIGN(net::HostNetwork wires, os::run_in(host, [] { return net::HostNetwork::open(); }), "host");
    YADO_ASSIGN(os::Netns instance, wires.make_instance(net::Ipv4::of(10, 88, 0, 5)), "instance");
    YADO_TRY(net::give_address_to_guest(instance), "instance");
    hosts_.push_back(std::move(host));
    return instance;
  }
  Place place(const std::string& name, const os::Netns& network) {
    Place made{.directory = directory_.path() / name, .cgroup = fmt::format("yado-test/{}-{}", directory_.path().filename().native(), name)};
    fs::create_directories(made.directory);
    made.network_namespace = network.fd().get();
    made.bridge = net::guest_bridge;
    return made;
  }
  /// With flags 6 the kernel neither asks for it nor gives it up (arp(7)).
  static std::string neighbours(const os::Netns& network) {
    return os::run_in(network, [] { return os::read_text("/proc/thread-self/net/arp"); }).value_or("");
  }
  static std::string page(const os::Netns& network) {
    const auto socket = net::testing::connect_in(network, net::instance_address.str(), 8080, static_cast<int>(hang / 1ms));
    if (!socket) return socket.error().text();
    if (const auto asked = os::write_all(*socket, "GET / HTTP/1.0\r\n\r\n"); !asked) return asked.error().text();
    std::string text;
    char chunk[512];
    while (os::readable_within(socket->get(), hang).value_or(false)) {
      const ssize_t n = ::read(socket->get(), chunk, sizeof chunk);
      if (n <= 0) break;
      text.append(chunk, static_cast<std::size_t>(n));
    }
    return text;
  }

  VmSpec spec_;
  image::TemporaryDirectory directory_;
  std::vector<os::Netns> hosts_;
};

TEST_F(DhcpVmProcessTest, AGuestOnItsDiskHasItsAddressAndHearsTheSameAfterARestoreElsewhere) {
  const auto here = network(), there = network();
  ASSERT_OK(here);
  ASSERT_OK(there);
  auto vm = Vm::start(spec_, place("a", *here), qemu());
  ASSERT_OK(vm);
  const auto bound = vm->console().wait_for("GUEST bound", hang);
  ASSERT_OK(bound);
  EXPECT_THAT(*bound, HasSubstr("ip=10.87.0.2/24 router=10.87.0.1 dns=10.87.0.1"));
  ASSERT_OK(vm->console().wait_for("GUEST up", hang));
  EXPECT_THAT(page(*here), HasSubstr("booted from its disk"));
  EXPECT_THAT(neighbours(*here), ::testing::ContainsRegex("10[.]87[.]0[.]2 +0x1 +0x6 "));
  EXPECT_EQ(vm->cgroup().processes().value_or(std::vector<pid_t>()).size(), 2U) << "QEMU and who answers its guest";

  for (const char* part : {"device-state", "disk", "memory"}) fs::create_directories(directory_.path() / "image" / part);
  const auto at = [&](const char* part) { return directory_.path() / "image" / part; };
  PagesMemory memory(at("memory"));
  const auto saved = vm->save(at("device-state"), at("disk"), memory);
  ASSERT_OK(saved);
  const std::string group = vm->cgroup().name();
  vm = fail(Errc::unavailable, "gone");
  EXPECT_FALSE(os::Cgroup::open(group).has_value()) << "nothing of it is left";

  auto restored = Vm::restore(spec_, place("b", *there), qemu(), {at("device-state"), at("disk"), saved->properties}, memory);
  ASSERT_OK(restored);
  EXPECT_THAT(page(*there), HasSubstr("booted from its disk"));
  ASSERT_OK(restored->console().send("renew\n"));
  const auto renewed = restored->console().wait_for("GUEST renew", hang);
  ASSERT_OK(renewed);
  EXPECT_THAT(*renewed, HasSubstr("ip=10.87.0.2/24 router=10.87.0.1 dns=10.87.0.1"));
  EXPECT_THAT(neighbours(*there), ::testing::ContainsRegex("10[.]87[.]0[.]2 +0x1 +0x6 "));
  const auto end = restored->stop(hang);
  ASSERT_OK(end);
  EXPECT_EQ(end->reason, "the guest powered off");
}

TEST_F(DhcpVmProcessTest, WithoutDnsmasqItIsSaidWhatToInstall) {
  const auto here = network();
  ASSERT_OK(here);
  Qemu programs = qemu();
  programs.dhcp_server = "/no/such/dnsmasq";
  const auto missing = Vm::start(spec_, place("a", *here), programs);
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, Errc::not_found);
  EXPECT_THAT(missing.error().text(), HasSubstr("install dnsmasq-base"));
  programs.dhcp_server = Qemu().image_tool;  // a program, but not that one
  const auto wrong = Vm::start(spec_, place("b", *here), programs);
  ASSERT_FALSE(wrong);
  EXPECT_EQ(wrong.error().code, Errc::application);
  EXPECT_THAT(wrong.error().text(), HasSubstr("conf-file")) << "its own words";
}

}  // namespace
}  // namespace yado::vm
