// A VM with split memory lives through what people and hosts do to it, in an order that a seed chooses: checkpoints, incremental ones, restores over other hosts, moves of
// the guest and of its memory, deaths of its processes, of its host, of a host with some of its memory, of its processes and that or control at once; any of them while a
// host dies, is cut off, hears or is heard no more, stands still, or loses its agent; a copy of the image that is damaged. Its guest compares its memory all the time.
// Whatever is done waits until its image outlives any one host; then it is never started anew.
//
//   YADO_STEPS=N   so many instead of a few            YADO_STEP_SEED=S   as a run that failed has printed it            YADO_STEP_REDUNDANCY=none|replica|parity

#include <algorithm>
#include <cinttypes>
#include <cstdlib>
#include <future>
#include <random>

#include "os/cgroup.hpp"
#include "os/clock.hpp"
#include "split_testing.hpp"

namespace yado::labtest {
namespace {

constexpr nanoseconds recovery = 3 * generous;

class RandomLifeTest : public LabTest<RandomLifeTest>, public ::testing::WithParamInterface<std::string> {
 public:
  static ClusterOptions cluster_options() { return {.hosts = 5, .criu = true, .database = false, .disk = "1GB", .name = {}}; }

 protected:
  void TearDown() override {
    LabTest::TearDown();
    load.reset();
    (void)cluster().yado({"rm", "bigvm"});
  }

  std::size_t upto(std::size_t n) { return static_cast<std::size_t>(random_() % n); }
  bool one_in(std::size_t n) { return upto(n) == 0; }
  std::string one_of(const std::vector<std::string>& all) { return all[upto(all.size())]; }
  bool with_parity() const { return GetParam() == "parity"; }

  json view() { return cluster().workload("bigvm"); }
  std::string home() { return cluster().owner_host("bigvm"); }
  std::vector<std::string> others(const std::string& than) {
    std::vector<std::string> hosts{"h1", "h2", "h3", "h4", "h5"};
    std::erase(hosts, than);
    std::ranges::shuffle(hosts, random_);
    return hosts;
  }
  /// As after --over. Alone it cannot be with redundancy, and hosts have no sizes with parity.
  std::string over(const std::string& main) {
    if (GetParam() == "none" && one_in(5)) return main;
    std::vector<std::string> hosts = others(main);
    hosts.resize(with_parity() ? 3 + upto(2) : 2 + upto(2));
    std::string text = fmt::format("{}:{}MiB", main, one_of({"32", "64", "128"}));
    for (const std::string& host : hosts) text += fmt::format(",{}{}", host, GetParam() == "none" && host == hosts.front() && one_in(3) ? ":16MiB" : "");
    return text;
  }
  void say(const std::string& what) {
    done_ += what + "\n";
    std::fprintf(stderr, "  %s\n", what.c_str());
  }
  Ended yado(const std::vector<std::string>& arguments) {
    say(fmt::format("yado {}", fmt::join(arguments, " ")));
    return cluster().yado(arguments);
  }
  void expect_done(const std::vector<std::string>& arguments) {
    Ended ended = yado(arguments);
    // A move that lost its agent has to come to its end first.
    // Without redundancy a checkpoint may be the first to want what a host had that died and came back at once: the VM goes back to its image then.
    const auto later = [&] {
      return (arguments.front() == "move" && ended.output.find("is under way (conflict)") != std::string::npos) ||
             (arguments.front() == "checkpoint" && GetParam() == "none" && ended.output.find("the pager has ended") != std::string::npos);
    };
    for (int i = 0; i < 5 && later() && right_again(); ++i) ended = yado(arguments);
    EXPECT_EQ(ended.status, 0) << ended.output;
  }
  /// Its memory was on `host`, too; or, where nothing was, it may go on.
  void die(const std::string& host, bool process) {
    const std::string main = home();
    const std::uint64_t before = cluster().epoch("bigvm"), since = cluster().newest_event();
    say(fmt::format("{} falls silent{}; it runs on {}", host, process ? " and its process is killed" : "", main));
    ASSERT_OK(cluster().fault("host-silent", host));
    if (process) (void)cluster().fault("process", main, "bigvm");  // it may have ended for want of a page
    if (host == main || process) {
      EXPECT_TRUE(cluster().until([&] { return cluster().epoch("bigvm") > before && view().value("state", "") == "up"; }, recovery)) << view().dump();
    }
    EXPECT_TRUE(cluster().event(since, [&](const json& event) { return event.value("kind", "") == "host-silent" && event.value("host", "") == host; }));
    EXPECT_TRUE(right_again());
    const std::size_t before_it_is_back = cluster().events().size();
    ASSERT_OK(cluster().heal(host));
    comes_back(host, before_it_is_back);
  }
  /// Its memory server is another one then, and what is asked of it fails as long as control knows the one before.
  void comes_back(const std::string& host, std::size_t events_before) {
    const auto joined = [&](const json& event) { return event.value("kind", "") == "host-joined" && event.value("host", "") == host; };
    EXPECT_TRUE(cluster().until([&] {
      const std::vector<json> all = cluster().events();
      return std::any_of(all.begin() + static_cast<std::ptrdiff_t>(std::min(events_before, all.size())), all.end(), joined);
    })) << host << fmt::format(": {} of {} events before", events_before, cluster().events().size());
  }
  /// A link that was healed just now may not have carried anything yet, and an agent that was started anew has to report.
  void is_heard_again(const std::string& host, Instant since) {
    EXPECT_TRUE(cluster().until([&] {
      const auto all = cluster().control("GET", "/v1/hosts");
      if (!all) return false;
      for (const json& one : (*all)["hosts"])
        if (one.value("host", "") == host) return one.value("alive", false) && std::chrono::milliseconds(one.value("heard_ms", 1 << 30)) < os::now() - since;
      return false;
    }, recovery)) << host;
  }
  bool right_again(nanoseconds limit = recovery) { return right_again(*load, limit); }
  static bool right_again(drill::Load& load, nanoseconds limit) {
    const std::size_t samples = load.samples().size();
    return load.wait_for([&](const drill::Sample& sample) { return sample.correct && sample.number >= samples; }, limit).has_value();
  }

  struct Fault {
    std::string kind, host;
  };
  /// One, or two: of these only one takes a host out of service, because an image is to outlive one.
  std::vector<Fault> faults() {
    const auto at = [&](const std::string& kind) { return Fault{.kind = kind, .host = kind == "process" || one_in(2) ? home() : others(home()).front()}; };
    std::vector<Fault> all{at(one_of({"process", "host-silent", "cut", "one-way-in", "one-way-out", "lossy", "freeze", "agent", "disk-full"}))};
    if (one_in(2)) return all;
    const Fault second = at(one_of({"process", "lossy", "disk-full"}));
    if (second.host == all.front().host && second.kind != "process") return all;  // a host has one fault
    all.insert(one_in(2) ? all.begin() : all.end(), second);
    return all;
  }
  /// What a fault meets may fail, and says so; the guest is right, or recovered from its image.
  void disturb(const std::vector<std::string>& arguments) {
    const std::vector<Fault> all = faults();
    say(fmt::format("yado {}", fmt::join(arguments, " ")));
    std::future<Ended> done = std::async(std::launch::async, [&] { return cluster().yado(arguments); });
    const auto is_over = [&] { return done.wait_for(std::chrono::seconds(0)) == std::future_status::ready; };
    for (const Fault& fault : all) {
      const std::size_t events = upto(6), answers = upto(20), samples = load->samples().size();
      const bool by_answers = one_in(2);
      say(fmt::format("  and after {} {} {}", by_answers ? fmt::format("{} answers", answers) : fmt::format("{} events", events), fault.kind, fault.host));
      const std::uint64_t since = cluster().newest_event();
      // No answers may come after the first fault.
      EXPECT_TRUE(cluster().until([&] { return (by_answers ? load->samples().size() >= samples + answers : cluster().events(since).size() >= events) || is_over(); }, recovery));
      if (fault.kind == "process") (void)cluster().fault(fault.kind, fault.host, "bigvm");  // it may have ended, or gone
      else ASSERT_OK(cluster().fault(fault.kind, fault.host));
    }
    EXPECT_TRUE(right_again());
    const Ended ended = done.get();
    say(fmt::format("  -> {} {}", ended.status, ended.status == 0 ? "" : ended.output));
    for (const Fault& fault : all) {
      if (fault.kind == "process") continue;
      const std::size_t before = cluster().events().size();
      ASSERT_OK(cluster().heal(fault.host));
      if (fault.kind == "host-silent") comes_back(fault.host, before);
      is_heard_again(fault.host, os::now());
    }
  }

  /// One host's files of its image are changed where they lie; then it is needed.
  void copy_is_damaged_and_process_dies() {
    const std::vector<std::string> holders = view()["image"]["holders"].get<std::vector<std::string>>();
    const std::string host = one_of(holders), image = view()["image"].value("id", "");
    say(fmt::format("{} is damaged on {}, and its process is killed", image, host));
    LAB_MUST(const Ended damaged, cluster().exec(host, {"/bin/sh", "-c", fmt::format("find {} -path '*/{}*' -name '*.log' -size +64k | head -1 | while read f; do "
        "for at in 0 1 2 3 4 5 6 7; do printf 'hermit' | dd of=\"$f\" bs=1 seek=$((at * 8192 + 4096)) conv=notrunc status=none; done; echo \"$f\"; done", cluster().host_directory(host).native(), image)}));
    say("  " + damaged.output);
    EXPECT_EQ(damaged.status, 0) << damaged.output;
    process_dies();
    checkpoint();  // all of it: nobody may have read yet what is damaged
  }

  void checkpoint() { expect_done({"checkpoint", "bigvm"}); }
  void checkpoint_changes() { expect_done({"checkpoint", "bigvm", "--incremental"}); }
  void restore() {
    const std::string to = one_of(view()["image"]["holders"].get<std::vector<std::string>>());
    const std::string image = view()["image"].value("id", "");
    const Ended ended = yado({"restore", "bigvm", "--over", over(to)});
    if (with_parity() && ended.output.find("with parity it cannot be asked for it") != std::string::npos) return;  // what runs goes on
    EXPECT_EQ(ended.status, 0) << ended.output;
    EXPECT_EQ(view().value("raised_from", json()), json(image));
  }
  void move() {
    const std::string to = others(home()).front();
    expect_done({"move", "bigvm", to, "--over", over(to)});
  }
  void move_memory() { expect_done({"move", "bigvm", "--over", over(home())}); }
  void process_dies() { process_dies("bigvm"); }
  void process_dies(const std::string& workload) {
    std::uint64_t before = 0;
    say(workload + "'s process is killed");
    const auto is_up = [&] { return cluster().workload(workload).value("state", "") == "up"; };
    // The last answer may have come from one that has been killed since.
    ASSERT_TRUE(cluster().until([&] {
      before = cluster().epoch(workload);
      return is_up() && cluster().fault("process", cluster().owner_host(workload), workload);
    }, recovery)) << cluster().workload(workload).dump();
    EXPECT_TRUE(cluster().until([&] { return cluster().epoch(workload) > before && is_up(); }, recovery)) << cluster().workload(workload).dump();
  }
  void host_dies() { die(home(), false); }
  void other_host_dies() { die(others(home()).front(), false); }
  void other_host_and_process_die() { die(others(home()).front(), true); }
  /// A gate raises it, if it can without knowing who is alive, and control, when it is back, finds it, or raises it.
  void control_and_process_die() {
    const std::string group = cluster().cgroup(home(), cluster().owner_instance("bigvm"));
    say("control and its process are killed");
    ASSERT_OK(cluster().fault("control", ""));
    LAB_MUST(const os::Cgroup instance, os::Cgroup::open(group));
    ASSERT_OK(instance.kill_all());
    say(right_again(generous / 6) ? "raised by a gate" : "not raised by a gate");
    const std::size_t dead = cluster().events().size();
    ASSERT_OK(cluster().heal("front"));
    for (const char* host : {"h1", "h2", "h3", "h4", "h5"}) comes_back(host, dead);
    EXPECT_TRUE(cluster().until([&] { return view().value("state", "") == "up"; }, recovery)) << view().dump();
  }
  /// A clone of it: made, used, gone again, while everything goes on. Like the other one it is never begun anew.
  void clone() {
    if (!load_of_twin) {
      const std::string to = one_of(view()["image"]["holders"].get<std::vector<std::string>>());
      const Ended ended = yado({"restore", "bigvm", "--as", "twin", "--over", over(to)});
      if (with_parity() && ended.output.find("with parity it cannot be asked for it") != std::string::npos) return;
      ASSERT_EQ(ended.status, 0) << ended.output;
      LAB_MUST(load_of_twin, drill::Load::start(load_options("twin.test")));
      EXPECT_TRUE(right_again(*load_of_twin, recovery));
      return;
    }
    EXPECT_TRUE(right_again(*load_of_twin, recovery)) << cluster().workload("twin").dump();
    switch (upto(3)) {
      case 0: expect_done({"checkpoint", "twin", "--incremental"}); break;
      case 1: process_dies("twin"); break;
      default: return end_clone();
    }
    EXPECT_TRUE(right_again(*load_of_twin, recovery));
  }
  void end_clone() {
    for (const drill::Sample& sample : load_of_twin->finish()) EXPECT_TRUE(sample.correct || sample.status != 200) << sample.number << ": " << sample.error << "\n" << done_;
    load_of_twin.reset();
    expect_done({"rm", "twin"});
  }
  drill::LoadOptions load_options(const std::string& host) {
    drill::LoadOptions options;
    options.address = cluster().gate();
    options.host = host;
    options.rate = 10;
    options.contains = " 0 wrong";
    return options;
  }
  void disturbed_checkpoint() { disturb({"checkpoint", "bigvm"}); }
  void disturbed_checkpoint_of_changes() { disturb({"checkpoint", "bigvm", "--incremental"}); }
  void disturbed_restore() { disturb({"restore", "bigvm", "--over", over(one_of(view()["image"]["holders"].get<std::vector<std::string>>()))}); }
  void disturbed_move() {
    const std::string to = others(home()).front();
    disturb({"move", "bigvm", to, "--over", over(to)});
  }
  void disturbed_move_of_memory() { disturb({"move", "bigvm", "--over", over(home())}); }
  void step() {
    using Self = RandomLifeTest;
    static constexpr void (Self::*all[])() = {&Self::checkpoint,  &Self::checkpoint_changes, &Self::restore,   &Self::restore,         &Self::move,
                                              &Self::move_memory, &Self::process_dies,       &Self::host_dies, &Self::other_host_dies, &Self::other_host_and_process_die, &Self::control_and_process_die,
                                              &Self::copy_is_damaged_and_process_dies, &Self::clone, &Self::clone,
                                              &Self::disturbed_checkpoint, &Self::disturbed_checkpoint_of_changes, &Self::disturbed_restore, &Self::disturbed_move, &Self::disturbed_move_of_memory};
    (this->*all[upto(std::size(all))])();
  }

  std::unique_ptr<drill::Load> load, load_of_twin;
  std::mt19937_64 random_;
  std::string done_;
};

TEST_P(RandomLifeTest, IsRightAndNeverBegunAnew) {
  if (const std::string why = missing_guest("memvm"); !why.empty()) GTEST_SKIP() << why;
  if (const std::string only = text_from("YADO_STEP_REDUNDANCY", long_run() ? GetParam() : "none"); GetParam() != only) GTEST_SKIP() << "only with " << only << " (all of them: --long)";
  const std::uint64_t steps = number_from("YADO_STEPS", long_run() ? 50 : 8);
  const std::uint64_t seed = number_from("YADO_STEP_SEED", long_run() ? std::random_device()() : 1);
  const std::string how = fmt::format("YADO_STEPS={} YADO_STEP_SEED={} YADO_STEP_REDUNDANCY={}", steps, seed, GetParam());
  std::fprintf(stderr, "%s\n", how.c_str());
  SCOPED_TRACE(how);
  random_.seed(seed);
  LAB_MUST(json spec, cluster().spec("memvm", "bigvm"));
  spec["policy"]["placement"] = {"h1", "h2", "h3", "h4", "h5"};
  spec["vm"]["split"]["redundancy"] = GetParam();
  spec["vm"]["vcpus"] = 1 + upto(3);
  if (with_parity()) spec["vm"]["split"]["over"].push_back({{"host", "h4"}});
  ASSERT_OK(cluster().deploy(spec));
  LAB_MUST(load, drill::Load::start(load_options("big.test")));
  ASSERT_TRUE(right_again());
  const std::size_t begun = cluster().events().size();  // a control that was restarted may count anew
  const auto begun_anew = [&]() -> std::optional<json> {
    std::size_t number = 0;
    for (const json& event : cluster().events()) {
      if (number++ < begun) continue;
      if (event.value("kind", "") == "ready" && event["fields"].value("way", "") == "cold") return event;
      if (event.value("kind", "") == "adopted" && event["fields"].value("image", "").empty()) return event;  // a gate raised it
    }
    return std::nullopt;
  };
  for (std::uint64_t i = 0; i < steps && !HasFailure(); ++i) {
    SCOPED_TRACE(done_);
    ASSERT_TRUE(right_again());
    ASSERT_TRUE(cluster().wait_redundant("bigvm", recovery)) << cluster().why_not_redundant("bigvm");
    step();
    const auto cold = begun_anew();
    EXPECT_FALSE(cold) << cold->dump();
  }
  EXPECT_TRUE(right_again()) << done_;
  if (load_of_twin) {
    EXPECT_TRUE(right_again(*load_of_twin, recovery)) << cluster().workload("twin").dump() << done_;
    end_clone();
  }
  EXPECT_FALSE(begun_anew()) << done_;
  for (const drill::Sample& sample : load->finish()) EXPECT_TRUE(sample.correct || sample.status != 200) << sample.number << ": " << sample.error << "\n" << done_;
}

INSTANTIATE_TEST_SUITE_P(Redundancy, RandomLifeTest, ::testing::Values("none", "replica", "parity"), [](const auto& test) { return test.param; });

}  // namespace
}  // namespace yado::labtest
