// kill -9 of whatever belongs to a guest with split memory, at random moments: the guest is right, or it was recovered from a complete image.
//
// Everything is a process of its own: QEMU, pager, three memory servers, and who saves. What is killed and when is chosen by a seed and by counts
// of what has happened (pages that moved, steps of a checkpoint, files of an instance), never by a clock.
//
//   YADO_KILLS=N   so many instead of a few            YADO_KILL_SEED=S   as a run that failed has printed it

#include <cinttypes>
#include <fstream>
#include <random>
#include <sys/inotify.h>
#include <poll.h>
#include <thread>

#include "workload/vm/paged_vm_testing.hpp"

namespace yado::vm {
namespace {

using namespace testing;

enum class During { run, save, restore };
enum class Victim { pager, server, qemu, saver };

enum class Held { once, twice, with_parity };
constexpr const char* name_of(Held held) { return held == Held::once ? "once" : held == Held::twice ? "twice" : "with parity"; }

struct Fault {
  During during = During::run;
  Victim victim = Victim::pager;
  unsigned server = 0;  ///< which, when it is one
  unsigned events = 0;  ///< that happen before
  unsigned looks = 0;   ///< at the pager's figures, behind the last event
};

std::string text(const Fault& fault) {
  static constexpr const char* when[] = {"running", "checkpoint", "restore"};
  static constexpr const char* who[] = {"pager", "server", "QEMU", "saver"};
  return fmt::format("{}{} killed: {}, event {}, {} looks", who[static_cast<int>(fault.victim)],
                     fault.victim == Victim::server ? std::to_string(fault.server) : "", when[static_cast<int>(fault.during)], fault.events, fault.looks);
}

/// Whoever saves writes a byte for every step.
class Steps final : public MemoryPart {
 public:
  Steps(MemoryPart& inner, const os::Fd& told) : inner_(inner), told_(told) {}
  Status before_pause(Brake& brake) override { return counted([&] { return inner_.before_pause(brake); }); }
  Status save(const os::Fd& memory, std::uint64_t bytes) override { return counted([&] { return inner_.save(memory, bytes); }); }
  Status after_pause() override { return counted([&] { return inner_.after_pause(); }); }
  Status load(const os::Fd&, std::uint64_t) override { return {}; }

 private:
  Status counted(const std::function<Status()>& step) {
    (void)os::write_all(told_, ".");
    Status done = step();
    (void)os::write_all(told_, ".");
    return done;
  }
  MemoryPart& inner_;
  const os::Fd& told_;
};

void write_file(const fs::path& path, std::string_view text) { std::ofstream(path, std::ios::binary) << text; }

/// Tells when the files of a directory have changed so many times.
class FileEvents {
 public:
  explicit FileEvents(const fs::path& directory) : events_(::inotify_init1(IN_CLOEXEC)) {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_CLOEXEC), 0);
    over_read_ = os::Fd(ends[0]), over_ = os::Fd(ends[1]);
    EXPECT_GE(::inotify_add_watch(events_.get(), directory.c_str(), IN_CREATE | IN_MOVED_TO | IN_CLOSE_WRITE), 0);
  }
  /// False: it was over before.
  bool wait_for(unsigned count) const {
    char buffer[4096];
    for (unsigned seen = 0; seen < count;) {
      pollfd wanted[] = {{over_read_.get(), POLLHUP, 0}, {events_.get(), POLLIN, 0}};
      if (::poll(wanted, 2, -1) < 0) continue;
      if (wanted[1].revents == 0) return false;
      const ssize_t n = ::read(events_.get(), buffer, sizeof buffer);
      for (ssize_t at = 0; at < n; ++seen) at += static_cast<ssize_t>(sizeof(inotify_event)) + reinterpret_cast<const inotify_event*>(buffer + at)->len;
    }
    return true;
  }
  void over() { over_.reset(); }

 private:
  os::Fd events_, over_read_, over_;
};

class RandomKillVmProcessTest : public PagedVmTest {
 protected:
  static constexpr unsigned servers = 3;
  struct Server {
    std::string name;
    fs::path socket;
    os::Fd input;
    os::Process process;
  };

  void SetUp() override {
    if (const std::string reason = why_not(); !reason.empty()) GTEST_SKIP() << reason;
    for (unsigned i = 0; i < servers; ++i) {
      server_[i].name = fmt::format("h{}", i + 2);
      ASSERT_NO_FATAL_FAILURE(start_server(server_[i]));
    }
  }
  void TearDown() override {
    vm_.reset();
    for (Server& one : server_) one.process.kill();
    PagedVmTest::TearDown();
  }

  void start_server(Server& one) {
    one.socket = directory_.path() / (one.name + ".sock");
    std::error_code ignored;
    fs::remove(one.socket, ignored);
    auto in = os::make_pipe();
    auto out = os::make_pipe();
    ASSERT_OK(in);
    ASSERT_OK(out);
    os::Spawn spawn{.arguments = {YADO_MEMORY_SERVER_PROGRAM, one.socket, directory_.path() / "store" / one.name, one.name, std::to_string(4 * memory_bytes / 4096)}};
    spawn.standard_input = in->read.get();
    spawn.standard_output = out->write.get();
    spawn.standard_error = STDERR_FILENO;
    spawn.death_signal = SIGKILL;
    auto started = os::spawn(spawn);
    ASSERT_OK(started);
    one.process = std::move(*started);
    one.input = std::move(in->write);
    out->write.reset();
    char ok[2];
    ASSERT_EQ(::read(out->read.get(), ok, 2), 2) << one.name << " does not listen";
  }

  VmSpec spec() const override {
    VmSpec made = PagedVmTest::spec();
    made.vcpus = vcpus_;
    return made;
  }
  /// A place for the next life, with a split of its own.
  Place next_place() {
    held_ = Held(random_() % 3);
    local_bytes_ = memory_bytes / 8 * (random_() % 2 == 0 ? 2 : 3);  // less than the pattern and the guest's kernel
    Place made{.directory = directory_.path() / fmt::format("life-{}", ++epoch_), .cgroup = fmt::format("yado-test/{}-{}", directory_.path().filename().native(), epoch_)};
    fs::create_directories(made.directory);
    Paging paging{.program = {YADO_PAGER_PROGRAM}};
    paging.config.local_bytes = local_bytes_;
    paging.config.copies = held_ == Held::twice ? 2 : 1;
    paging.config.parity = held_ == Held::with_parity;
    paging.config.session = "a";
    paging.config.epoch = epoch_;
    paging.config.servers = told_servers();
    made.paging = paging;
    return made;
  }
  std::vector<pager::ServiceConfig::Server> told_servers() const {
    std::vector<pager::ServiceConfig::Server> all;
    for (const Server& one : server_) all.push_back({.host = one.name, .unix_path = one.socket, .quota_bytes = memory_bytes});
    return all;
  }

  // ---- faults ----

  void strike(const Fault& fault, os::Process* saver) {
    switch (fault.victim) {
      case Victim::server: return server_[fault.server].process.kill();
      case Victim::saver: return saver->kill();
      case Victim::qemu:
        if (auto group = os::Cgroup::open(place_.cgroup)) {
          const auto inside = group->processes();
          for (const pid_t process : inside ? *inside : std::vector<pid_t>()) ::kill(process, SIGKILL);
          group->release();
        }
        return;
      case Victim::pager: {
        const auto file = os::read_text(place_.directory / "pager.pid");
        if (const int process = file ? std::atoi(file->c_str()) : 0; process > 1) ::kill(process, SIGKILL);
      }
    }
  }
  /// Each takes as long as the pager needs for an answer.
  static void look(const Place& where, unsigned times) {
    for (unsigned i = 0; i < times; ++i)
      if (!ask_pager(where.directory / "pager", R"({"do":"figures"})")) return;
  }


  // ---- while it runs ----

  void kill_while_running(const Fault& fault) {
    const auto sent = vm_->console().send("w");
    ASSERT_OK(sent);
    ASSERT_OK(vm_->console().wait_for("GUEST mode", hang));
    const auto moved = [&]() -> std::optional<std::uint64_t> {
      const auto in = figure("paged_in"), out = figure("paged_out");
      if (!in || !out) return std::nullopt;
      return *in + *out;
    };
    // It writes all over a pattern that is larger than the local memory: pages move for ever.
    const auto begun = moved();
    for (auto now = begun; begun && now && *now < *begun + fault.events * 64;) now = moved();
    look(place_, fault.looks);
    strike(fault, nullptr);
  }

  // ---- during a checkpoint ----

  /// In a process of its own, as a supervisor does it: 0, and its results lie beside the parts.
  int save_all(const fs::path& directory, const std::string& name, bool delta, const os::Fd& told) {
    const auto step = [&](std::uint64_t, std::uint64_t) { (void)os::write_all(told, "."); };
    PagedMemory memory({.control = vm_->pager(), .part = directory / "memory", .name = name, .cut = image::CutId::of(name),
                        .base_cut = delta ? good_.cut : image::CutId(), .base = delta ? good_.name : "", .progress = step});
    Steps steps(memory, told);
    const auto saved = vm_->save(directory / "device-state", directory / "disk", steps);
    if (!saved) return saved.error().code == Errc::conflict ? busy : failed;
    if (!memory.keep()) return failed;
    step(0, 0);
    if (!vm_->kept(*saved, image::CutId::of(name).hex())) return failed;
    step(0, 0);
    if (saved->disks_are_delta) write_file(directory / "disks-are-delta", "");
    for (const auto& [key, value] : saved->properties) write_file(directory / "properties" / key, value);
    std::string hosts;
    for (const MemoryShare& share : memory.shares()) hosts += share.host.empty() ? "" : share.host + "\n";
    write_file(directory / "hosts", hosts);
    write_file(directory / "base", memory.base_cut().none() ? "" : memory.base_cut().hex());
    return 0;
  }
  /// Nothing: it was not saved.
  std::optional<Image> save(const Fault* fault) {
    Image image{.name = fmt::format("a-img.{}", ++images_), .saved = {}, .cut = {}, .shares = {}, .base_cut = {}, .chain = {}, .directory = {}};
    image.directory = directory_.path() / image.name;
    image.cut = image::CutId::of(image.name);
    for (const char* part : {"device-state", "disk", "memory", "properties"}) fs::create_directories(image.directory / part);
    const bool delta = random_() % 2 == 0;
    os::ExitStatus end{busy, 0};
    while (end.code == busy && end.signal == 0) {  // what a killed one had begun is being abandoned still
      auto pipe = os::make_pipe();
      auto saver = os::fork_child([&] { return save_all(image.directory, image.name, delta, pipe->write); }, SIGKILL);
      if (!saver) return ADD_FAILURE() << saver.error().text(), std::nullopt;
      pipe->write.reset();
      char event;
      for (unsigned seen = 0; fault && seen < fault->events && ::read(pipe->read.get(), &event, 1) == 1;) ++seen;
      if (fault) {
        look(place_, fault->looks);
        strike(*fault, &*saver);
      }
      if (!saver->running()) end = {0, SIGKILL};
      else if (const auto ended = saver->wait(hang); ended && *ended) end = **ended;
      else return ADD_FAILURE() << "a checkpoint hangs", std::nullopt;
    }
    if (end.signal != 0) (void)vm_->resume();  // it may have stood still for the one who was killed
    if (!end.success()) return fs::remove_all(image.directory), std::nullopt;
    for (const auto& file : fs::directory_iterator(image.directory / "properties")) image.saved.properties[file.path().filename()] = *os::read_text(file.path());
    if (!os::read_text(image.directory / "base")->empty()) image.chain = good_.chain;
    if (fs::exists(image.directory / "disks-are-delta")) image.lie_on(good_);
    auto& parts = image.chain.emplace_back(std::vector<fs::path>{image.directory / "memory"});
    std::istringstream hosts(*os::read_text(image.directory / "hosts"));
    for (std::string host; hosts >> host;) parts.push_back(share_of(image.name, host));
    return image;
  }

  // ---- while it is restored ----

  /// True: it runs.
  bool recover(const Fault* fault) {
    place_ = next_place();
    place_.paging->config.image = good_.chain;
    FileEvents files(place_.directory);
    std::thread striker;
    if (fault)
      striker = std::thread([&] {
        if (files.wait_for(fault->events)) look(place_, fault->looks);
        strike(*fault, nullptr);
      });
    PagedMemory::Options as;
    as.cut = good_.cut;
    PagedMemory memory(std::move(as));
    auto restored = Vm::restore(spec(), place_, qemu(), good_.parts(), memory);
    files.over();
    if (striker.joinable()) striker.join();
    if (!restored && !fault) ADD_FAILURE() << "not recovered: " << restored.error().text();
    if (!restored) return false;
    vm_.emplace(std::move(*restored));
    return true;
  }

  // ---- what must be true afterwards ----

  /// The guest checks every word, or has ended.
  bool runs_on() {
    if (!vm_) return false;
    if (const auto verdict = verify(*vm_)) {
      EXPECT_TRUE(flawless(*verdict)) << ::testing::PrintToString(*verdict);
      return true;
    }
    const auto gone = vm_->process().ended_within(hang);
    EXPECT_TRUE(gone && *gone) << "it neither answers nor has it ended";
    vm_.reset();
    return false;
  }
  /// Dead servers come back, empty; a guest that runs gets its redundancy back.
  void heal() {
    bool any = false;
    for (Server& one : server_) {
      if (one.process.running()) continue;
      ASSERT_NO_FATAL_FAILURE(start_server(one));
      any = true;
    }
    if (!vm_ || !any) return;
    ASSERT_OK(change_memory_servers(vm_->pager(), local_bytes_, told_servers()));
    if (held_ != Held::once) wait_until_redundant();
  }
  bool must_survive(const Fault& fault) const {
    if (fault.during == During::restore) return false;
    return fault.victim == Victim::saver || (fault.victim == Victim::server && held_ != Held::once);
  }

  Fault choose() {
    const auto upto = [&](unsigned n) { return static_cast<unsigned>(random_() % n); };
    Fault fault{.during = During(upto(3)), .victim = Victim(upto(3)), .server = upto(servers), .events = upto(12), .looks = upto(4) == 0 ? upto(40) : 0};
    if (fault.during == During::save && upto(3) == 0) fault.victim = Victim::saver;
    return fault;
  }
  void kill_and_recover() {
    const Fault fault = choose();
    const std::string what = fmt::format("life {} (held {}, {} MiB here): {}", epoch_, name_of(held_), local_bytes_ >> 20, text(fault));
    SCOPED_TRACE(what);
    std::fprintf(stderr, "%s\n", what.c_str());
    if (fault.during == During::run) {
      ASSERT_NO_FATAL_FAILURE(kill_while_running(fault));
    } else if (fault.during == During::save) {
      ASSERT_OK(vm_->console().send("w"));
      if (const auto image = save(&fault)) good_ = *image;
    } else {
      vm_.reset();
      (void)recover(&fault);
    }
    const bool right = runs_on();
    EXPECT_TRUE(right || !must_survive(fault)) << "its death must not end the guest";
    ASSERT_NO_FATAL_FAILURE(heal());
    survived_ += right ? 1 : 0;
    if (right) return;
    ASSERT_TRUE(recover(nullptr));
    ASSERT_TRUE(runs_on()) << "an image that was complete does not hold it";
  }

  enum : int { failed = 1, busy = 2 };
  std::mt19937_64 random_;
  Server server_[servers];
  Place place_;
  Image good_;
  unsigned images_ = 0, survived_ = 0;
  unsigned vcpus_ = 1;
  Held held_ = Held::once;
  std::uint64_t local_bytes_ = 0;
};

TEST_F(RandomKillVmProcessTest, TheGuestIsRightOrRecoveredFromACompleteImageWhoeverDiesWhenever) {
  const bool all = std::getenv("YADO_LONG") != nullptr;
  const std::uint64_t kills = number_from("YADO_KILLS", all ? 150 : 8);
  const std::uint64_t seed = number_from("YADO_KILL_SEED", all ? std::random_device()() : 1);
  SCOPED_TRACE(fmt::format("YADO_KILLS={} YADO_KILL_SEED={}", kills, seed));
  std::fprintf(stderr, "YADO_KILLS=%" PRIu64 " YADO_KILL_SEED=%" PRIu64 "\n", kills, seed);
  random_.seed(seed);
  vcpus_ = 1 + static_cast<unsigned>(random_() % 3);
  place_ = next_place();
  boot(place_);
  const auto first = save(nullptr);
  ASSERT_TRUE(first);
  good_ = *first;
  for (std::uint64_t i = 0; i < kills; ++i) {
    SCOPED_TRACE(fmt::format("kill {}", i));
    ASSERT_NO_FATAL_FAILURE(kill_and_recover());
    if (HasFailure()) return;
  }
  std::fprintf(stderr, "%" PRIu64 " kills (%u vCPUs): %u survived, %" PRIu64 " lives; %u checkpoints begun, the last whole one is %s\n", kills, vcpus_, survived_, epoch_, images_, good_.name.c_str());
  vm_.reset();
  for (std::uint64_t life = 1; life <= epoch_; ++life) {
    auto group = os::Cgroup::open(fmt::format("yado-test/{}-{}", directory_.path().filename().native(), life));
    EXPECT_FALSE(group) << "something of life " << life << " is left";
  }
}

}  // namespace
}  // namespace yado::vm
