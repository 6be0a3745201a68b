// A virtual machine whose memory several hosts keep: run, looked at, checkpointed, and recovered from its checkpoint.

#include <future>

#include "os/cgroup.hpp"
#include "split_testing.hpp"
#include "workload/vm/paging.hpp"

namespace yado::labtest {
namespace {

class SplitVmTest : public LabTest<SplitVmTest> {
 protected:
  std::unique_ptr<drill::Load> start_load() { return load_of_split_guest(cluster().gate()); }
};

TEST_F(SplitVmTest, AVirtualMachineOnSeveralHostsOutlivesItsMainHost) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm"));
  spec["policy"]["placement"] = {"h1", "h2", "h3"};
  ASSERT_OK(cluster().deploy(spec));
  EXPECT_EQ(cluster().owner_host("bigvm"), "h1");
  const auto load = start_load();
  ASSERT_TRUE(load);
  ASSERT_TRUE(answered_after(*load, 0));

  LAB_MUST(const json memory, cluster().control("GET", "/v1/workloads/bigvm/memory"));
  EXPECT_LE(memory.value("local_bytes", 0ull), 96ull << 20);
  std::set<std::string> keepers;
  for (const json& server : memory["servers"])
    if (server.value("pages", 0ull) > 0) keepers.insert(server.value("host", ""));
  EXPECT_EQ(keepers, (std::set<std::string>{"h2", "h3"})) << memory.dump();
  const Ended top = cluster().yado({"top", "--once"});
  EXPECT_EQ(top.status, 0) << top.output;
  EXPECT_NE(top.output.find("bigvm"), std::string::npos) << top.output;

  // Its checkpoint: every host's share is an image of its own, and all of it is on a second host.
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  const auto holders = [&](const std::string& image) {
    const auto all = cluster().control("GET", "/v1/images");
    for (const json& one : all ? (*all)["images"] : json::array())
      if (one.value("id", "") == image) return one["holders"].get<std::set<std::string>>();
    return std::set<std::string>();
  };
  const std::string image = cluster().workload("bigvm")["image"].value("id", "");
  EXPECT_EQ(holders(image).size(), 2u);
  for (const char* host : {"h2", "h3"}) {
    const std::set<std::string> held = holders(image + "." + host);
    EXPECT_TRUE(held.contains(host)) << host;
    // The copy of the whole is where the main image's copy is; that host's own share is there already.
    for (const std::string& copy : holders(image)) EXPECT_TRUE(copy == "h1" || held.contains(copy)) << host << " not on " << copy;
  }
  // In which order it is used is known some seconds later, on whichever host it is raised.
  for (const std::string& host : holders(image)) {
    const auto order = cluster().host_directory(host) / "images" / (".use-" + image);
    EXPECT_TRUE(load->wait_for([&](const drill::Sample&) { return std::filesystem::exists(order); }, generous)) << order;
  }
  const Ended shown = cluster().yado({"images", "show", image});
  EXPECT_NE(shown.output.find("in the first seconds after it"), std::string::npos) << shown.output;
  const std::uint64_t before = cluster().epoch("bigvm");
  const std::uint64_t since = cluster().newest_event();
  ASSERT_OK(cluster().fault("host-silent", "h1"));
  EXPECT_TRUE(answered_after(*load, before)) << "not recovered";
  const auto ready = cluster().event(since, "ready", "bigvm");
  ASSERT_TRUE(ready);
  EXPECT_EQ((*ready)["fields"].value("way", ""), "image") << ready->dump();
  EXPECT_NE(cluster().owner_host("bigvm"), "h1");
  ASSERT_OK(cluster().heal("h1"));

  // By hand: a checkpoint of what runs now, and all of it on one host.
  const Ended taken = cluster().yado({"checkpoint", "bigvm"});
  EXPECT_EQ(taken.status, 0) << taken.output;
  EXPECT_NE(taken.output.find("standing still for"), std::string::npos) << taken.output;
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  std::string target;
  const json now = cluster().workload("bigvm");
  for (const json& holder : now["image"]["holders"])
    if (holder != cluster().owner_host("bigvm")) target = holder;
  // First where it runs, where the others' shares are not: they are asked for them, and then keep nothing. Then where copies of all are.
  for (const std::string& where : {cluster().owner_host("bigvm"), target}) {
    SCOPED_TRACE(where);
    const std::uint64_t until = cluster().epoch("bigvm"), asked = cluster().newest_event();
    const Ended restored = cluster().yado({"restore", "bigvm", "--over", where});
    EXPECT_EQ(restored.status, 0) << restored.output;
    EXPECT_TRUE(answered_after(*load, until));
    EXPECT_EQ(cluster().owner_host("bigvm"), where);
    const auto raised = cluster().event(asked, "ready", "bigvm");
    ASSERT_TRUE(raised);
    EXPECT_EQ((*raised)["fields"].value("way", ""), "image") << raised->dump();
    json then;
    EXPECT_TRUE(load->wait_for([&](const drill::Sample&) {
      if (auto seen = cluster().control("GET", "/v1/workloads/bigvm/memory")) then = std::move(*seen);
      return then.contains("servers") && then["servers"].empty();
    }, generous)) << then.dump();
  }

  // Its memory goes to another host while it runs, and comes home again.
  const std::uint64_t running = cluster().epoch("bigvm");
  const std::string other = target == "h2" ? "h3" : "h2";
  const auto keepers_now = [&] {
    std::set<std::string> hosts;
    const auto now_here = cluster().control("GET", "/v1/workloads/bigvm/memory");
    for (const json& server : now_here ? (*now_here)["servers"] : json::array()) hosts.insert(server.value("host", ""));
    return hosts;
  };
  const Ended spread = cluster().yado({"move", "bigvm", "--over", target + ":64MiB," + other});
  EXPECT_EQ(spread.status, 0) << spread.output;
  EXPECT_EQ(keepers_now(), std::set<std::string>{other});
  const Ended home = cluster().yado({"move", "bigvm", "--over", target});
  EXPECT_EQ(home.status, 0) << home.output;
  EXPECT_EQ(keepers_now(), std::set<std::string>());
  const Ended nobody = cluster().yado({"move", "bigvm", "--over", "h77"});
  EXPECT_NE(nobody.status, 0);
  EXPECT_NE(nobody.output.find("host h77 does not answer"), std::string::npos) << nobody.output;
  EXPECT_EQ(cluster().epoch("bigvm"), running) << "raised anew";
  EXPECT_EQ(cluster().owner_host("bigvm"), target);
  expect_all_correct(*load);
}

class SpareTest : public LabTest<SpareTest> {
 public:
  static ClusterOptions cluster_options() { return {.hosts = 4, .criu = false, .database = false, .disk = {}, .name = {}}; }
};

TEST_F(SpareTest, AnotherHostTakesThePlaceOfALostOne) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm", "cold"));
  spec["policy"]["placement"] = {"h1"};
  spec["vm"]["split"]["redundancy"] = "replica";
  ASSERT_OK(cluster().deploy(spec));
  const std::uint64_t epoch = cluster().epoch("bigvm");
  const auto load = load_of_split_guest(cluster().gate());
  ASSERT_TRUE(load);
  ASSERT_TRUE(load->wait_for([](const drill::Sample& sample) { return sample.correct; }, generous));
  const std::uint64_t since = cluster().newest_event();
  ASSERT_OK(cluster().fault("host-silent", "h3"));
  const auto replaced = cluster().event(since, "memory-host-replaced", "bigvm");
  ASSERT_TRUE(replaced);
  EXPECT_EQ((*replaced)["fields"].value("lost", ""), "h3") << replaced->dump();
  // The copies that h3 had are made in the background: every answer says how many are missing.
  json memory;
  do {
    LAB_MUST(memory, cluster().control("GET", "/v1/workloads/bigvm/memory"));
  } while (memory.value("pages_without_redundancy", 1u) > 0);
  std::set<std::string> keepers;
  for (const json& server : memory["servers"])
    if (server.value("alive", false) && server.value("pages", 0ull) > 0) keepers.insert(server.value("host", ""));
  EXPECT_EQ(keepers, (std::set<std::string>{"h2", "h4"})) << memory.dump();
  EXPECT_EQ(cluster().epoch("bigvm"), epoch) << "it was raised anew";
  expect_all_correct(*load);
}

/// On three hosts whoever has the copy of the image saved a share of it, too, and keeps memory of the VM: its death is both a reason to restore, and a loss to the image.
TEST_F(SplitVmTest, TheDeathOfTheHostWithTheCopyOfItsImageTogetherWithItsOwnIsOutlived) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm"));
  spec["policy"]["placement"] = {"h1", "h2", "h3"};
  ASSERT_OK(cluster().deploy(spec));
  const auto load = start_load();
  ASSERT_TRUE(load && answered_after(*load, 0));
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  const json image = cluster().workload("bigvm")["image"];
  std::set<std::string> others = image["holders"].get<std::set<std::string>>();
  EXPECT_EQ(others.erase("h1"), 1u);
  ASSERT_EQ(others.size(), 1u) << image.dump();
  const std::string other = *others.begin();

  const std::uint64_t before = cluster().epoch("bigvm"), since = cluster().newest_event();
  ASSERT_OK(cluster().fault("host-silent", other));
  (void)cluster().fault("process", "h1", "bigvm");  // it may have ended already, for want of a page
  ASSERT_TRUE(answered_after(*load, before));
  const auto ready = cluster().event(since, "ready", "bigvm");
  ASSERT_TRUE(ready);
  EXPECT_EQ((*ready)["fields"].value("way", ""), "image") << ready->dump();
  EXPECT_NE(cluster().owner_host("bigvm"), other);
  ASSERT_OK(cluster().heal(other));
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  expect_all_correct(*load);
}

TEST_F(SplitVmTest, ASlowCheckpointSaysHowFarEachHostHasCome) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm"));
  spec["policy"]["placement"] = {"h1", "h2", "h3"};
  spec["vm"]["split"]["checkpoint_bytes_per_second"] = 8 << 20;
  ASSERT_OK(cluster().deploy(spec));
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  const Ended taken = cluster().yado({"checkpoint", "bigvm"});
  EXPECT_EQ(taken.status, 0) << taken.output;
  const std::size_t at = taken.output.find("saving: ");
  ASSERT_NE(at, std::string::npos) << taken.output;
  const std::string line = taken.output.substr(at, taken.output.find('\n', at) - at);
  for (const char* host : {"h1 ", "h2 ", "h3 "}) EXPECT_NE(line.find(host), std::string::npos) << line;
  const Ended quiet = cluster().yado({"checkpoint", "bigvm", "--incremental", "--json"});
  EXPECT_EQ(quiet.status, 0) << quiet.output;
  EXPECT_EQ(quiet.output.find("saving: "), std::string::npos) << quiet.output;
}

/// Without any image: what goes on there can only be what ran here.
TEST_F(SplitVmTest, AVirtualMachineMovesToAnotherHostWhileItRuns) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm"));
  spec["policy"]["placement"] = {"h1", "h2", "h3"};
  spec["policy"]["standby"] = "cold";
  ASSERT_OK(cluster().deploy(spec));
  const auto load = start_load();
  ASSERT_TRUE(load);
  ASSERT_TRUE(answered_after(*load, 0));
  // Split as it was, then all of it on one host, then over others again.
  for (const auto& [target, over] : {std::pair<std::string, std::string>{"h2", ""}, {"h1", "h1"}, {"h3", "h3:96MiB,h1,h2"}}) {
    SCOPED_TRACE(target + " " + over);
    const std::uint64_t before = cluster().epoch("bigvm"), since = cluster().newest_event();
    ASSERT_NE(cluster().owner_host("bigvm"), target);
    std::vector<std::string> command{"move", "bigvm", target};
    if (!over.empty()) command.insert(command.end(), {"--over", over});
    const Ended moved = cluster().yado(command);
    EXPECT_EQ(moved.status, 0) << moved.output;
    EXPECT_EQ(cluster().owner_host("bigvm"), target);
    EXPECT_TRUE(answered_after(*load, before));
    const auto ready = cluster().event(since, "ready", "bigvm");
    ASSERT_TRUE(ready);
    EXPECT_EQ((*ready)["fields"].value("way", ""), "image") << ready->dump();
    const auto expected = cluster().event(since, "expected", "bigvm");
    ASSERT_TRUE(expected);
    EXPECT_EQ((*expected)["fields"].value("as", ""), ready->value("instance", "")) << "it was not raised where everything was ready";
    const auto disks = cluster().event(since, "disks-ahead", "bigvm");
    ASSERT_TRUE(disks);
    EXPECT_LT(disks->value("seq", 0ull), expected->value("seq", 0ull)) << "its disks went while it ran";
    const auto keepers = [&] {
      std::set<std::string> hosts;
      const auto memory = cluster().control("GET", "/v1/workloads/bigvm/memory");
      for (const json& server : memory ? (*memory)["servers"] : json::array({json::object()})) hosts.insert(server.value("host", ""));
      return hosts;
    };
    // Where it landed is emptied into the local memory after it runs.
    std::set<std::string> wanted{"h1", "h2", "h3"};
    wanted.erase(target);
    if (over == target) wanted.clear();
    EXPECT_TRUE(load->wait_for([&](const drill::Sample&) { return keepers() == wanted; }, generous)) << ::testing::PrintToString(keepers());
  }
  expect_all_correct(*load);
}

/// Where it was started an image must answer within two cold starts. Who came from another host may take longer: nobody else has its memory.
TEST_F(SplitVmTest, AGuestThatIsSlowAfterAMoveIsWaitedFor) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm", "cold"));
  spec["policy"]["placement"] = {"h1", "h2", "h3"};
  ASSERT_OK(cluster().deploy(spec));
  const std::string home = cluster().owner_host("bigvm");
  const Ended away = cluster().yado({"move", "bigvm", home == "h2" ? "h3" : "h2"});
  EXPECT_EQ(away.status, 0) << away.output;
  const std::uint64_t since = cluster().newest_event();
  auto moving = std::async(std::launch::async, [&] { return cluster().yado({"move", "bigvm", home}); });
  const auto expected = cluster().event(since, "expected", "bigvm");
  ASSERT_TRUE(expected);
  LAB_MUST(const os::Cgroup ready, os::Cgroup::open(cluster().cgroup(home, (*expected)["fields"].value("as", ""))));
  ASSERT_OK(ready.limit({.cpus = 0.02}));
  const Ended moved = moving.get();
  EXPECT_EQ(moved.status, 0) << moved.output;
  EXPECT_EQ(cluster().owner_host("bigvm"), home);
}

/// Its QEMU dies when the memory is inherited there and the guest has not run yet: without any image, what goes on can only be what stood here.
TEST_F(SplitVmTest, WhenTheNextHostFailsTheGuestGoesOnWhereItStood) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm", "cold"));
  spec["policy"]["placement"] = {"h1", "h2", "h3"};
  ASSERT_OK(cluster().deploy(spec));
  const auto load = start_load();
  ASSERT_TRUE(load);
  ASSERT_TRUE(answered_after(*load, 0));
  const std::string home = cluster().owner_host("bigvm"), instance = cluster().owner_instance("bigvm");
  const std::string target = home == "h2" ? "h3" : "h2";
  const std::uint64_t before = cluster().epoch("bigvm"), since = cluster().newest_event();
  auto moving = std::async(std::launch::async, [&] { return cluster().yado({"move", "bigvm", target}); });
  const auto expected = cluster().event(since, "expected", "bigvm");
  ASSERT_TRUE(expected);
  const std::string next = (*expected)["fields"].value("as", "");
  LAB_MUST(const os::Cgroup ready, os::Cgroup::open(cluster().cgroup(target, next)));
  ASSERT_OK(ready.freeze(generous));
  // Until it is told what to inherit, its pager answers nothing else.
  const auto pager = cluster().host_directory(target) / "instances" / next / "pager";
  EXPECT_TRUE(cluster().until([&] { return vm::ask_pager(pager, R"({"do":"figures"})").has_value(); })) << pager;
  ASSERT_OK(ready.kill_all());
  const Ended moved = moving.get();
  EXPECT_NE(moved.status, 0) << moved.output;
  EXPECT_TRUE(answered_after(*load, before));
  const auto is_back = cluster().event(since, "ready", "bigvm");
  ASSERT_TRUE(is_back);
  EXPECT_EQ((*is_back)["fields"].value("way", ""), "frozen") << is_back->dump();
  EXPECT_EQ(cluster().owner_host("bigvm"), home);
  EXPECT_EQ(cluster().owner_instance("bigvm"), instance);
  // And it can be moved later.
  const std::uint64_t back = cluster().epoch("bigvm");
  const Ended again = cluster().yado({"move", "bigvm", target});
  EXPECT_EQ(again.status, 0) << again.output;
  EXPECT_EQ(cluster().owner_host("bigvm"), target);
  EXPECT_TRUE(answered_after(*load, back));
  expect_all_correct(*load);
}

/// However far the move had come: the guest runs once, and what was ready for it elsewhere is gone, unless it is the one that runs.
TEST_F(SplitVmTest, WhenControlDiesDuringAMoveNothingIsLeftReady) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm", "cold"));
  spec["policy"]["placement"] = {"h1", "h2", "h3"};
  ASSERT_OK(cluster().deploy(spec));
  const auto load = start_load();
  ASSERT_TRUE(load);
  ASSERT_TRUE(answered_after(*load, 0));
  const std::uint64_t since = cluster().newest_event();
  const std::string target = cluster().owner_host("bigvm") == "h2" ? "h3" : "h2";
  auto moving = std::async(std::launch::async, [&] { return cluster().yado({"move", "bigvm", target}); });
  const auto expected = cluster().event(since, "expected", "bigvm");
  ASSERT_TRUE(expected);
  const std::string ready = cluster().cgroup(target, (*expected)["fields"].value("as", ""));
  ASSERT_OK(cluster().fault("control", ""));
  (void)moving.get();
  ASSERT_OK(cluster().heal("front"));
  EXPECT_TRUE(cluster().until([&] {
    const bool runs_there = cluster().cgroup(cluster().owner_host("bigvm"), cluster().owner_instance("bigvm")) == ready;
    return runs_there || !os::Cgroup::open(ready);
  })) << ready;
  EXPECT_TRUE(load->wait_for([](const drill::Sample& sample) { return sample.correct; }, generous));
  expect_all_correct(*load);
}

/// Links on which handing it over takes longer than an agent's start.
class SlowMoveTest : public LabTest<SlowMoveTest> {
 public:
  static ClusterOptions cluster_options() { return {.hosts = 3, .criu = false, .database = false, .disk = {}, .name = {}, .link = "100000000"}; }
};

TEST_F(SlowMoveTest, AnotherMoveWaitsForOneWhoseAgentWasKilled) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm", "cold"));
  spec["policy"]["placement"] = {"h1", "h2", "h3"};
  ASSERT_OK(cluster().deploy(spec));
  const auto load = load_of_split_guest(cluster().gate());
  ASSERT_TRUE(load && answered_after(*load, 0));
  const std::string home = cluster().owner_host("bigvm"), target = home == "h2" ? "h3" : "h2";
  const std::uint64_t epoch = cluster().epoch("bigvm"), since = cluster().newest_event();
  const auto is_handed_over = [&] {
    const auto memory = cluster().control("GET", "/v1/workloads/bigvm/memory");
    return memory && memory->contains("to_move_bytes");
  };
  auto moving = std::async(std::launch::async, [&] { return cluster().yado({"move", "bigvm", target}); });
  ASSERT_TRUE(cluster().until(is_handed_over));
  ASSERT_OK(cluster().fault("agent", home));
  const Ended first = moving.get();
  EXPECT_NE(first.status, 0) << first.output;
  ASSERT_OK(cluster().heal(home));
  ASSERT_TRUE(cluster().until(is_handed_over)) << "the new agent has not been heard before that was over";
  const Ended second = cluster().yado({"move", "bigvm", target});
  EXPECT_EQ(second.status, 0) << second.output;
  EXPECT_NE(second.output.find("moving: "), std::string::npos) << second.output;
  EXPECT_EQ(cluster().owner_host("bigvm"), target);
  std::vector<std::string> raised;
  for (const json& event : cluster().events(since))
    if (event.value("kind", "") == "raise") raised.push_back(event.value("host", ""));
  EXPECT_EQ(raised, std::vector{target}) << "the first one left it running";
  EXPECT_TRUE(answered_after(*load, epoch));
  expect_all_correct(*load);
}

}  // namespace
}  // namespace yado::labtest
