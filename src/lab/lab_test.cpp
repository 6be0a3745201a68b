// Real namespaces, processes and TCP. Nothing waits for luck: what must happen is waited for, with a bound against
// hanging; what must not happen is looked for after something later has been seen.

#include "lab/lab.hpp"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "net/host_network.hpp"
#include "net/testing.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"

namespace yado::lab {
namespace {

namespace fs = std::filesystem;
using net::testing::accept_one;
using net::testing::connect_in;
using net::testing::listen_in;
using net::testing::passes;

#define MUST(declaration, expression)                                                       \
  auto YADO_CONCAT(must_, __LINE__) = (expression);                                         \
  ASSERT_TRUE(YADO_CONCAT(must_, __LINE__)) << YADO_CONCAT(must_, __LINE__).error().text(); \
  declaration = std::move(*YADO_CONCAT(must_, __LINE__))
#define OK(expression)                    \
  do {                                    \
    const auto ok = (expression);         \
    ASSERT_TRUE(ok) << ok.error().text(); \
  } while (false)

/// How long a test looks at a silence: many round trips on a cable of this lab, and no more.
constexpr int silence_ms = 60;
const HostId h1("h1"), h2("h2");

/// Unique on the machine, so that tests may run beside each other and beside labs of users.
std::string unique(const std::string& name) { return fmt::format("test-{}-{}", name, ::getpid()); }

SpawnOptions shell(const std::string& command) {
  return {{"/bin/sh", "-c", command}, {"PATH=/usr/bin:/bin"}, {}, "/", {}};
}

bool has_answer(const os::Fd& connection) {
  pollfd waiting{connection.get(), POLLIN | POLLHUP | POLLERR, 0};
  return ::poll(&waiting, 1, silence_ms) != 0;
}

std::vector<fs::path> cgroups_named(const std::string& lab) {
  std::vector<fs::path> found;
  std::vector<fs::path> tops = {"/sys/fs/cgroup"};
  for (const auto& entry : fs::directory_iterator("/sys/fs/cgroup")) tops.push_back(entry.path());
  for (const fs::path& top : tops)
    if (fs::exists(top / cgroup_of(lab))) found.push_back(top / cgroup_of(lab));
  return found;
}

/// Of a process of a lab host: the host's init.
pid_t parent_of(pid_t pid) {
  const std::string status = os::read_text(fmt::format("/proc/{}/status", pid)).value_or("");
  const auto at = status.find("PPid:");
  return at == std::string::npos ? -1 : std::atoi(status.c_str() + at + 5);
}

class LabTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "needs root";
    char path[] = "/tmp/yado-lab-test-XXXXXX";
    ASSERT_NE(::mkdtemp(path), nullptr);
    run_directory_ = path;
  }
  void TearDown() override {
    // Whatever the test did: nothing may be left of any lab.
    if (!run_directory_.empty()) {
      EXPECT_TRUE(fs::is_empty(run_directory_));
      fs::remove_all(run_directory_);
    }
  }
  LabOptions options(const std::string& name, std::uint32_t hosts = 2) {
    LabOptions made;
    made.name = unique(name);
    made.hosts = hosts;
    made.run_directory = run_directory_;
    return made;
  }

  fs::path run_directory_;
};

/// A connection from the front to a listener in h1 that is held by a process of h1.
struct Conversation {
  HostProcess server;
  os::Fd client;
};

/// The server answers every byte with the same byte, and nothing of it lives outside the host.
Result<Conversation> converse(Lab& lab, const HostId& host, std::uint16_t port) {
  YADO_ASSIGN(const os::Netns* inside, lab.netns(host), "converse");
  YADO_ASSIGN(os::Fd listener, listen_in(*inside, "0.0.0.0", port), "converse");
  YADO_ASSIGN(const os::Netns* front, lab.netns(Lab::front()), "converse");
  YADO_ASSIGN(os::Fd client, connect_in(*front, lab.address(host).str(), port), "converse");
  YADO_ASSIGN(net::testing::Accepted accepted, accept_one(listener), "converse");
  SpawnOptions cat{{"/bin/cat"}, {}, {}, "/", {{accepted.fd.get(), 0}, {accepted.fd.get(), 1}, {listener.get(), 3}}};
  YADO_ASSIGN(HostProcess server, lab.spawn(host, cat), "converse");
  return Conversation{std::move(server), std::move(client)};
}

TEST_F(LabTest, NonsenseIsRefused) {
  LabOptions wrong = options("bad");
  wrong.name = "Not A Name";
  EXPECT_EQ(Lab::create(wrong).error().code, Errc::invalid_argument);
  EXPECT_EQ(Lab::create(options("none", 0)).error().code, Errc::invalid_argument);
  EXPECT_EQ(Lab::create(options("many", 201)).error().code, Errc::invalid_argument);
}

TEST_F(LabTest, WithoutRootTheErrorSaysPermission) {
  const LabOptions wanted = options("user");
  const pid_t child = ::fork();
  if (child == 0) {
    if (::setresuid(65534, 65534, 65534) != 0) ::_exit(2);
    const auto made = Lab::create(wanted);
    ::_exit(!made && made.error().code == Errc::permission ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

TEST_F(LabTest, ASecondLabOfTheSameNameIsRefusedAndHarmless) {
  MUST(Lab lab, Lab::create(options("same")));
  const auto second = Lab::create(options("same"));
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, Errc::already_exists) << second.error().text();
  MUST(const Conversation talk, converse(lab, h1, 7));
  EXPECT_TRUE(passes(talk.client, talk.client));
}

TEST_F(LabTest, ALabThatCannotBeMadeLeavesNothing) {
  LabOptions wanted = options("half");
  wanted.link_bits_per_second = 1;  // refused when the first link is shaped: the switch and directories stand then
  EXPECT_EQ(Lab::create(wanted).error().code, Errc::invalid_argument);
  EXPECT_EQ(cgroups_named(wanted.name), std::vector<fs::path>{});
}

TEST_F(LabTest, TwoLabsRunSideBySideWithTheSameAddresses) {
  MUST(Lab one, Lab::create(options("one", 1)));
  MUST(Lab two, Lab::create(options("two", 1)));
  MUST(const Conversation in_one, converse(one, h1, 7));
  MUST(const Conversation in_two, converse(two, h1, 7));
  OK(one.host_silent(h1));
  EXPECT_TRUE(passes(in_two.client, in_two.client));
}

TEST_F(LabTest, ProgramsRunInsideTheirHost) {
  MUST(Lab lab, Lab::create(options("inside", 1)));
  const std::string log = lab.state_directory(h1) / "log";
  SpawnOptions program =
      shell("hostname; ls -d /proc/[0-9]* | wc -l; tail -n +3 /proc/net/dev | wc -l; echo $WORD; pwd");
  program.environment.push_back("WORD=hello");
  program.log_file = log;
  program.directory = lab.state_directory(h1);
  MUST(HostProcess process, lab.spawn(h1, program));
  MUST(const auto status, process.wait(10s));
  ASSERT_TRUE(status);
  EXPECT_TRUE(status->success()) << status->text();
  std::istringstream lines(*os::read_text(log));
  std::string hostname, word, directory;
  int processes = 0, links = 0;
  lines >> hostname >> processes >> links >> word >> directory;
  EXPECT_EQ(hostname, "h1");
  EXPECT_LE(processes, 5);  // init, the shell, and what the pipe starts
  EXPECT_EQ(links, 2);      // lo and eth0
  EXPECT_EQ(word, "hello");
  EXPECT_EQ(directory, lab.state_directory(h1));
}

TEST_F(LabTest, ExitsSignalsAndMissingProgramsAreTold) {
  MUST(Lab lab, Lab::create(options("exits", 1)));
  MUST(HostProcess failing, lab.spawn(h1, shell("exit 7")));
  EXPECT_EQ(*failing.wait(10s), (os::ExitStatus{7, 0}));
  MUST(HostProcess sleeping, lab.spawn(h1, shell("exec sleep 1000")));
  EXPECT_EQ(*sleeping.wait(0s), std::nullopt);
  OK(sleeping.send(SIGTERM));
  EXPECT_EQ(*sleeping.wait(10s), (os::ExitStatus{0, SIGTERM}));
  EXPECT_EQ(lab.spawn(h1, {{"/no/such/program"}, {}, {}, "/", {}}).error().code, Errc::not_found);
  EXPECT_EQ(lab.spawn(h1, {}).error().code, Errc::invalid_argument);
  EXPECT_EQ(lab.spawn(HostId("h9"), shell("true")).error().code, Errc::not_found);
}

TEST_F(LabTest, LinksJoinHostsAndFront) {
  MUST(Lab lab, Lab::create(options("links")));
  for (const HostId& from : {Lab::front(), h1})
    for (const HostId& to : {h1, h2}) {
      SCOPED_TRACE(from.str() + " to " + to.str());
      MUST(const os::Fd listener, listen_in(**lab.netns(to), "0.0.0.0", 80));
      MUST(const os::Fd connection, connect_in(**lab.netns(from), lab.address(to).str(), 80));
    }
  const auto answer = lab.run_in_front([&] { return os::Netns::current()->inode(); });
  EXPECT_EQ(*answer, *(*lab.netns(Lab::front()))->inode());
}

TEST_F(LabTest, ALinkIsNotFasterThanItsRate) {
  LabOptions wanted = options("rate", 1);
  wanted.link_bits_per_second = 8'000'000;
  MUST(Lab lab, Lab::create(wanted));
  MUST(const os::Fd listener, listen_in(**lab.netns(h1), "0.0.0.0", 80));
  MUST(const os::Fd client, connect_in(**lab.netns(Lab::front()), lab.address(h1).str(), 80));
  MUST(const net::testing::Accepted server, accept_one(listener));

  const std::string data(256 << 10, 'y');
  const Instant start = os::now();
  std::thread sender([&] { EXPECT_TRUE(os::write_all(server.fd, data)); });
  std::size_t got = 0;
  char buffer[65536];
  for (pollfd waiting{client.get(), POLLIN, 0}; got < data.size() && ::poll(&waiting, 1, net::testing::hang_ms) == 1;)
    got += static_cast<std::size_t>(std::max<ssize_t>(0, ::recv(client.get(), buffer, sizeof buffer, 0)));
  const nanoseconds took = os::now() - start;
  sender.join();
  ASSERT_EQ(got, data.size());
  // 262 ms of a megabyte per second, less what the bucket holds at first. However slow the machine is: not sooner.
  EXPECT_GE(took, 200ms);
}

TEST_F(LabTest, InstancesOfTwoHostsReachEachOtherAndAreReachedFromTheFront) {
  MUST(Lab lab, Lab::create(options("instances")));
  MUST(net::HostNetwork one, os::run_in(**lab.netns(h1), [] { return net::HostNetwork::open(); }));
  MUST(net::HostNetwork two, os::run_in(**lab.netns(h2), [] { return net::HostNetwork::open(); }));
  const net::Ipv4 address = net::Ipv4::of(10, 88, 1, 1);  // the same on both hosts
  MUST(const os::Netns caller, one.make_instance(address));
  MUST(const os::Netns server, two.make_instance(address));
  OK(two.publish(20001, {address, 8000}));
  MUST(const os::Fd listener, listen_in(server, net::instance_address.str(), 8000));
  for (const os::Netns* from : std::initializer_list<const os::Netns*>{&caller, *lab.netns(Lab::front())}) {
    MUST(const os::Fd connection, connect_in(*from, lab.address(h2).str(), 20001));
    MUST(const net::testing::Accepted accepted, accept_one(listener));
    EXPECT_TRUE(passes(connection, accepted.fd));
    EXPECT_EQ(accepted.peer, lab.address(from == &caller ? h1 : Lab::front()).str());
  }
}

TEST_F(LabTest, ACutIsSilentAndHealingBringsBackWhatWasSent) {
  MUST(Lab lab, Lab::create(options("cut")));
  MUST(const Conversation talk, converse(lab, h1, 7));
  OK(lab.cut(h1));
  const auto knock = connect_in(**lab.netns(Lab::front()), lab.address(h1).str(), 7, silence_ms);
  ASSERT_FALSE(knock);
  EXPECT_EQ(knock.error().code, Errc::timed_out);
  EXPECT_FALSE(passes(talk.client, talk.client, silence_ms));
  EXPECT_TRUE(converse(lab, h2, 7));  // the others are not touched
  OK(lab.heal(h1));
  EXPECT_TRUE(has_answer(talk.client) || passes(talk.client, talk.client));
}

TEST_F(LabTest, OneWayFaultsDropOneWay) {
  MUST(Lab lab, Lab::create(options("oneway", 1)));
  const os::Netns& front = **lab.netns(Lab::front());
  for (const bool into : {true, false}) {
    SCOPED_TRACE(into ? "in" : "out");
    MUST(const os::Fd listener, listen_in(**lab.netns(h1), "0.0.0.0", into ? 81 : 82));
    MUST(const os::Fd client, connect_in(front, lab.address(h1).str(), into ? 81 : 82));
    MUST(const net::testing::Accepted server, accept_one(listener));
    OK(into ? lab.one_way_in(h1) : lab.one_way_out(h1));
    // The passing direction first: what it carries arrives, though it is never acknowledged.
    EXPECT_EQ(passes(server.fd, client, silence_ms), into);
    EXPECT_EQ(passes(client, server.fd, silence_ms), !into);
    OK(lab.heal(h1));
    EXPECT_TRUE(connect_in(front, lab.address(h1).str(), into ? 81 : 82));
  }
}

TEST_F(LabTest, ALossyLinkIsSlowAndNothingElse) {
  MUST(Lab lab, Lab::create(options("lossy")));
  MUST(Conversation talk, converse(lab, h1, 7));
  OK(lab.lossy(h1));
  const auto sent_again = [&] {
    tcp_info info{};
    socklen_t size = sizeof info;
    EXPECT_EQ(::getsockopt(talk.client.get(), IPPROTO_TCP, TCP_INFO, &info, &size), 0);
    return info.tcpi_total_retrans;
  };
  for (int i = 0; i < 1000 && sent_again() == 0; ++i) ASSERT_TRUE(passes(talk.client, talk.client)) << i;
  EXPECT_GT(sent_again(), 0u);
  OK(lab.heal(h1));
  const auto before = sent_again();
  for (int i = 0; i < 100; ++i) ASSERT_TRUE(passes(talk.client, talk.client)) << i;
  EXPECT_LT(sent_again() - before, 10u) << "a busy machine may repeat some; a lossy link would about 20";
}

TEST_F(LabTest, ASilentHostSendsNeitherRstNorFinUntilItIsBootedAgain) {
  MUST(Lab lab, Lab::create(options("silent")));
  MUST(Conversation talk, converse(lab, h1, 7));
  MUST(HostProcess survivor, lab.spawn(h2, shell("exec sleep 1000")));
  ASSERT_TRUE(passes(talk.client, talk.client));
  OK(lab.host_silent(h1));

  EXPECT_FALSE(lab.alive(h1));
  EXPECT_EQ(*talk.server.wait(10s), (os::ExitStatus{0, SIGKILL}));
  EXPECT_EQ(*survivor.wait(0s), std::nullopt);
  EXPECT_FALSE(has_answer(talk.client));
  EXPECT_FALSE(passes(talk.client, talk.client, silence_ms));
  OK(lab.heal(h1));  // a cable alone makes no dead machine talk
  EXPECT_FALSE(has_answer(talk.client));
  EXPECT_EQ(lab.spawn(h1, shell("true")).error().code, Errc::conflict);

  OK(lab.boot(h1));
  pollfd waiting{talk.client.get(), POLLIN, 0};
  ASSERT_EQ(::poll(&waiting, 1, net::testing::hang_ms), 1);
  char byte = 0;
  EXPECT_EQ(::recv(talk.client.get(), &byte, 1, 0), -1);
  EXPECT_EQ(errno, ECONNRESET);
}

TEST_F(LabTest, ARebootKeepsTheDiskOrWipesIt) {
  for (const std::uint64_t disk_bytes : {0, 1 << 20}) {
    SCOPED_TRACE(disk_bytes);
    LabOptions wanted = options("reboot", 1);
    wanted.disk_bytes = disk_bytes;
    MUST(Lab lab, Lab::create(wanted));
    const std::string file = lab.state_directory(h1) / "dir" / "file";
    const auto exits_with = [&](const std::string& command) {
      auto process = lab.spawn(h1, shell(command));
      return process ? (*process->wait(10s))->code : -1;
    };
    EXPECT_EQ(exits_with(fmt::format("mkdir {0}; echo x >{0}/file", lab.state_directory(h1).native() + "/dir")), 0);
    EXPECT_EQ(lab.boot(h1).error().code, Errc::conflict);
    OK(lab.host_silent(h1));
    OK(lab.boot(h1));
    EXPECT_EQ(exits_with("test -e " + file), 0);
    OK(lab.host_silent(h1));
    OK(lab.boot(h1, Disk::wipe));
    EXPECT_EQ(exits_with("test -e " + file), 1);
    EXPECT_TRUE(converse(lab, h1, 7));
  }
}

TEST_F(LabTest, AFrozenHostsKernelAnswersAndItsProcessesDoNot) {
  MUST(Lab lab, Lab::create(options("freeze", 1)));
  MUST(const Conversation talk, converse(lab, h1, 7));
  OK(lab.freeze(h1));
  EXPECT_TRUE(connect_in(**lab.netns(Lab::front()), lab.address(h1).str(), 7));
  EXPECT_FALSE(passes(talk.client, talk.client, silence_ms));
  EXPECT_EQ(lab.spawn(h1, shell("true")).error().code, Errc::conflict);
  OK(lab.thaw(h1));
  EXPECT_TRUE(has_answer(talk.client) || passes(talk.client, talk.client));
  OK(lab.freeze(h1));  // and a frozen host can die, here and at the end of the lab
}

TEST_F(LabTest, AFullDiskIsFullForItsHostAlone) {
  LabOptions wanted = options("disk");
  wanted.disk_bytes = 1 << 20;
  MUST(Lab lab, Lab::create(wanted));
  const auto writes = [&](const HostId& host) {
    auto process = lab.spawn(host, shell("echo x > " + (lab.state_directory(host) / "file").native()));
    return process && (*process->wait(10s))->success();
  };
  OK(lab.fill_disk(h1));
  EXPECT_FALSE(writes(h1));
  EXPECT_TRUE(writes(h2));
  OK(lab.free_disk(h1));
  EXPECT_TRUE(writes(h1));
  EXPECT_EQ(lab.fill_disk(Lab::front()).error().code, Errc::unsupported);
}

TEST_F(LabTest, ASocketOfTheUsersLoopbackWorksInTheFront) {
  MUST(Lab lab, Lab::create(options("loopback", 1)));
  MUST(const os::Fd listener, listen_on_loopback(0));
  sockaddr_in where{};
  socklen_t size = sizeof where;
  ::getsockname(listener.get(), reinterpret_cast<sockaddr*>(&where), &size);
  MUST(const os::Fd client, connect_in(*os::Netns::current(), "127.0.0.1", ntohs(where.sin_port)));
  MUST(const net::testing::Accepted accepted, accept_one(listener));
  SpawnOptions cat{{"/bin/cat"}, {}, {}, "/", {{accepted.fd.get(), 0}, {accepted.fd.get(), 1}}};
  MUST(const HostProcess server, lab.spawn(Lab::front(), cat));
  EXPECT_TRUE(passes(client, client));
}

TEST_F(LabTest, NothingIsLeftWhenALabEnds) {
  const LabOptions wanted = options("end");
  std::optional<HostProcess> daemon;
  {
    MUST(Lab lab, Lab::create(wanted));
    MUST(HostProcess process, lab.spawn(h1, shell("setsid sleep 1000 & exec sleep 1000")));
    daemon.emplace(std::move(process));
    EXPECT_FALSE(cgroups_named(wanted.name).empty());
  }
  EXPECT_EQ(*daemon->wait(0s), (os::ExitStatus{0, SIGKILL}));
  EXPECT_EQ(cgroups_named(wanted.name), std::vector<fs::path>{});
}

TEST_F(LabTest, KillingTheLabsProcessEndsEverythingAndTheNextStartSweeps) {
  const LabOptions wanted = options("killed");
  MUST(os::Pipe report, os::make_pipe());
  const pid_t holder = ::fork();
  if (holder == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    auto lab = Lab::create(wanted);
    auto process = lab->spawn(h1, shell("exec sleep 1000"));
    auto frozen = lab->spawn(h2, shell("exec sleep 1000"));
    (void)lab->freeze(h2);
    const pid_t pids[] = {process->pid(), parent_of(process->pid()), frozen->pid(), parent_of(frozen->pid())};
    const std::uint64_t inode = *(*lab->netns(h1))->inode();
    (void)!::write(report.write.get(), pids, sizeof pids);
    (void)!::write(report.write.get(), &inode, sizeof inode);
    for (;;) ::pause();
  }
  report.write.reset();  // so that a holder that fails is seen as an end of file
  pid_t pids[4] = {};
  std::uint64_t network = 0;
  ASSERT_EQ(::read(report.read.get(), pids, sizeof pids), static_cast<ssize_t>(sizeof pids));
  ASSERT_EQ(::read(report.read.get(), &network, sizeof network), static_cast<ssize_t>(sizeof network));
  std::vector<os::Pidfd> watched;
  for (const pid_t pid : pids) {
    MUST(os::Pidfd process, os::Pidfd::open(pid));
    watched.push_back(std::move(process));
  }
  ::kill(holder, SIGKILL);
  ::waitpid(holder, nullptr, 0);
  for (const os::Pidfd& process : watched) EXPECT_TRUE(*process.ended_within(10s));
  // No process of this machine is in the host's network any more, so nothing holds it.
  for (const auto& entry : fs::directory_iterator("/proc")) {
    struct stat info {};
    if (::stat((entry.path() / "ns/net").c_str(), &info) == 0) {
      EXPECT_NE(info.st_ino, network) << entry.path();
    }
  }
  EXPECT_FALSE(fs::is_empty(run_directory_));
  { MUST(const Lab next, Lab::create(options("sweeper", 1))); }
  EXPECT_EQ(cgroups_named(wanted.name), std::vector<fs::path>{});
}

}  // namespace
}  // namespace yado::lab
