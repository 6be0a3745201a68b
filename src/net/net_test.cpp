// Real namespaces, real TCP: a "client" machine and a "host" joined by one cable, and instances on the host.

#include <gtest/gtest.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "net/guest_network.hpp"
#include "net/host_network.hpp"
#include "net/nftables.hpp"
#include "net/rtnl.hpp"
#include "net/sysctl.hpp"
#include "net/testing.hpp"

namespace yado::net {
namespace {

using testing::accept_one;
using testing::connect_in;
using testing::listen_in;
using testing::passes;

constexpr Ipv4 u1 = Ipv4::of(10, 88, 1, 1);
constexpr Ipv4 u2 = Ipv4::of(10, 88, 1, 2);
const std::string client_address = "10.77.0.2";
const std::string host_address = "10.77.0.11";

#define MUST(declaration, expression)                                                       \
  auto YADO_CONCAT(must_, __LINE__) = (expression);                                         \
  ASSERT_TRUE(YADO_CONCAT(must_, __LINE__)) << YADO_CONCAT(must_, __LINE__).error().text(); \
  declaration = std::move(*YADO_CONCAT(must_, __LINE__))
#define OK(expression)                    \
  do {                                    \
    const auto ok = (expression);         \
    ASSERT_TRUE(ok) << ok.error().text(); \
  } while (false)

class HostNetworkTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    MUST(client_, os::Netns::create());
    MUST(host_, os::Netns::create());
    MUST(Rtnl client, Rtnl::open(client_));
    MUST(Rtnl host, Rtnl::open(host_));
    OK(client.add_veth({"eth0", {}}, {"eth0", {}}, host_));
    OK(client.add_address("eth0", {*Ipv4::parse(client_address), 24}));
    OK(host.add_address("eth0", {*Ipv4::parse(host_address), 24}));
    for (const char* link : {"lo", "eth0"}) {
      OK(client.set_up(link));
      OK(host.set_up(link));
    }
    MUST(HostNetwork network, os::run_in(host_, [] { return HostNetwork::open(); }));
    network_.emplace(std::move(network));
  }

  os::Netns client_, host_;
  std::optional<HostNetwork> network_;
};

TEST(Ipv4Test, RefusesWhatIsNotAnAddress) {
  for (const char* text : {"", "10.0.0", "10.0.0.256", "10.0.0.1 ", "::1", "host"})
    EXPECT_EQ(Ipv4::parse(text).error().code, Errc::invalid_argument) << text;
  EXPECT_EQ(Ipv4::parse("10.88.1.255")->str(), "10.88.1.255");
}

TEST_F(HostNetworkTest, BadAddressesAndPortsAreRefused) {
  for (const Ipv4 bad : {bridge_address, Ipv4::of(10, 88, 0, 0), Ipv4::of(10, 88, 255, 255), Ipv4::of(10, 89, 0, 2)})
    EXPECT_EQ(network_->make_instance(bad).error().code, Errc::invalid_argument) << bad.str();
  EXPECT_EQ(network_->publish(0, {u1, 80}).error().code, Errc::invalid_argument);
  EXPECT_EQ(network_->publish(20001, {u1, 0}).error().code, Errc::invalid_argument);
}

TEST_F(HostNetworkTest, AClientReachesAnApplicationHoweverItIsBound) {
  MUST(const os::Netns instance, network_->make_instance(u1));
  OK(network_->publish(20001, {u1, 80}));
  for (const char* bound : {"0.0.0.0", "10.87.0.2", "::"}) {
    SCOPED_TRACE(bound);
    MUST(const os::Fd listener, listen_in(instance, bound, 80));
    MUST(const os::Fd connection, connect_in(client_, host_address, 20001));
    MUST(const testing::Accepted accepted, accept_one(listener));
    EXPECT_EQ(accepted.peer, std::string(bound) == "::" ? "::ffff:" + client_address : client_address);
    EXPECT_TRUE(passes(connection, accepted.fd));
    EXPECT_TRUE(passes(accepted.fd, connection));
  }
}

TEST_F(HostNetworkTest, APortIsRefusedBeforeItIsPublishedAndAfterItIsWithdrawn) {
  MUST(const os::Netns instance, network_->make_instance(u1));
  MUST(const os::Fd listener, listen_in(instance, "0.0.0.0", 80));
  EXPECT_EQ(connect_in(client_, host_address, 20001).error().code, Errc::refused);
  OK(network_->publish(20001, {u1, 80}));
  EXPECT_TRUE(connect_in(client_, host_address, 20001));
  OK(network_->unpublish(20001));
  EXPECT_EQ(connect_in(client_, host_address, 20001).error().code, Errc::refused);
  OK(network_->unpublish(20001));
}

TEST_F(HostNetworkTest, NobodyListeningInsideIsARefusalNotASilence) {
  MUST(const os::Netns instance, network_->make_instance(u1));
  OK(network_->publish(20001, {u1, 80}));
  EXPECT_EQ(connect_in(client_, host_address, 20001).error().code, Errc::refused);
}

TEST_F(HostNetworkTest, APublishedPortIsNotTakenAwayBySomeoneElse) {
  OK(network_->publish(20001, {u1, 80}));
  OK(network_->publish(20001, {u1, 80}));
  EXPECT_EQ(network_->publish(20001, {u2, 80}).error().code, Errc::already_exists);
  EXPECT_EQ(*network_->published(), (std::map<std::uint16_t, Target>{{20001, {u1, 80}}}));
}

TEST_F(HostNetworkTest, EveryPublishedPortIsListed) {
  std::map<std::uint16_t, Target> wanted;
  EXPECT_EQ(*network_->published(), wanted);
  for (std::uint16_t port = 20000; port < 20020; ++port) {
    const Target target{Ipv4::of(10, 88, 2, static_cast<std::uint8_t>(port - 19999)), 8080};
    OK(network_->publish(port, target));
    wanted[port] = target;
  }
  EXPECT_EQ(*network_->published(), wanted);
}

TEST_F(HostNetworkTest, OpeningAgainKeepsWhatRuns) {
  MUST(const os::Netns instance, network_->make_instance(u1));
  OK(network_->publish(20001, {u1, 80}));
  OK(network_->publish(20002, {u2, 8080}));
  MUST(const os::Fd listener, listen_in(instance, "0.0.0.0", 80));
  MUST(const os::Fd connection, connect_in(client_, host_address, 20001));
  MUST(const testing::Accepted accepted, accept_one(listener));

  MUST(HostNetwork again, os::run_in(host_, [] { return HostNetwork::open(); }));
  EXPECT_TRUE(passes(connection, accepted.fd));
  EXPECT_TRUE(connect_in(client_, host_address, 20001));
  EXPECT_EQ(*again.published(), (std::map<std::uint16_t, Target>{{20001, {u1, 80}}, {20002, {u2, 8080}}}));
  MUST(const std::string rules, nft(host_, "list chain ip yado prerouting"));
  EXPECT_EQ(rules.find("dnat"), rules.rfind("dnat ")) << rules;
}

TEST_F(HostNetworkTest, AnInstanceReachesAnotherHostUnderItsHostsAddress) {
  MUST(const os::Netns instance, network_->make_instance(u1));
  MUST(const os::Fd listener, listen_in(client_, "0.0.0.0", 5432));
  MUST(const os::Fd connection, connect_in(instance, client_address, 5432));
  MUST(const testing::Accepted accepted, accept_one(listener));
  EXPECT_EQ(accepted.peer, host_address);
  EXPECT_TRUE(passes(accepted.fd, connection));

  sockaddr_in own{};
  socklen_t size = sizeof own;
  ::getsockname(connection.get(), reinterpret_cast<sockaddr*>(&own), &size);
  EXPECT_EQ(ntohl(own.sin_addr.s_addr), instance_address.value);
}

TEST_F(HostNetworkTest, InstancesWithOneFixedAddressStandSideBySide) {
  MUST(const os::Netns first, network_->make_instance(u1));
  MUST(const os::Netns second, network_->make_instance(u2));
  OK(network_->publish(20001, {u1, 80}));
  OK(network_->publish(20002, {u2, 80}));
  MUST(const os::Fd one, listen_in(first, "10.87.0.2", 80));
  MUST(const os::Fd two, listen_in(second, "10.87.0.2", 80));
  MUST(const os::Fd connection, connect_in(client_, host_address, 20002));
  MUST(const testing::Accepted accepted, accept_one(two));
  EXPECT_TRUE(passes(connection, accepted.fd));
}

TEST_F(HostNetworkTest, PublishedPortsAreReachedFromTheHostAndFromInstances) {
  MUST(const os::Netns first, network_->make_instance(u1));
  MUST(const os::Netns second, network_->make_instance(u2));
  OK(network_->publish(20001, {u1, 80}));
  MUST(const os::Fd listener, listen_in(first, "0.0.0.0", 80));
  // Machines differ in whether bridged frames pass the translation rules too.
  for (const char* filter_bridged : {"0", "1"}) {
    OK(set_sysctls(host_, {{"net/bridge/bridge-nf-call-iptables", filter_bridged, true}}));
    for (const os::Netns* from : std::initializer_list<const os::Netns*>{&host_, &second, &first}) {
      SCOPED_TRACE(fmt::format("{} {}", filter_bridged,
                               from == &host_    ? "host"
                               : from == &second ? "second"
                                                 : "first"));
      MUST(const os::Fd connection, connect_in(*from, host_address, 20001));
      MUST(const testing::Accepted accepted, accept_one(listener));
      EXPECT_TRUE(passes(accepted.fd, connection));
    }
  }
  MUST(const os::Fd itself, connect_in(first, u1.str(), 80));
  MUST(const testing::Accepted accepted, accept_one(listener));
  EXPECT_TRUE(passes(accepted.fd, itself));
}

TEST_F(HostNetworkTest, AnAddressCanBeGivenOutAgainAtOnce) {
  for (int round = 0; round < 3; ++round) {
    MUST(const os::Netns instance, network_->make_instance(u1));
    OK(network_->publish(20001, {u1, 80}));
    MUST(const os::Fd listener, listen_in(instance, "0.0.0.0", 80));
    EXPECT_TRUE(connect_in(client_, host_address, 20001));
  }
}

TEST_F(HostNetworkTest, DisconnectTakesTheLinkDownAndMayBeRepeated) {
  MUST(const os::Netns instance, network_->make_instance(u1));
  MUST(Rtnl host, Rtnl::open(host_));
  EXPECT_TRUE(host.has_link("yv0101"));
  OK(network_->disconnect(u1));
  EXPECT_FALSE(host.has_link("yv0101"));
  OK(network_->disconnect(u1));
}

TEST_F(HostNetworkTest, AnOrdinaryUserInsideMayBindPort80) {
  MUST(const os::Netns instance, network_->make_instance(u1));
  const pid_t child = ::fork();
  if (child == 0) {
    if (!instance.enter() || ::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    sockaddr_in where{};
    where.sin_family = AF_INET;
    where.sin_port = htons(80);
    const os::Fd fd(::socket(AF_INET, SOCK_STREAM, 0));
    ::_exit(::bind(fd.get(), reinterpret_cast<sockaddr*>(&where), sizeof where) == 0 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

/// Whatever comes to a link, with its Ethernet header.
Result<os::Fd> watch_in(const os::Netns& netns, const std::string& link) {
  return os::run_in(netns, [&]() -> Result<os::Fd> {
    os::Fd fd(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(ETH_P_ALL)));
    sockaddr_ll where{};
    where.sll_family = AF_PACKET;
    where.sll_protocol = htons(ETH_P_ALL);
    where.sll_ifindex = static_cast<int>(::if_nametoindex(link.c_str()));
    if (!fd.valid() || ::bind(fd.get(), reinterpret_cast<const sockaddr*>(&where), sizeof where) != 0) return fail_errno("watch " + link);
    const timeval limit{testing::hang_ms / 1000, 0};
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return fd;
  });
}

/// As long as it is kept, the kernel tries.
Result<os::Fd> call_from(const os::Netns& netns, const std::string& address, std::uint16_t port) {
  return os::run_in(netns, [&]() -> Result<os::Fd> {
    socklen_t size = 0;
    const sockaddr_in6 where = testing::endpoint(address, port, size);
    os::Fd fd(::socket(where.sin6_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&where), size) != 0 && errno != EINPROGRESS) return fail_errno("connect");
    return fd;
  });
}

/// ARP is given up after 3 s, which a guest that was just restored on a busy host may need: nobody asks it for what is known.
TEST_F(HostNetworkTest, AGuestThatCannotAnswerYetIsSentToAllTheSame) {
  MUST(const os::Netns instance, network_->make_instance(u1));
  MUST(const os::Netns guest, os::Netns::create());
  OK(give_address_to_guest(instance));
  OK(give_address_to_guest(instance));
  MUST(Rtnl inside, Rtnl::open(instance));
  MUST(Rtnl beyond, Rtnl::open(guest));
  OK(inside.add_veth({"card", {}}, {"eth0", guest_mac()}, guest));
  OK(inside.set_master("card", guest_bridge));
  OK(beyond.set_up("eth0"));
  MUST(const os::Fd frames, watch_in(guest, "eth0"));
  OK(inside.set_up("card"));
  MUST(const os::Fd caller, call_from(host_, u1.str(), 80));
  const auto next = [&]() -> std::optional<ethhdr> {
    ethhdr frame{};
    if (::recv(frames.get(), &frame, sizeof frame, 0) != sizeof frame) return std::nullopt;
    return frame;
  };
  auto frame = next();
  const auto is_for_groups = [](const ethhdr& one) { return (one.h_dest[0] & 1) != 0 && ntohs(one.h_proto) != ETH_P_ARP; };
  while (frame && is_for_groups(*frame)) frame = next();  // that the kernel sends of its own accord
  ASSERT_TRUE(frame) << std::strerror(errno);
  EXPECT_EQ(ntohs(frame->h_proto), ETH_P_IP) << "it was asked where it is";
  EXPECT_EQ(std::memcmp(frame->h_dest, guest_mac().bytes.data(), ETH_ALEN), 0);
}

TEST_F(HostNetworkTest, TheLoopbackInsideSpeaksIpv6) {
  MUST(const os::Netns instance, network_->make_instance(u1));
  MUST(const os::Fd listener, listen_in(instance, "::1", 8000));
  EXPECT_TRUE(connect_in(instance, "::1", 8000));
}

}  // namespace
}  // namespace yado::net
