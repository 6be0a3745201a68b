#include "workload/vm/vm.hpp"

#include <algorithm>
#include <csignal>
#include <fcntl.h>
#include <fstream>
#include <poll.h>
#include <sys/wait.h>

#include <gtest/gtest.h>

#include "base/testing.hpp"
#include "net/rtnl.hpp"
#include "net/testing.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/mount.hpp"
#include "os/process.hpp"
#include "workload/vm/disk.hpp"
#include "workload/vm/testing.hpp"

namespace yado::vm {
namespace {

namespace fs = std::filesystem;
using namespace testing;


/// What several tests begin with: a guest that has booted and filled its memory, saved once.
struct Booted {
  image::TemporaryDirectory directory;
  VmSpec spec;
  std::optional<Saved> saved;
};

/// Tests whose name has "Process" are left out under tsan (./run): they fork.
class VmProcessTest : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!why_not().empty()) return;
    booted_ = std::make_unique<Booted>();
    const fs::path& here = booted_->directory.path();
    booted_->spec = verifier();
    booted_->spec.disks = {here / "base.raw"};
    std::ofstream(here / "base.raw").flush();
    fs::resize_file(here / "base.raw", 16_MiB);
    fs::create_directories(here / "vm");
    const auto boot = [&]() -> Status {
      YADO_ASSIGN(Vm vm, Vm::start(booted_->spec, {.directory = here / "vm", .cgroup = "yado-test/" + here.filename().native()}, qemu()), "boot");
      YADO_TRY(vm.console().wait_for("GUEST filled", hang), "boot");
      YADO_ASSIGN(booted_->saved, save(vm, make_image(here / "image")), "boot");
      return {};
    };
    const Status done = boot();
    ASSERT_TRUE(done.has_value()) << done.error().text();
  }
  static void TearDownTestSuite() { booted_.reset(); }

  void SetUp() override {
    if (const std::string reason = why_not(); !reason.empty()) GTEST_SKIP() << reason;
    ASSERT_TRUE(booted_->saved);
  }
  void TearDown() override {
    if (IsSkipped()) return;
    vm_.reset();
    for (const std::string& group : groups_) EXPECT_FALSE(os::Cgroup::open(group).has_value()) << group << " is left";
    EXPECT_EQ(::waitpid(-1, nullptr, WNOHANG), -1) << "a child is left";
  }

  Place place(const std::string& name) {
    Place made{.directory = directory_.path() / name, .cgroup = fmt::format("yado-test/{}-{}", directory_.path().filename().native(), name)};
    fs::create_directories(made.directory);
    groups_.push_back(made.cgroup);
    return made;
  }
  /// The booted guest, running in vm_: one layer of its disk is the booted image's for good.
  void raise(const std::string& name = "a") {
    auto restored = restore(booted_->spec, place(name), make_image(booted_->directory.path() / "image"), *booted_->saved);
    ASSERT_OK(restored);
    vm_.emplace(std::move(*restored));
  }
  /// A cold start, until the memory is filled.
  void boot(const VmSpec& spec, const Place& where) {
    auto started = Vm::start(spec, where, qemu());
    ASSERT_OK(started);
    vm_.emplace(std::move(*started));
    ASSERT_OK(vm_->console().wait_for("GUEST up", hang));
    ASSERT_OK(vm_->console().wait_for("GUEST filled", hang));
  }
  void expect_flawless(Vm& vm) {
    const auto values = verify(vm);
    ASSERT_OK(values);
    EXPECT_TRUE(flawless(*values)) << ::testing::PrintToString(*values);
  }
  void order(Vm& vm, const std::string& mode) {
    ASSERT_OK(vm.console().send(mode));
    ASSERT_OK(vm.console().wait_for("GUEST mode " + mode, hang));
  }
  /// Reads the console to its end, as an owner does.
  Result<End> wait_for_end(Vm& vm) {
    auto line = vm.console().wait_for("\n", hang);  // no line has one
    if (line.error().code != Errc::application) return std::unexpected(line.error());
    YADO_TRY(vm.process().ended_within(hang), "end");
    YADO_ASSIGN(const auto end, vm.reap(), "end");
    if (!end) return fail(Errc::timed_out, "QEMU has closed its console and runs");
    return *end;
  }

  struct Image {
    fs::path device_state, disk, memory;
    ImageParts parts(const Saved& saved) const { return {device_state, disk, saved.properties}; }
  };
  static Image make_image(const fs::path& where) {
    Image image{where / "device-state", where / "disk", where / "memory"};
    fs::create_directories(image.device_state);
    fs::create_directories(image.disk);
    return image;
  }
  static Result<Saved> save(const Vm& vm, const Image& image) {
    FlatMemory memory(image.memory);
    return vm.save(image.device_state, image.disk, memory);
  }
  /// With something written to its disk before each; the second one stays in `image`.
  void save_twice(Image& image, Result<Saved>& saved) {
    for (const char* name : {"one", "two"}) {
      ASSERT_NO_FATAL_FAILURE(order(*vm_, "d"));
      image = make_image(directory_.path() / name);
      saved = save(*vm_, image);
      ASSERT_OK(saved);
    }
  }
  Result<Vm> restore(const VmSpec& spec, const Place& where, const Image& image, const Saved& saved, Begin begin = Begin::running) {
    FlatMemory memory(image.memory);
    return Vm::restore(spec, where, qemu(), image.parts(saved), memory, begin);
  }
  static constexpr std::size_t raised_layers = 3;  ///< after a save, of one that was raised: the image's, one with all that was written until the save, and the one that is written
  static std::unique_ptr<Booted> booted_;
  image::TemporaryDirectory directory_;
  std::vector<std::string> groups_;
  std::optional<Vm> vm_;
};
std::unique_ptr<Booted> VmProcessTest::booted_;

TEST_F(VmProcessTest, BootsObeysAndPowersItselfOff) {
  ASSERT_NO_FATAL_FAILURE(boot(verifier(), place("a")));
  expect_flawless(*vm_);
  EXPECT_EQ(vm_->run_state().value_or(""), "running");
  const auto use = vm_->stats();
  ASSERT_OK(use);
  EXPECT_GT(use->guest_bytes, 32_MiB);  // the pattern at least
  EXPECT_GT(use->qemu.cpu, 0ns);
  ASSERT_OK(vm_->console().send("q"));
  const auto end = wait_for_end(*vm_);
  ASSERT_OK(end);
  EXPECT_TRUE(end->status.success());
  EXPECT_EQ(end->reason, "the guest powered off");
  vm_.reset();
  EXPECT_TRUE(fs::is_empty(directory_.path() / "a"));
}

TEST_F(VmProcessTest, ThePowerButtonIsHeard) {
  ASSERT_NO_FATAL_FAILURE(raise());
  const auto end = vm_->stop(hang);
  ASSERT_OK(end);
  EXPECT_EQ(end->reason, "the guest powered off");
  const auto again = vm_->stop(hang);
  ASSERT_OK(again);
  EXPECT_EQ(again->reason, end->reason);
}

TEST_F(VmProcessTest, ThePowerButtonIsPressedUntilSomebodyHearsIt) {
  auto started = Vm::start(verifier(), place("a"), qemu());  // its kernel is not there yet
  ASSERT_OK(started);
  const auto end = started->stop(hang);
  ASSERT_OK(end);
  EXPECT_EQ(end->reason, "the guest powered off");
}

TEST_F(VmProcessTest, APausedGuestQuitsWithoutGrace) {
  ASSERT_NO_FATAL_FAILURE(raise());
  ASSERT_OK(vm_->pause());
  EXPECT_EQ(vm_->run_state().value_or(""), "paused");
  const Instant before = os::now();
  const auto end = vm_->stop(hang);
  ASSERT_OK(end);
  EXPECT_LT(os::now() - before, hang);
  EXPECT_EQ(end->reason, "QEMU was told to quit");
}

TEST_F(VmProcessTest, PausedAndContinued) {
  ASSERT_NO_FATAL_FAILURE(raise());
  ASSERT_OK(vm_->pause());
  ASSERT_OK(vm_->resume());
  expect_flawless(*vm_);
  const auto events = vm_->take_events();
  ASSERT_OK(events);
  std::vector<std::string> names;
  for (const QmpEvent& event : *events) names.push_back(event.name);
  EXPECT_NE(std::ranges::find(names, "STOP"), names.end());
  EXPECT_NE(std::ranges::find(names, "RESUME"), names.end());
}

TEST_F(VmProcessTest, APanicIsSeenAndIsAFailure) {
  ASSERT_NO_FATAL_FAILURE(raise());
  ASSERT_OK(vm_->console().send("p"));
  const auto end = wait_for_end(*vm_);
  ASSERT_OK(end);
  EXPECT_FALSE(end->status.success());
  EXPECT_EQ(end->reason, "the guest panicked");
}

TEST_F(VmProcessTest, AKilledQemuIsSeenByBothDescriptors) {
  ASSERT_NO_FATAL_FAILURE(raise());
  ASSERT_EQ(::kill(vm_->process().pid(), SIGKILL), 0);
  pollfd wanted[] = {{vm_->process().fd(), POLLIN, 0}, {vm_->monitor_fd(), POLLIN, 0}};
  for (pollfd& one : wanted) ASSERT_EQ(::poll(&one, 1, static_cast<int>(hang / 1ms)), 1);
  // Events of before may still come; then the end, in words.
  auto events = vm_->take_events();
  while (events) events = vm_->take_events();
  EXPECT_EQ(events.error().code, Errc::application) << events.error().text();
  EXPECT_EQ(vm_->run_state().error().code, Errc::application);
  EXPECT_EQ(vm_->pause().error().code, Errc::application);
  const auto end = vm_->stop(hang);
  ASSERT_OK(end);
  EXPECT_EQ(end->status, (os::ExitStatus{0, SIGKILL}));
}

TEST_F(VmProcessTest, MissingFilesAreNamedAndLeaveNothing) {
  VmSpec spec = verifier();
  spec.kernel = "/no/such/kernel";
  auto started = Vm::start(spec, place("a"), qemu());
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::not_found);
  EXPECT_NE(started.error().message.find("kernel /no/such/kernel"), std::string::npos) << started.error().text();

  spec = verifier();
  spec.disks = {"/no/such/disk"};
  started = Vm::start(spec, place("a"), qemu());
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::not_found);
  EXPECT_NE(started.error().message.find("disk /no/such/disk"), std::string::npos) << started.error().text();

  Qemu missing = qemu();
  missing.system = "/no/such/qemu";
  started = Vm::start(verifier(), place("a"), missing);
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::not_found);
  EXPECT_TRUE(fs::is_empty(directory_.path() / "a") || !fs::exists(directory_.path() / "a/control"));
}

TEST_F(VmProcessTest, WhatQemuSaysBeforeItGivesUpIsInTheError) {
  VmSpec spec = verifier();
  spec.kernel = directory_.path() / "no-kernel";
  std::ofstream(spec.kernel) << "this is no kernel";
  const auto started = Vm::start(spec, place("a"), qemu());
  ASSERT_FALSE(started);
  EXPECT_EQ(started.error().code, Errc::application);
  EXPECT_NE(started.error().message.find("kernel"), std::string::npos) << started.error().text();
}

TEST_F(VmProcessTest, StopEndsItsOwnQemuOnly) {
  ASSERT_NO_FATAL_FAILURE(raise());
  auto other = restore(booted_->spec, place("b"), make_image(booted_->directory.path() / "image"), *booted_->saved);
  ASSERT_OK(other);
  ASSERT_OK(vm_->pause());
  ASSERT_OK(vm_->stop(0ns));
  expect_flawless(*other);
}

TEST_F(VmProcessTest, SavedUnderAWriterAndRestoredTwiceWithoutABadWord) {
  ASSERT_NO_FATAL_FAILURE(raise());
  ASSERT_NO_FATAL_FAILURE(order(*vm_, "d"));
  const Image image = make_image(directory_.path() / "image");
  const Instant before = os::now();
  const auto saved = save(*vm_, image);
  ASSERT_OK(saved);
  EXPECT_GT(saved->pause, 0us);
  EXPECT_LT(saved->pause, os::now() - before);
  EXPECT_EQ(saved->device_state_bytes, fs::file_size(image.device_state / "device-state"));
  EXPECT_LT(saved->device_state_bytes, 4_MiB) << "the guest's memory is not in it";
  expect_flawless(*vm_);  // the original runs on
  ASSERT_NO_FATAL_FAILURE(order(*vm_, "d"));

  for (const std::string name : {"b", "c"}) {  // one image, used twice
    auto restored = restore(booted_->spec, place(name), image, *saved);
    ASSERT_OK(restored);
    const auto values = verify(*restored);
    ASSERT_OK(values);
    EXPECT_TRUE(flawless(*values)) << ::testing::PrintToString(*values);
    EXPECT_EQ(values->at("disk"), "same");
    order(*restored, "d");  // and it goes on to write
    expect_flawless(*restored);
  }
  expect_flawless(*vm_);
}

TEST_F(VmProcessTest, TheGuestItselfMeasuresHowLongItStoodStill) {
  ASSERT_NO_FATAL_FAILURE(raise());
  const auto away = [&]() -> std::chrono::microseconds {
    EXPECT_TRUE(vm_->console().send("c").has_value());
    const auto line = vm_->console().wait_for("GUEST clocks", hang);
    return std::chrono::microseconds(line ? std::atoll(values_of(*line)["away_us"].c_str()) : 0);
  };
  (void)away();
  ASSERT_OK(vm_->pause());
  const Instant from = os::now();
  ASSERT_OK(save(*vm_, make_image(directory_.path() / "image")));  // something that takes a while
  const nanoseconds stood = os::now() - from;
  ASSERT_OK(vm_->resume());
  EXPECT_GT(away(), stood / 2) << "half of it is for a guest that sees its clock's edge late";
}

TEST_F(VmProcessTest, LayersOfManySavesAreMergedAndEveryImageIsRight) {
  ASSERT_NO_FATAL_FAILURE(raise());
  const fs::path directory = directory_.path() / "a";
  std::vector<std::pair<Image, Saved>> images;
  for (int i = 0; i < 4; ++i) {
    ASSERT_NO_FATAL_FAILURE(order(*vm_, "d"));
    std::ofstream(directory / "disk-0.77.qcow2") << "left by a saver that was killed in the middle of it";
    images.emplace_back(make_image(directory_.path() / fmt::format("image{}", i)), Saved());
    auto saved = save(*vm_, images.back().first);
    ASSERT_OK(saved);
    images.back().second = *saved;
    EXPECT_EQ(layers_of(directory, 0).size(), raised_layers);
    expect_flawless(*vm_);
  }
  vm_.reset();
  for (std::size_t i = 0; i < images.size(); ++i) {
    auto restored = restore(booted_->spec, place(fmt::format("r{}", i)), images[i].first, images[i].second);
    ASSERT_OK(restored);
    const auto values = verify(*restored);
    ASSERT_OK(values);
    EXPECT_TRUE(flawless(*values)) << i << ::testing::PrintToString(*values);
    EXPECT_EQ(values->at("disk"), "same");
  }
}

/// What a restore brought is the image's, and nobody writes to it; when the image is gone it is merged like any other: left where it is, it would hide what is newer.
TEST_F(VmProcessTest, LayersThatARestoreBroughtAreTheImagesAsLongAsItIsThere) {
  ASSERT_NO_FATAL_FAILURE(raise());
  Image brought;
  Result<Saved> saved = Saved();
  ASSERT_NO_FATAL_FAILURE(save_twice(brought, saved));
  const auto of_image = layers_of(brought.disk, 0);
  ASSERT_GE(of_image.size(), 2U);
  std::vector<std::string> contents;
  for (const fs::path& layer : of_image) contents.push_back(os::read_text(layer).value_or(""));
  auto restored = restore(booted_->spec, place("b"), brought, *saved);
  ASSERT_OK(restored);
  auto clone = restore(booted_->spec, place("clone"), brought, *saved);
  ASSERT_OK(clone);
  vm_.emplace(std::move(*restored));
  for (const fs::path& layer : of_image) EXPECT_TRUE(fs::equivalent(layer, directory_.path() / "b" / layer.filename())) << layer;
  ASSERT_NO_FATAL_FAILURE(order(*clone, "d"));
  Image image;
  for (const std::string modes : {"d", "dw", "w", "d", "w"}) {  // before some saves nothing is written to the disk
    for (const char mode : modes) ASSERT_NO_FATAL_FAILURE(order(*vm_, {mode}));
    image = make_image(directory_.path() / fmt::format("after{}", layers_of(directory_.path() / "b", 0).back().stem().native()));
    saved = save(*vm_, image);
    ASSERT_OK(saved);
    if (!fs::exists(brought.disk)) {
      EXPECT_EQ(layers_of(directory_.path() / "b", 0).size(), raised_layers) << "nobody else has the others any more";
      continue;
    }
    EXPECT_EQ(layers_of(directory_.path() / "b", 0).size(), of_image.size() + 2);
    for (std::size_t i = 0; i < of_image.size(); ++i) EXPECT_TRUE(os::read_text(of_image[i]).value_or("") == contents[i]) << of_image[i] << " has changed";
    if (modes != "w") continue;
    const auto values = verify(*clone);
    ASSERT_OK(values);
    EXPECT_TRUE(flawless(*values));
    EXPECT_EQ(values->at("disk"), "same");
    clone = fail(Errc::not_found, "ended");
    for (const fs::path& part : fs::directory_iterator(directory_.path()))  // the clone, and all images so far
      if (part.filename() != "b") fs::remove_all(part);
  }
  restored = restore(booted_->spec, place("c"), image, *saved);
  ASSERT_OK(restored);
  const auto values = verify(*restored);
  ASSERT_OK(values);
  EXPECT_EQ(values->at("disk"), "same");
}

/// As many as a chain of deltas leaves, with paths as long as people's: their names together are too long for the header of one more.
TEST_F(VmProcessTest, ADiskOfManyLayersFromElsewhereIsSealedAndMerged) {
  const Place where = place(std::string(80, 'd'));
  for (int i = 0; i < 9; ++i) ASSERT_OK(make_overlay(qemu(), booted_->spec.disks[0], i == 0 ? first_layer(where.directory, 0) : next_layer(where.directory, 0)));
  ASSERT_NO_FATAL_FAILURE(boot(booted_->spec, where));
  Image image;
  Result<Saved> saved = Saved();
  ASSERT_NO_FATAL_FAILURE(save_twice(image, saved));
  EXPECT_EQ(layers_of(where.directory, 0).size(), 2U);
  auto restored = restore(booted_->spec, place("b"), image, *saved);
  ASSERT_OK(restored);
  const auto values = verify(*restored);
  ASSERT_OK(values);
  EXPECT_EQ(values->at("disk"), "same");
}

TEST_F(VmProcessTest, ARestoredGuestCanBeSavedAgain) {
  ASSERT_NO_FATAL_FAILURE(raise());
  ASSERT_NO_FATAL_FAILURE(order(*vm_, "w"));
  const Image first = make_image(directory_.path() / "first"), second = make_image(directory_.path() / "second");
  const auto saved = save(*vm_, first);
  ASSERT_OK(saved);
  vm_.reset();
  auto restored = restore(booted_->spec, place("b"), first, *saved);
  ASSERT_OK(restored);
  ASSERT_OK(restored->pause());
  const auto saved_again = save(*restored, second);
  ASSERT_OK(saved_again);
  EXPECT_EQ(saved_again->pause, 0us) << "it stood still before";
  const auto without_a_run = save(*restored, make_image(directory_.path() / "third"));
  ASSERT_FALSE(without_a_run);
  EXPECT_EQ(without_a_run.error().code, Errc::conflict) << without_a_run.error().text();
  EXPECT_NE(restored->run_state().value_or(""), "running");
  ASSERT_OK(restored->resume());
  expect_flawless(*restored);
  ASSERT_OK(save(*restored, make_image(directory_.path() / "fourth")));
  EXPECT_EQ(layers_of(directory_.path() / "b", 0).size(), layers_of(first.disk, 0).size() + 2);
  auto last = restore(booted_->spec, place("c"), second, *saved_again, Begin::paused);
  ASSERT_OK(last);
  EXPECT_EQ(last->run_state().value_or(""), "paused");
  ASSERT_OK(last->resume());
  expect_flawless(*last);
}

TEST_F(VmProcessTest, AWordChangedInTheImageIsSeenByTheGuest) {
  ASSERT_NO_FATAL_FAILURE(raise());
  const Image image = make_image(directory_.path() / "image");
  const auto saved = save(*vm_, image);
  ASSERT_OK(saved);
  // Page 100 of the pattern, version 1: its first word is known, so it can be found.
  auto file = os::open_path(image.memory, O_RDWR);
  ASSERT_OK(file);
  const std::uint64_t wanted = std::uint64_t{100} << 32 | 1;
  bool changed = false;
  for (off_t at = 0; !changed && at < static_cast<off_t>(verifier().memory_bytes); at += 4096) {
    std::uint64_t words[2] = {};
    ASSERT_EQ(::pread(file->get(), words, sizeof words, at), static_cast<ssize_t>(sizeof words));
    if (words[0] != wanted) continue;
    words[1] ^= 1;
    ASSERT_EQ(::pwrite(file->get(), words, sizeof words, at), static_cast<ssize_t>(sizeof words));
    changed = true;
  }
  ASSERT_TRUE(changed);
  auto restored = restore(booted_->spec, place("b"), image, *saved);
  ASSERT_OK(restored);
  const auto values = verify(*restored);
  ASSERT_OK(values);
  EXPECT_EQ(values->at("bad_words"), "1");
}

TEST_F(VmProcessTest, AFullDiskDuringTheSaveIsAnErrorAndTheGuestRunsOn) {
  ASSERT_OK(os::enter_private_mounts());
  ASSERT_NO_FATAL_FAILURE(raise());
  ASSERT_NO_FATAL_FAILURE(order(*vm_, "w"));
  const fs::path small = directory_.path() / "small";
  fs::create_directories(small);
  for (const std::uint64_t bytes : {8_KiB, 4_MiB, 8_KiB, 4_MiB}) {  // full at the device state, full at the memory
    const auto tmpfs = os::make_tmpfs(bytes);
    ASSERT_OK(tmpfs);
    const auto mounted = os::attach_mount(*tmpfs, small);
    ASSERT_OK(mounted);
    const auto saved = save(*vm_, make_image(small));
    ASSERT_FALSE(saved);
    EXPECT_EQ(saved.error().code, Errc::no_space) << saved.error().text();
    EXPECT_EQ(vm_->run_state().value_or(""), "running");
  }
  EXPECT_EQ(layers_of(directory_.path() / "a", 0).size(), raised_layers) << "failures leave no more layers";
  const Image image = make_image(directory_.path() / "image");
  ASSERT_OK(save(*vm_, image));  // and the next one succeeds
  expect_flawless(*vm_);
}

/// Fails where a real one would, or waits there to be killed.
class StubbornMemory final : public MemoryPart {
 public:
  explicit StubbornMemory(std::function<Status()> act) : act_(std::move(act)) {}
  Status save(const os::Fd&, std::uint64_t) override { return act_(); }
  Status load(const os::Fd&, std::uint64_t) override { return act_(); }

 private:
  std::function<Status()> act_;
};

TEST_F(VmProcessTest, ASaverThatIsKilledHalfWayLeavesAGuestThatCanGoOn) {
  ASSERT_NO_FATAL_FAILURE(raise());
  ASSERT_NO_FATAL_FAILURE(order(*vm_, "d"));
  const Image image = make_image(directory_.path() / "image");
  auto reached = os::make_pipe();
  ASSERT_OK(reached);
  auto saver = os::fork_child([&] {
    StubbornMemory memory([&]() -> Status {
      (void)os::write_all(reached->write, "r");
      ::pause();
      return {};
    });
    return vm_->save(image.device_state, image.disk, memory) ? 0 : 1;
  }, SIGKILL);
  ASSERT_OK(saver);
  ASSERT_TRUE(os::readable_within(reached->read.get(), hang).value_or(false));
  EXPECT_NE(vm_->run_state().value_or(""), "running");
  saver->kill();
  ASSERT_OK(vm_->resume());
  expect_flawless(*vm_);
  const Image next = make_image(directory_.path() / "next");
  const auto saved = save(*vm_, next);
  ASSERT_OK(saved);
  expect_flawless(*vm_);
  EXPECT_EQ(layers_of(directory_.path() / "a", 0).size(), raised_layers) << "the killed saver's layer is merged too";
  auto restored = restore(booted_->spec, place("b"), next, *saved);
  ASSERT_OK(restored);
  expect_flawless(*restored);
}

TEST_F(VmProcessTest, NothingRunsWithoutItsOwner) {
  const Place where = place("a");
  auto told = os::make_pipe();
  ASSERT_OK(told);
  auto owner = os::fork_child([&] {
    auto started = Vm::start(booted_->spec, where, qemu());
    if (!started || !os::write_all(told->write, fmt::format("{}\n", started->process().pid()))) return 1;
    ::pause();
    return 0;
  }, SIGKILL);
  ASSERT_OK(owner);
  ASSERT_TRUE(os::readable_within(told->read.get(), hang).value_or(false));
  char text[32] = "";
  ASSERT_GT(::read(told->read.get(), text, sizeof text - 1), 0);
  const auto orphan = os::Pidfd::open(std::atoi(text));
  ASSERT_OK(orphan);
  owner->kill();
  EXPECT_TRUE(orphan->ended_within(hang).value_or(false));
  auto group = os::Cgroup::open(where.cgroup);  // what a supervisor's janitor clears away
  ASSERT_OK(group);
  EXPECT_TRUE(group->remove().has_value());
}

TEST_F(VmProcessTest, QemuKilledDuringTheSaveIsSaidAndNothingHangs) {
  ASSERT_NO_FATAL_FAILURE(raise());
  const Image image = make_image(directory_.path() / "image");
  StubbornMemory memory([&]() -> Status {
    ::kill(vm_->process().pid(), SIGKILL);
    return {};
  });
  const auto saved = vm_->save(image.device_state, image.disk, memory);
  ASSERT_FALSE(saved);
  EXPECT_EQ(saved.error().code, Errc::application) << saved.error().text();
}

TEST_F(VmProcessTest, AnImageThatDoesNotFitIsRefused) {
  ASSERT_NO_FATAL_FAILURE(raise());
  const Image image = make_image(directory_.path() / "image");
  const auto saved = save(*vm_, image);
  ASSERT_OK(saved);

  VmSpec larger = booted_->spec;
  larger.memory_bytes = 256_MiB;
  const auto other_memory = restore(larger, place("b"), image, *saved);
  ASSERT_FALSE(other_memory);
  EXPECT_EQ(other_memory.error().code, Errc::corrupt);
  EXPECT_NE(other_memory.error().message.find("memory_bytes"), std::string::npos) << other_memory.error().text();

  Saved by_kvm = *saved;
  by_kvm.properties["accelerator"] = "kvm";
  const auto wrong_accelerator = restore(booted_->spec, place("c"), image, by_kvm);
  ASSERT_FALSE(wrong_accelerator);
  EXPECT_EQ(wrong_accelerator.error().code, Errc::unsupported);

  fs::resize_file(image.device_state / "device-state", saved->device_state_bytes / 2);
  const auto cut = restore(booted_->spec, place("d"), image, *saved);
  ASSERT_FALSE(cut);
  EXPECT_EQ(cut.error().code, Errc::corrupt) << cut.error().text();

  std::ofstream(image.device_state / "device-state") << "nothing that QEMU ever wrote";
  const auto garbage = restore(booted_->spec, place("e"), image, *saved);
  ASSERT_FALSE(garbage);
  EXPECT_EQ(garbage.error().code, Errc::corrupt) << garbage.error().text();

  fs::resize_file(image.memory, 64_MiB);
  const auto short_memory = restore(booted_->spec, place("f"), image, *saved);
  ASSERT_FALSE(short_memory);
  EXPECT_EQ(short_memory.error().code, Errc::corrupt) << short_memory.error().text();

  const auto used_directory = restore(booted_->spec, place("f"), image, *saved);
  ASSERT_FALSE(used_directory);
  EXPECT_EQ(used_directory.error().code, Errc::conflict) << used_directory.error().text();
}

TEST_F(VmProcessTest, ANetworkCardIsAPortOfTheBridgeAndGoesWithQemu) {
  const auto network = os::Netns::create();
  ASSERT_OK(network);
  auto links = net::Rtnl::open(*network);
  ASSERT_OK(links);
  ASSERT_OK(links->add_bridge("br0", net::Mac{{2, 0, 0, 0, 0, 1}}));
  VmSpec spec = verifier();
  spec.mac = net::Mac{{2, 0, 0, 0, 0, 2}};
  Place where = place("a");
  where.network_namespace = network->fd().get();
  where.bridge = "no-such-bridge";
  EXPECT_EQ(Vm::start(spec, where, qemu()).error().code, Errc::not_found);
  where.bridge = "br0";
  ASSERT_NO_FATAL_FAILURE(boot(spec, where));
  ASSERT_FALSE(vm_->tap().empty());
  EXPECT_TRUE(links->has_link(vm_->tap()));
  const std::string tap = vm_->tap();
  expect_flawless(*vm_);
  vm_.reset();
  EXPECT_FALSE(links->has_link(tap));
}

/// The example of a real guest: a client of its Redis keeps one connection while the VM becomes another one.
TEST_F(VmProcessTest, AClientsConnectionLivesThroughSaveAndRestore) {
  const fs::path files = guest("database");
  if (files.empty()) GTEST_SKIP() << "needs the guest `database`: tools/make-guest database $YADO_GUESTS/database";
  const auto network = os::Netns::create();
  ASSERT_OK(network);
  auto links = net::Rtnl::open(*network);
  ASSERT_OK(links);
  ASSERT_OK(links->add_bridge("br0", net::Mac{{2, 0, 0, 0, 0, 1}}));
  ASSERT_OK(links->add_address("br0", {net::Ipv4::of(10, 77, 0, 1), 24}));
  ASSERT_OK(links->set_up("br0"));
  VmSpec spec;
  spec.name = "database";
  spec.kernel = files / "kernel";
  spec.initramfs = files / "initramfs";
  spec.kernel_command_line = "console=ttyS0 quiet yado.address=10.77.0.2/24";
  spec.memory_bytes = 384_MiB;
  spec.disks = {files / "disk.qcow2"};
  spec.mac = net::Mac{{2, 0, 0, 0, 0, 2}};
  const auto at = [&](const std::string& name) {
    Place where = place(name);
    where.network_namespace = network->fd().get();
    where.bridge = "br0";
    return where;
  };
  auto started = Vm::start(spec, at("a"), qemu());
  ASSERT_OK(started);
  vm_.emplace(std::move(*started));
  ASSERT_OK(vm_->console().wait_for("Ready to accept connections", hang));

  const auto client = net::testing::connect_in(*network, "10.77.0.2", 6379, static_cast<int>(hang / 1ms));
  ASSERT_OK(client);
  const auto ask = [&](const std::string& command) {
    if (!os::write_all(*client, command + "\r\n") || !os::readable_within(client->get(), hang).value_or(false)) return std::string("no answer");
    char answer[256];
    const ssize_t n = ::read(client->get(), answer, sizeof answer);
    return n > 0 ? std::string(answer, static_cast<std::size_t>(n)) : std::string("closed");
  };
  EXPECT_EQ(ask("SET shell blue"), "+OK\r\n");
  const Image image = make_image(directory_.path() / "image");
  const auto saved = save(*vm_, image);
  ASSERT_OK(saved);
  vm_.reset();
  auto restored = restore(spec, at("b"), image, *saved);
  ASSERT_OK(restored);
  EXPECT_EQ(ask("GET shell"), "$4\r\nblue\r\n");
  if (saved->disks_frozen) {  // its agent had started by then
    auto agent = restored->agent(hang);
    ASSERT_OK(agent);
    ASSERT_OK(agent->thaw_disks(hang));
  }
  const auto end = restored->stop(hang);
  ASSERT_OK(end);
  EXPECT_EQ(end->reason, "the guest powered off");
}

TEST_F(VmProcessTest, TheDiskOutlivesAQemuKilledDuringASaveAndIsUsedAgain) {
  const VmSpec spec = booted_->spec;
  const Place where = place("a");
  ASSERT_NO_FATAL_FAILURE(boot(spec, where));
  ASSERT_NO_FATAL_FAILURE(order(*vm_, "d"));
  ASSERT_OK(save(*vm_, make_image(directory_.path() / "image")));
  ASSERT_NO_FATAL_FAILURE(order(*vm_, "d"));
  ASSERT_NO_FATAL_FAILURE(order(*vm_, "i"));
  ASSERT_OK(vm_->console().send("s"));
  const auto before = vm_->console().wait_for("GUEST is", hang);
  ASSERT_OK(before);
  const Image second = make_image(directory_.path() / "second");
  StubbornMemory memory([&]() -> Status {
    ::kill(vm_->process().pid(), SIGKILL);
    return {};
  });
  ASSERT_FALSE(vm_->save(second.device_state, second.disk, memory));
  vm_.reset();
  EXPECT_EQ(layers_of(where.directory, 0).size(), 3U) << "sealed, sealed again, and the new one";
  std::ofstream(where.directory / "disk-0.77.qcow2").flush();  // one more, killed before anything was in it
  auto again = Vm::start(spec, where, qemu());
  ASSERT_OK(again);
  const auto up = again->console().wait_for("GUEST up", hang);
  ASSERT_OK(up);
  EXPECT_EQ(values_of(*up)["disk_record"], values_of(*before)["disk_record"]);
  EXPECT_NE(values_of(*up)["disk_record"], "0");
}

TEST_F(VmProcessTest, NoRoomForANewLayerIsAnErrorAndTheGuestRunsOn) {
  ASSERT_OK(os::enter_private_mounts());
  const Place where = place("a");
  const auto tmpfs = os::make_tmpfs(4_MiB);
  ASSERT_OK(tmpfs);
  const auto mounted = os::attach_mount(*tmpfs, where.directory);
  ASSERT_OK(mounted);
  {
    auto restored = restore(booted_->spec, where, make_image(booted_->directory.path() / "image"), *booted_->saved);
    ASSERT_OK(restored);
    vm_.emplace(std::move(*restored));
  }
  const fs::path filler = where.directory / "filler";
  auto file = os::open_path(filler, O_WRONLY | O_CREAT, 0600);
  ASSERT_OK(file);
  const std::string block(4096, 'x');
  while (::write(file->get(), block.data(), block.size()) > 0) {}
  const auto saved = save(*vm_, make_image(directory_.path() / "image"));
  ASSERT_FALSE(saved);
  EXPECT_EQ(saved.error().code, Errc::no_space) << saved.error().text();
  EXPECT_EQ(vm_->run_state().value_or(""), "running");
  fs::remove(filler);
  file->reset();
  ASSERT_OK(save(*vm_, make_image(directory_.path() / "next")));
  expect_flawless(*vm_);
  vm_.reset();
}

}  // namespace
}  // namespace yado::vm
