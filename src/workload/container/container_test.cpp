#include "workload/container/container.hpp"

#include <csignal>
#include <fstream>
#include <thread>

#include <gtest/gtest.h>

#include "base/testing.hpp"
#include "workload/container/disk_archive.hpp"
#include "workload/container/prepare_root.hpp"
#include "workload/container/startup.hpp"
#include "workload/container/testing.hpp"

namespace yado::container {
namespace {

namespace fs = std::filesystem;
using namespace testing;


class ContainerTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string reason = why_not(); !reason.empty()) GTEST_SKIP() << reason;
    auto ground = Ground::make();
    ASSERT_OK(ground);
    ground_.emplace(std::move(*ground));
    auto network = make_network();
    ASSERT_OK(network);
    network_ = std::move(*network);
  }

  Result<Container> start(const ContainerSpec& spec, const std::string& name = "a", std::uint16_t port = 0) {
    return Container::start(spec, ground_->place(name, network_.fd(), port));
  }
  bool group_is_gone(const std::string& name = "a") { return !os::Cgroup::open(ground_->cgroup(name)).has_value(); }

  /// The last number the counter printed, -1: none.
  static int last_count(const std::string& text) {
    const std::size_t at = text.rfind("count ", text.rfind('\n'));
    return at == std::string::npos ? -1 : std::atoi(text.c_str() + at + 6);
  }
  static int first_count(const std::string& text) {
    const std::size_t at = text.find("count ");
    return at == std::string::npos ? -1 : std::atoi(text.c_str() + at + 6);
  }

  std::optional<Ground> ground_;
  os::Netns network_;
};

TEST_F(ContainerTest, MissingCommandIsAnErrorOfTheStartAndLeavesNothing) {
  ContainerSpec spec;
  spec.command = {"no-such-program"};
  const auto started = start(spec);
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::not_found);
  EXPECT_NE(started.error().message.find("no-such-program"), std::string::npos) << started.error().text();
  EXPECT_TRUE(group_is_gone());
}

TEST_F(ContainerTest, MissingRootNamesThePath) {
  Place place = ground_->place("a", network_.fd());
  place.root = "/no/such/root";
  const auto started = Container::start(counter(), place);
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::not_found);
  EXPECT_NE(started.error().message.find("/no/such/root"), std::string::npos);
}

TEST_F(ContainerTest, MissingWorkingDirectoryIsAnErrorOfTheStart) {
  ContainerSpec spec = counter();
  spec.working_directory = "/no/such/directory";
  const auto started = start(spec);
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::not_found);
  EXPECT_TRUE(group_is_gone());
}

TEST_F(ContainerTest, WhatItPrintsAndItsExitStatusComeOut) {
  auto started = start(python("import os,sys\nprint('to out', os.getpid())\nprint('to err', file=sys.stderr)\nsys.exit(7)"));
  ASSERT_OK(started);
  EXPECT_NE(read_until(*started, "to err").find("to out 1\n"), std::string::npos);
  ASSERT_TRUE(started->process().ended_within(hang).value_or(false));
  const auto ended = started->reap();
  ASSERT_OK(ended);
  EXPECT_EQ(**ended, (os::ExitStatus{7, 0}));
}

TEST_F(ContainerTest, UserAndRightsAreThoseOfTheSpec) {
  ContainerSpec spec = python(
      "import os\nprint(os.getuid(), os.getgid(), os.environ['COLOUR'])\n"
      "print(open('/proc/self/status').read())\n"
      "try: os.mkdir('/mine')\nexcept PermissionError: print('refused')\nprint('end')");
  spec.uid = 33;
  spec.gid = 34;
  spec.environment["COLOUR"] = "green";
  auto started = start(spec);
  ASSERT_OK(started);
  const std::string text = read_until(*started, "end\n");
  EXPECT_NE(text.find("33 34 green\n"), std::string::npos) << text;
  EXPECT_NE(text.find("NoNewPrivs:\t1"), std::string::npos);
  EXPECT_NE(text.find("Seccomp:\t2"), std::string::npos);
  EXPECT_NE(text.find("CapEff:\t0000000000000000"), std::string::npos);
  EXPECT_NE(text.find("refused\n"), std::string::npos);
}

TEST_F(ContainerTest, RootInsideHasNoPowerOutsideAndWritesOnlyToItsOwnLayer) {
  auto started = start(python(
      "import os\nopen('/written','w').write('x')\n"
      "try: os.sethostname('other') if hasattr(os,'sethostname') else (_ for _ in ()).throw(PermissionError())\n"
      "except PermissionError: print('no hostname')\n"
      "import ctypes\nprint('unshare', ctypes.CDLL(None).unshare(0x10000000))\nprint('end')"));
  ASSERT_OK(started);
  const std::string text = read_until(*started, "end\n");
  EXPECT_NE(text.find("unshare -1"), std::string::npos) << text;
  EXPECT_FALSE(fs::exists("/written"));
  EXPECT_TRUE(fs::exists(ground_->directory() / "a/rw/upper/written"));
}

TEST_F(ContainerTest, BindMountsShowTheHostsFilesAndReadOnlyIsKept) {
  fs::create_directories(ground_->directory() / "shared");
  std::ofstream(ground_->directory() / "shared/file") << "shared content";
  ContainerSpec spec = python(
      "print(open('/mnt/in/deep/file').read())\n"
      "try: open('/mnt/in/deep/new','w')\nexcept OSError as e: print('refused', e.errno)\nprint('end')");
  spec.mounts = {{ground_->directory() / "shared", "/mnt/in/deep", true}};
  auto started = start(spec);
  ASSERT_OK(started);
  const std::string text = read_until(*started, "end\n");
  EXPECT_NE(text.find("shared content"), std::string::npos) << text;
  EXPECT_NE(text.find("refused 30"), std::string::npos) << text;  // EROFS
}

TEST_F(ContainerTest, ExecRunsInsideAndReturnsItsStatus) {
  auto started = start(counter());
  ASSERT_OK(started);
  auto pipe = os::make_pipe();
  ASSERT_OK(pipe);
  const auto done = started->exec({"/usr/bin/python3", "-c", "import os; print(os.uname().nodename); raise SystemExit(5)"},
                                  {.output = pipe->write.get()});
  ASSERT_OK(done);
  EXPECT_EQ(*done, (os::ExitStatus{5, 0}));
  char buffer[64]{};
  EXPECT_EQ(::read(pipe->read.get(), buffer, sizeof buffer), 2);
  EXPECT_STREQ(buffer, "a\n");
  const auto missing = started->exec({"no-such-program"}, {});
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, Errc::not_found);
}

TEST_F(ContainerTest, MemoryLimitKillsAndIsSeen) {
  ContainerSpec spec = python("print('begin')\nx=[]\nwhile True: x.append(bytearray(1<<20))");
  spec.memory_bytes = 64u << 20;
  auto started = start(spec);
  ASSERT_OK(started);
  ASSERT_TRUE(started->process().ended_within(hang).value_or(false));
  const auto ended = started->reap();
  ASSERT_OK(ended);
  EXPECT_EQ((*ended)->signal, SIGKILL);
  const auto use = started->stats();
  ASSERT_OK(use);
  EXPECT_GE(use->memory_limit_kills, 1u);
}

TEST_F(ContainerTest, FrozenItDoesNothingAndThawedItGoesOn) {
  auto started = start(counter());
  ASSERT_OK(started);
  read_until(*started, "count 5\n");
  ASSERT_OK(started->freeze());
  EXPECT_TRUE(started->frozen().value_or(false));
  const int before = last_count(read_until(*started, "never", 0s));
  const auto cpu = started->stats();
  // A hundred times its period: would it run, something would come.
  EXPECT_EQ(read_until(*started, "count", 300ms), "");
  EXPECT_EQ(started->stats()->cpu, cpu->cpu);
  ASSERT_OK(started->thaw());
  EXPECT_GE(first_count(read_until(*started, "\n")), before);
}

TEST_F(ContainerTest, StopLetsAProgramEndByItself) {
  auto started = start(python("import signal,sys,time\nsignal.signal(15, lambda *_: (print('bye'), sys.exit(3)))\n"
                              "print('ready')\nwhile True: time.sleep(1)"));
  ASSERT_OK(started);
  read_until(*started, "ready");
  const auto ended = started->stop(hang);
  ASSERT_OK(ended);
  EXPECT_EQ(*ended, (os::ExitStatus{3, 0}));
  EXPECT_NE(read_until(*started, "bye", 0s).find("bye"), std::string::npos);
}

TEST_F(ContainerTest, StopKillsWhatDoesNotListenAndWhatIsFrozen) {
  auto deaf = start(counter());
  ASSERT_OK(deaf);
  const auto killed = deaf->stop(hang);
  ASSERT_OK(killed);
  EXPECT_EQ(killed->signal, SIGKILL);
  auto frozen = start(python("import signal,time\nsignal.signal(15, lambda *_: None)\nprint('ready')\nwhile True: time.sleep(1)"), "b");
  ASSERT_OK(frozen);
  read_until(*frozen, "ready");
  ASSERT_OK(frozen->freeze());
  const auto killed_frozen = frozen->stop(hang);
  ASSERT_OK(killed_frozen);
  EXPECT_EQ(killed_frozen->signal, SIGKILL);
}

TEST_F(ContainerTest, NothingIsLeftWhenTheObjectIsGone) {
  {
    auto started = start(python("import os,time\nos.fork(); os.fork()\nprint('ready')\nwhile True: time.sleep(1)"));
    ASSERT_OK(started);
    read_until(*started, "ready");
    EXPECT_FALSE(group_is_gone());
  }
  EXPECT_TRUE(group_is_gone());
  std::ifstream mounts("/proc/self/mountinfo");
  const std::string text((std::istreambuf_iterator<char>(mounts)), {});
  EXPECT_EQ(text.find(ground_->directory().native() + "/a/"), std::string::npos) << text;
}

/// A master that kills (here: complains about) workers whose heart-beat is old, as gunicorn's does. Its worker waits in
/// select() with a relative time-out at the port, which Linux restarts with what was left of it before the freeze.
TEST_F(ContainerTest, AfterALongFreezeChildrenBeatBeforeTheirParentLooks) {
  auto started = start(python(
      "import os,select,socket,time,mmap\n"
      "beat=mmap.mmap(-1,8)\nimport struct\n"
      "s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind(('0.0.0.0',8000)); s.listen(8); s.setblocking(False)\n"
      "def now(): return time.clock_gettime(time.CLOCK_REALTIME)\n"
      "def tick(): beat[:]=struct.pack('d',now())\n"
      "tick()\n"
      "if os.fork()==0:\n"
      "  while True:\n"
      "    tick()\n"
      "    if select.select([s],[],[],0.4)[0]:\n"
      "      try: s.accept()\n"
      "      except BlockingIOError: pass\n"
      "print('ready')\n"
      "while True:\n"
      "  select.select([],[],[],0.1)\n"
      "  print('late' if now()-struct.unpack('d',beat[:])[0] > 0.8 else 'fine')"),
      "a", 8000);
  ASSERT_OK(started);
  read_until(*started, "fine");
  ASSERT_OK(started->freeze());
  std::this_thread::sleep_for(1500ms);  // the age of the freeze is what is tested
  ASSERT_OK(started->thaw());
  const std::string text = read_until(*started, "fine\nfine\nfine\n");
  EXPECT_EQ(text.find("late"), std::string::npos) << text;
}

TEST_F(ContainerTest, StartupIsCompleteWhenItListensAndIsQuiet) {
  auto started = start(python("import socket,time\ntime.sleep(0.1)\ns=socket.socket(); s.bind(('10.87.0.2',8000)); s.listen()\n"
                              "t=time.monotonic()\nwhile time.monotonic()<t+0.3: pass\nprint('quiet')\ntime.sleep(1000)"), "a", 8000);
  ASSERT_OK(started);
  const auto times = wait_startup(started->process(), started->cgroup(), 8000, 0ns, hang);
  ASSERT_OK(times);
  EXPECT_GT(times->settled, times->listening);
  // Busy after listening: it is not complete before that is over.
  EXPECT_NE(read_until(*started, "quiet", 0s).find("quiet"), std::string::npos);
  const auto late = wait_startup(started->process(), started->cgroup(), 8001, 0ns, 50ms);
  ASSERT_FALSE(late);
  EXPECT_EQ(late.error().code, Errc::timed_out);
}

TEST_F(ContainerTest, StartupThatEndsIsTheApplicationsError) {
  auto started = start(python("import time; time.sleep(0.05); raise SystemExit(1)"));
  ASSERT_OK(started);
  const auto times = wait_startup(started->process(), started->cgroup(), 8000, 0ns, hang);
  ASSERT_FALSE(times);
  EXPECT_EQ(times.error().code, Errc::application);
}

TEST_F(ContainerTest, WithoutCriuACheckpointSaysWhatToDoAndTheContainerRunsOn) {
  auto started = start(counter());
  ASSERT_OK(started);
  const auto done = started->checkpoint(ground_->directory(), ground_->directory(), Criu{});
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Errc::unsupported);
  EXPECT_NE(done.error().message.find("install-criu"), std::string::npos);
  EXPECT_FALSE(started->frozen().value_or(true));
}

class CheckpointTest : public ContainerTest {
 protected:
  void SetUp() override {
    ContainerTest::SetUp();
    if (IsSkipped() || HasFatalFailure()) return;
    criu_ = find_criu(ground_->directory());
    if (criu_.binary.empty()) GTEST_SKIP() << "needs a working CRIU named by YADO_CRIU: run tools/install-criu";
    image_.criu = ground_->directory() / "image/criu";
    image_.disk = ground_->directory() / "image/disk";
    fs::create_directories(image_.criu);
    fs::create_directories(image_.disk);
  }
  Result<Container> restore(const ContainerSpec& spec, const std::string& name, bool frozen) {
    auto network = make_network();
    if (!network) return std::unexpected(network.error());
    return Container::restore(spec, ground_->place(name, network->fd()), image_, criu_, frozen);
  }
  Criu criu_;
  ImageParts image_;
};

TEST_F(CheckpointTest, OneImageIsRestoredTwiceEachTimeFromWhereItStood) {
  const ContainerSpec spec = python(
      "import time,os\nos.makedirs('/var/mine'); open('/var/mine/file','w').write('kept'); os.remove('/etc/hostname')\n"
      "n=0\nwhile True:\n  os.write(1,b'count %d %s %d\\n'%(n,open('/var/mine/file','rb').read(),os.path.exists('/etc/hostname'))); n+=1; time.sleep(0.003)");
  auto started = start(spec);
  ASSERT_OK(started);
  std::string said = read_until(*started, "count 20 ");
  auto properties = started->checkpoint(image_.criu, image_.disk, criu_);
  ASSERT_OK(properties);
  image_.properties = *properties;
  EXPECT_TRUE(started->frozen().value_or(false));
  said += read_until(*started, "never", 0s);
  const int at = last_count(said);
  ASSERT_OK(started->thaw());
  EXPECT_EQ(first_count(read_until(*started, "\n")), at + 1);  // the original goes on
  ASSERT_OK(started->stop(0s));

  for (const char* name : {"b", "c"}) {
    auto again = restore(spec, name, false);
    ASSERT_OK(again);
    const std::string text = read_until(*again, "kept 0\n");
    EXPECT_EQ(first_count(text), at + 1) << text;
    EXPECT_NE(text.find("kept 0\n"), std::string::npos) << text;
  }
}

TEST_F(CheckpointTest, MountsAreThereAgainAlsoWhereTheContainersRootMayNotGo) {
  ::chmod(ground_->directory().c_str(), 0700);  // as an agent's directory is
  fs::create_directories(ground_->directory() / "shared");
  std::ofstream(ground_->directory() / "shared/file") << "shared";
  std::ofstream(ground_->directory() / "one") << "single";
  ContainerSpec spec = python(
      "import time,os\nn=0\nwhile True:\n  os.write(1,b'count %d %s %s\\n'%(n,open('/mnt/in/file','rb').read(),"
      "open('/srv/one','rb').read())); n+=1; time.sleep(0.003)");
  spec.mounts = {{ground_->directory() / "shared", "/mnt/in", true}, {ground_->directory() / "one", "/srv/one", true}};
  auto started = start(spec);
  ASSERT_OK(started);
  read_until(*started, "count 5 ");
  auto properties = started->checkpoint(image_.criu, image_.disk, criu_);
  ASSERT_OK(properties);
  image_.properties = *properties;
  ASSERT_OK(started->stop(0s));
  auto again = restore(spec, "b", false);
  ASSERT_OK(again);
  const std::string text = read_until(*again, "single\n");
  EXPECT_NE(text.find("shared single\n"), std::string::npos) << text;
}

TEST_F(CheckpointTest, RestoredFrozenNothingRunsUntilTheThaw) {
  auto started = start(counter());
  ASSERT_OK(started);
  read_until(*started, "count 5\n");
  auto properties = started->checkpoint(image_.criu, image_.disk, criu_);
  ASSERT_OK(properties);
  image_.properties = *properties;
  ASSERT_OK(started->stop(0s));
  auto again = restore(counter(), "b", true);
  ASSERT_OK(again);
  EXPECT_EQ(read_until(*again, "count", 200ms), "");
  ASSERT_OK(again->thaw());
  EXPECT_GE(first_count(read_until(*again, "\n")), 5);
}

TEST_F(CheckpointTest, TheMonotonicClockGoesOnWhereItStood) {
  const ContainerSpec spec = python("import time,os\nwhile True:\n  os.write(1,b'count %d\\n'%int(time.monotonic()*1000)); time.sleep(0.003)");
  auto started = start(spec);
  ASSERT_OK(started);
  std::string said = read_until(*started, "\n");
  auto properties = started->checkpoint(image_.criu, image_.disk, criu_);
  ASSERT_OK(properties);
  image_.properties = *properties;
  said += read_until(*started, "never", 0s);
  const int at_ms = last_count(said);
  ASSERT_OK(started->stop(0s));
  std::this_thread::sleep_for(2s);  // the age of the image is what is tested
  auto again = restore(spec, "b", true);
  ASSERT_OK(again);
  ASSERT_OK(again->thaw());
  const int then_ms = first_count(read_until(*again, "\n"));
  EXPECT_GE(then_ms, at_ms);
  EXPECT_LT(then_ms, at_ms + 1900) << "the two seconds between dump and restore are seen inside";
}

TEST_F(CheckpointTest, AFullDiskIsAnErrorAndTheContainerGoesOn) {
  auto started = start(python("import time\nx=b'x'*(8<<20)\nn=0\nwhile True:\n  print('count',n); n+=1; time.sleep(0.003)"));
  ASSERT_OK(started);
  read_until(*started, "count 5\n");
  const auto small = os::make_tmpfs(1u << 20);
  ASSERT_OK(small);
  const auto mounted = os::attach_mount(*small, image_.criu);
  ASSERT_OK(mounted);
  const auto done = started->checkpoint(image_.criu, image_.disk, criu_);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Errc::no_space) << done.error().text();
  ASSERT_OK(started->thaw());
  read_until(*started, "never", 0s);
  EXPECT_GE(first_count(read_until(*started, "\n")), 5);
}

TEST_F(CheckpointTest, AnOverrunKillsCriuAndTheContainerGoesOn) {
  auto started = start(counter());
  ASSERT_OK(started);
  read_until(*started, "count 5\n");
  criu_.limit = 1ms;
  const auto done = started->checkpoint(image_.criu, image_.disk, criu_);
  ASSERT_FALSE(done);
  EXPECT_EQ(done.error().code, Errc::timed_out) << done.error().text();
  ASSERT_OK(started->thaw());
  EXPECT_NE(read_until(*started, "count").find("count"), std::string::npos);
}

TEST_F(CheckpointTest, AnImageCutShortIsRefusedAndLeavesNothing) {
  auto started = start(counter());
  ASSERT_OK(started);
  auto properties = started->checkpoint(image_.criu, image_.disk, criu_);
  ASSERT_OK(properties);
  image_.properties = *properties;
  ASSERT_OK(started->stop(0s));
  for (const auto& entry : fs::directory_iterator(image_.criu))
    if (entry.path().filename().native().starts_with("core-")) fs::resize_file(entry.path(), 10);
  const auto again = restore(counter(), "b", false);
  ASSERT_FALSE(again);
  EXPECT_NE(again.error().message.find("log ends"), std::string::npos) << again.error().text();
  EXPECT_TRUE(group_is_gone("b"));
}

// ---- without root ----

class ArchiveTest : public ::testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/yado-test-XXXXXX";
    ASSERT_NE(::mkdtemp(name), nullptr);
    directory_ = name;
    for (const char* part : {"tree", "part", "out", "cache"}) fs::create_directories(directory_ / part);
  }
  void TearDown() override { fs::remove_all(directory_); }
  fs::path directory_;
};

TEST_F(ArchiveTest, ATreeComesBackWithLinksHolesAndModes) {
  const fs::path tree = directory_ / "tree";
  std::ofstream(tree / "file") << "content";
  fs::create_hard_link(tree / "file", tree / "second");
  fs::create_symlink("file", tree / "link");
  std::ofstream(tree / "sparse") << "end";
  fs::resize_file(tree / "sparse", 64u << 20);
  fs::permissions(tree / "file", fs::perms(0640));
  ASSERT_OK(pack_disk(tree, directory_ / "part"));
  EXPECT_LT(fs::file_size(directory_ / "part/upper.tar"), 1u << 20) << "the hole was written out";
  ASSERT_OK(unpack_disk(directory_ / "part", directory_ / "out"));
  EXPECT_EQ(fs::hard_link_count(directory_ / "out/second"), 2u);
  EXPECT_EQ(fs::read_symlink(directory_ / "out/link"), "file");
  EXPECT_EQ(fs::file_size(directory_ / "out/sparse"), 64u << 20);
  EXPECT_EQ(fs::status(directory_ / "out/file").permissions(), fs::perms(0640));
  EXPECT_EQ(os::read_text(directory_ / "out/second").value_or(""), "content");
}

TEST_F(ArchiveTest, ACutArchiveIsCorruptAndLeavesNoRoot) {
  std::ofstream(directory_ / "tree/file") << std::string(100'000, 'x');
  ASSERT_OK(pack_disk(directory_ / "tree", directory_ / "part"));
  const fs::path tar = directory_ / "part/upper.tar";
  fs::resize_file(tar, 5'000);
  const auto root = prepare_root(tar, directory_ / "cache");
  ASSERT_FALSE(root);
  EXPECT_EQ(root.error().code, Errc::corrupt) << root.error().text();
  EXPECT_TRUE(fs::is_empty(directory_ / "cache"));
}

TEST_F(ArchiveTest, AnArchiveIsUnpackedOncePerContent) {
  std::ofstream(directory_ / "tree/file") << "content";
  ASSERT_OK(pack_disk(directory_ / "tree", directory_ / "part"));
  const fs::path tar = directory_ / "part/upper.tar";
  const auto first = prepare_root(tar, directory_ / "cache");
  ASSERT_OK(first);
  std::ofstream(*first / "mark") << "still the same directory";
  const auto second = prepare_root(tar, directory_ / "cache");
  ASSERT_OK(second);
  EXPECT_TRUE(fs::exists(*second / "mark"));
  EXPECT_EQ(prepare_root(directory_ / "tree", directory_ / "cache").value_or(""), directory_ / "tree");
  const auto missing = prepare_root(directory_ / "nothing.tar", directory_ / "cache");
  ASSERT_FALSE(missing);
  EXPECT_EQ(missing.error().code, Errc::not_found);
}

}  // namespace
}  // namespace yado::container
