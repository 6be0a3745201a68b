// Guests that move while they write to their disks: real QEMU, real pagers, real memory servers.
#include <fstream>
#include <random>
#include <thread>

#include <nlohmann/json.hpp>

#include "os/process.hpp"
#include "workload/vm/disk.hpp"
#include "workload/vm/moving_vm_testing.hpp"

namespace yado::vm {
namespace {

using namespace testing;
using nlohmann::json;

constexpr std::uint64_t disk_bytes = 96_MiB, first_written = 1_MiB;

class MovingDiskVmProcessTest : public MovingVmTest {
 protected:
  void SetUp() override {
    PagedVmTest::SetUp();
    if (IsSkipped()) return;
    disks_ = {directory_.path() / "base.raw"};
    make_file(disks_.front(), 0);
  }
  /// Of the size of the disk, with so much that cannot be compressed.
  void make_file(const fs::path& path, std::uint64_t written) {
    std::ofstream file(path, std::ios::binary);
    file.seekp(first_written);
    std::mt19937_64 random(7);
    for (std::uint64_t at = 0; at < written; at += sizeof(std::uint64_t)) {
      const std::uint64_t word = random();
      file.write(reinterpret_cast<const char*>(&word), sizeof word);
    }
    file.close();
    fs::resize_file(path, disk_bytes);
  }
  static void run(std::vector<std::string> arguments) {
    auto process = os::spawn({.arguments = std::move(arguments), .environment = {"LC_ALL=C", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}});
    ASSERT_OK(process);
    const auto ended = process->wait(hang);
    ASSERT_OK(ended);
    ASSERT_TRUE(*ended && (*ended)->success());
  }
  /// A guest that has written so much to its disk before, and writes all the time.
  void boot_with(std::uint64_t written) {
    const Place where = place("a", memory_bytes / 2, {"h2", "h3"});
    make_file(directory_.path() / "data.raw", written);
    run({qemu().image_tool, "convert", "-f", "raw", "-O", "qcow2", "-B", disks_.front(), "-F", "raw", directory_.path() / "data.raw", first_layer(where.directory, 0)});
    ASSERT_NO_FATAL_FAILURE(boot(where));
    write_a_while('d', 5);
  }
  /// Where the guest runs: all of its disk but the first part, which it writes, is as it was at the beginning.
  void expect_disk_of(const fs::path& directory) {
    json node{{"driver", "raw"}, {"file", {{"driver", "file"}, {"filename", disks_.front().native()}}}};
    for (const fs::path& layer : layers_of(directory, 0))
      node = json{{"driver", "qcow2"}, {"backing", node}, {"file", {{"driver", "file"}, {"filename", layer.native()}}}};
    const fs::path now = directory_.path() / "now.raw";
    ASSERT_NO_FATAL_FAILURE(run({qemu().image_tool, "convert", "-U", "-O", "raw", "json:" + node.dump(), now}));
    ASSERT_NO_FATAL_FAILURE(run({"/usr/bin/cmp", fmt::format("--ignore-initial={}", first_written), now, directory_.path() / "data.raw"})) << "another content";
  }
  void expect_flawless_disk() {
    const auto values = verify(*vm_);
    ASSERT_OK(values);
    EXPECT_TRUE(flawless(*values)) << ::testing::PrintToString(*values);
    EXPECT_EQ(values->at("disk"), "same");
  }

  fs::path seal(const std::string& name, const std::vector<fs::path>& ahead = {}) {
    const fs::path directory = directory_.path() / name;
    fs::create_directories(directory);
    const auto bytes = vm_->seal(directory, ahead);
    EXPECT_OK(bytes);
    sealed_bytes_ = bytes.value_or(0);
    return directory;
  }
  Result<Saved> leave_for_h2(Handover& handover, const DisksAhead& ahead) { return try_to_leave(handover, "h2", ahead); }
  Place heir(const std::string& name, const Handover& handover) { return place_of_heir(name, handover, memory_bytes / 2); }
  void restore_there(const std::string& name, const Handover& handover) {
    auto moved = go_on(handover, heir(name, handover));
    ASSERT_OK(moved);
    vm_.emplace(std::move(*moved));
  }
  /// Its disk is right while it runs, and, in `directory`, when it has ended.
  void expect_right_at_its_end(const fs::path& directory) {
    expect_flawless_disk();
    ASSERT_OK(vm_->stop(0ns));
    expect_disk_of(directory);
  }

  std::uint64_t sealed_bytes_ = 0;
};

/// However much it has written: only what it wrote at the end is copied while it stands still.
TEST_F(MovingDiskVmProcessTest, WhatIsCopiedInThePauseDoesNotGrowWithWhatWasWritten) {
  constexpr std::uint64_t little = 4_MiB;
  for (const std::uint64_t written : {std::uint64_t{8_MiB}, std::uint64_t{64_MiB}}) {
    SCOPED_TRACE(written);
    ASSERT_NO_FATAL_FAILURE(boot_with(written));
    const fs::path ahead = seal("ahead");
    EXPECT_GE(sealed_bytes_, written);
    write_a_while('d', 5);
    auto expected = Vm::expect(spec(), place("b", memory_bytes / 2, {}), qemu(), {ahead});
    ASSERT_OK(expected);
    Handover handover;
    const auto left = leave_for_h2(handover, {.directories = {ahead}});
    ASSERT_OK(left);
    EXPECT_LT(handover.saved.disk_bytes, little);
    EXPECT_EQ(layers_of(handover.parts().disk, 0).size(), 1u);
    ImageParts others = handover.parts();
    others.ahead = {directory_.path() / "another"};
    EXPECT_EQ(expected->suits(others).error().code, Errc::conflict) << "other disks lie ready";
    ASSERT_OK(expected->go_on(handover.parts(), heir("b", handover).paging->config));
    vm_.emplace(std::move(*expected));
    expect_flawless_disk();
    write_a_while('d', 2);
    expect_right_at_its_end(directory_.path() / "b");
    vm_.reset();
    for (const char* used : {"a", "b", "ahead"}) fs::remove_all(directory_.path() / used);
  }
}

/// Every move puts layers on the disk; the next one merges them first, if the images that they came in are gone.
TEST_F(MovingDiskVmProcessTest, LayersOfEarlierMovesAreMerged) {
  ASSERT_NO_FATAL_FAILURE(boot_with(8_MiB));
  for (std::string before = "a"; const std::string next : {"b", "c", "d"}) {
    SCOPED_TRACE(next);
    std::vector<fs::path> ahead{seal("ahead-1-" + next)};
    EXPECT_LE(layers_of(ahead.front(), 0).size(), 2u);
    write_a_while('d', 2);
    ahead.push_back(seal("ahead-2-" + next, ahead));
    EXPECT_EQ(layers_of(ahead.back(), 0).size(), 1u);
    write_a_while('d', 2);
    Handover handover;
    ASSERT_OK(leave_for_h2(handover, {.directories = ahead}));
    ASSERT_NO_FATAL_FAILURE(restore_there(next, handover));
    expect_flawless_disk();
    write_a_while('d', 2);
    for (const fs::path& directory : ahead) fs::remove_all(directory);
    fs::remove_all(handover.directory);
    for (const fs::path& layer : layers_of(directory_.path() / before, 0)) fs::remove(layer);  // another host's
    before = next;
  }
  Image image{.name = "a-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(image));
  EXPECT_LE(layers_of(directory_.path() / "d", 0).size(), 2u);
  expect_right_at_its_end(directory_.path() / "d");
}

TEST_F(MovingDiskVmProcessTest, WhoHasWrittenMuchMeanwhileIsNotStopped) {
  ASSERT_NO_FATAL_FAILURE(boot_with(8_MiB));
  const fs::path first = seal("ahead-1");
  write_a_while('d', 5);
  Handover handover;
  const auto early = leave_for_h2(handover, {.directories = {first}, .most_bytes = 1});
  ASSERT_OK(early);
  EXPECT_TRUE(early->not_yet);
  EXPECT_EQ(vm_->run_state().value_or(""), "running");
  EXPECT_TRUE(layers_of(handover.parts().disk, 0).empty());
  write_a_while('d', 2);
  const fs::path second = seal("ahead-2", {first});
  auto expected = Vm::expect(spec(), place("b", memory_bytes / 2, {}), qemu(), {first});
  ASSERT_OK(expected);
  ASSERT_OK(leave_for_h2(handover, {.directories = {first, second}}));
  ASSERT_OK(expected->go_on(handover.parts(), heir("b", handover).paging->config));
  vm_.emplace(std::move(*expected));
  expect_right_at_its_end(directory_.path() / "b");
}

/// A move that comes to nothing leaves the guest with its disks, and the next one comes to something.
TEST_F(MovingDiskVmProcessTest, AfterAMoveThatFailedTheDisksAreRightWhereItStays) {
  ASSERT_NO_FATAL_FAILURE(boot_with(8_MiB));
  const fs::path ahead = seal("ahead");
  write_a_while('d', 2);
  Handover handover;
  ASSERT_OK(leave_for_h2(handover, {.directories = {ahead}}));
  ASSERT_OK(vm_->resume());
  expect_flawless_disk();
  write_a_while('d', 2);
  expect_flawless_disk();
  // Only its disks had gone.
  seal("ahead-again");
  write_a_while('d', 2);
  // What was merged since is not where the first part lies.
  Image image{.name = "a-img.1"};
  ASSERT_NO_FATAL_FAILURE(checkpoint(image));
  write_a_while('d', 2);
  const auto stale = leave_for_h2(handover, {.directories = {directory_.path() / "ahead-again"}});
  ASSERT_FALSE(stale);
  EXPECT_EQ(stale.error().code, Errc::conflict) << stale.error().text();
  EXPECT_EQ(vm_->run_state().value_or(""), "running");
  expect_flawless_disk();
  const fs::path next = seal("ahead-next");
  ASSERT_OK(leave_for_h2(handover, {.directories = {next}}));
  ASSERT_NO_FATAL_FAILURE(restore_there("b", handover));
  expect_right_at_its_end(directory_.path() / "b");
}

/// Killed at any moment of it: the guest runs on, and what it left goes with the next one.
TEST_F(MovingDiskVmProcessTest, WhoIsKilledWhileItCopiesLeavesTheDisksRight) {
  ASSERT_NO_FATAL_FAILURE(boot_with(64_MiB));
  for (int i = 0; i < 3; ++i) {
    const fs::path directory = directory_.path() / fmt::format("killed-{}", i);
    fs::create_directories(directory);
    const pid_t sealer = ::fork();
    ASSERT_GE(sealer, 0);
    if (sealer == 0) {
      (void)vm_->seal(directory);
      ::_exit(0);
    }
    const auto has_ended = [&] {
      siginfo_t info{};
      return ::waitid(P_PID, static_cast<id_t>(sealer), &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
    };
    // When there is a layer more, or, of what the first one left, one less; the second one at once.
    const auto layers = [&] { return layers_of(directory_.path() / "a", 0).size(); };
    for (const std::size_t before = layers(); i != 1 && layers() == before && !has_ended();) std::this_thread::yield();
    ::kill(sealer, SIGKILL);
    ASSERT_EQ(::waitpid(sealer, nullptr, 0), sealer);
    expect_flawless_disk();
    write_a_while('d', 2);
  }
  const fs::path ahead = seal("ahead");
  Handover handover;
  ASSERT_OK(leave_for_h2(handover, {.directories = {ahead}}));
  ASSERT_NO_FATAL_FAILURE(restore_there("b", handover));
  expect_right_at_its_end(directory_.path() / "b");
}

class NoMemory final : public MemoryPart {
 public:
  Status save(const os::Fd&, std::uint64_t) override { return fail(Errc::io, "nowhere"); }
  Status load(const os::Fd&, std::uint64_t) override { return {}; }
};

/// Deltas of disks like those of the memory, also when a checkpoint between them failed.
TEST_F(MovingDiskVmProcessTest, ADeltaHasWhatWasWrittenToDisksSinceItsBase) {
  ASSERT_NO_FATAL_FAILURE(boot_with(8_MiB));
  const fs::path here = directory_.path() / "a";
  std::vector<Image> images;
  for (int i = 0; i < 5; ++i) {
    SCOPED_TRACE(i);
    write_a_while('d', 5);
    for (int failing = 0; i == 3 && failing < 2; ++failing) {
      NoMemory nowhere;
      ASSERT_FALSE(vm_->save(fs::path(here) / "..", here, nowhere));
      write_a_while('d', 5);
      EXPECT_EQ(layers_of(here, 0).size(), 3U) << "what the last image has, what was written since, and what is written now";
    }
    images.push_back({.name = fmt::format("a-img.{}", i + 1)});
    ASSERT_NO_FATAL_FAILURE(checkpoint(images.back(), i == 0 ? nullptr : &images[images.size() - 2]));
    EXPECT_EQ(images.back().saved.disks_are_delta, i > 0);
    if (i == 0) EXPECT_GE(images.back().saved.disk_bytes, 8_MiB);
    else EXPECT_LT(images.back().saved.disk_bytes, 2_MiB);
    EXPECT_EQ(layers_of(here, 0).size(), 2U);
  }
  ASSERT_NO_FATAL_FAILURE(expect_flawless_disk());
  ASSERT_NO_FATAL_FAILURE(expect_disk_of(here));
  vm_.reset();
  for (const std::size_t i : {4u, 3u, 1u}) {
    Place where = place(fmt::format("r{}", i), memory_bytes / 2, {"h3"});
    where.paging->config.image = images[i].chain;
    ASSERT_NO_FATAL_FAILURE(restore(images[i], where));
    ASSERT_NO_FATAL_FAILURE(expect_flawless_disk());
    ASSERT_NO_FATAL_FAILURE(expect_disk_of(where.directory));
    if (i == 3) {
      // It goes on from what it was restored from. What has no base has all of its disks.
      write_a_while('d', 5);
      Image next{.name = "b-img.1"}, whole{.name = "b-img.2"};
      ASSERT_NO_FATAL_FAILURE(checkpoint(next, &images[i]));
      EXPECT_TRUE(next.saved.disks_are_delta);
      EXPECT_LT(next.saved.disk_bytes, 2_MiB);
      ASSERT_NO_FATAL_FAILURE(checkpoint(whole));
      EXPECT_FALSE(whole.saved.disks_are_delta);
      EXPECT_GE(whole.saved.disk_bytes, 8_MiB);
      vm_.reset();
      where = place("again", memory_bytes / 2, {"h3"});
      where.paging->config.image = next.chain;
      ASSERT_NO_FATAL_FAILURE(restore(next, where));
      ASSERT_NO_FATAL_FAILURE(expect_flawless_disk());
      ASSERT_NO_FATAL_FAILURE(expect_disk_of(where.directory));
    }
    vm_.reset();
  }
}

}  // namespace
}  // namespace yado::vm
