#include "spec/spec.hpp"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "base/units.hpp"
#include "spec/check.hpp"

namespace yado::spec {
namespace {

using ::testing::HasSubstr;

const Environment environment{{"SHARED", "/shared"}, {"NUL", std::string("a\0b", 3)}};

constexpr std::string_view smallest = R"(name = "site"
[container]
root = "/srv/site"
command = ["app"]
[service]
hosts = ["site.test"]
port = 8000
)";

constexpr std::string_view fullest = R"(name = "site"
kind = "container"

[container]
root = "${SHARED}/site.tar.zst"
command = ["/usr/bin/gunicorn", "site:app", "$HOME"]
env = { LANG = "C.UTF-8", DATA = "${SHARED}/data" }
cwd = "/srv"
uid = 33
gid = 34
memory = "512MiB"
cpus = 1.5
pids = 77
mounts = [{ source = "${SHARED}/data", target = "/data", read_only = false },
          { source = "/etc/ssl", target = "/etc/ssl" }]

[service]
hosts = ["Site.test", "10.0.0.1"]
port = 8000
ready = { path = "/ready?a=%20", status = 204, contains = "ok", start_limit = "90s" }
idempotency_header = "Idempotency-Key"

[policy]
standby = "frozen"
consistency = "shared"
lease = "700ms"
relocations = "3/5s"
lifetime = "10min"
image_age = "2h"
frozen_age = "5min"
warm_up = 4
placement = ["h2", "h1"]
)";

std::string error_of(std::string_view text) {
  auto result = parse(text, "site.toml", environment);
  if (result) return "(accepted)";
  EXPECT_EQ(result.error().code, Errc::invalid_argument);
  return result.error().message;
}

// The smallest spec with one line replaced or added behind the line that begins with `line`.
std::string with(std::string_view line, std::string_view replacement) {
  std::string text(smallest);
  const auto begin = text.find(line);
  EXPECT_NE(begin, std::string::npos) << line;
  return text.replace(begin, text.find('\n', begin) - begin, replacement);
}
std::string with_policy(std::string_view lines) { return std::string(smallest) + "[policy]\n" + std::string(lines); }

TEST(SpecTest, TheSmallestSpecHasTheDefaultsOfTheModel) {
  auto spec = parse(smallest, "site.toml", {});
  ASSERT_TRUE(spec) << spec.error().message;
  WorkloadSpec expected;
  expected.name = WorkloadId("site");
  expected.container.root = "/srv/site";
  expected.container.command = {"app"};
  expected.service.hosts = {"site.test"};
  expected.service.port = 8000;
  EXPECT_EQ(*spec, expected);
}

TEST(SpecTest, EveryKeyReachesTheModel) {
  auto spec = parse(fullest, "site.toml", environment);
  ASSERT_TRUE(spec) << spec.error().message;
  WorkloadSpec expected;
  expected.name = WorkloadId("site");
  expected.container = {.root = "/shared/site.tar.zst",
                        .command = {"/usr/bin/gunicorn", "site:app", "$HOME"},
                        .environment = {{"DATA", "/shared/data"}, {"LANG", "C.UTF-8"}},
                        .working_directory = "/srv",
                        .uid = 33,
                        .gid = 34,
                        .mounts = {{"/shared/data", "/data", false}, {"/etc/ssl", "/etc/ssl", true}},
                        .memory_bytes = std::uint64_t{512} << 20,
                        .cpus = 1.5,
                        .pids = 77};
  expected.service = {.hosts = {"site.test", "10.0.0.1"},
                      .port = 8000,
                      .ready = {"/ready?a=%20", 204, "ok", 90s},
                      .idempotency_header = "idempotency-key"};
  expected.policy = {.standby = StandbyLevel::frozen,
                     .consistency = Consistency::shared,
                     .lease = 700ms,
                     .relocations = 3,
                     .relocations_per = 5s,
                     .lifetime = 10min,
                     .image_age = 2h,
                     .frozen_age = 5min,
                     .warm_up = 4,
                     .placement = {HostId("h2"), HostId("h1")}};
  EXPECT_EQ(*spec, expected);
}

TEST(SpecTest, AWrongWordNamesItsPlaceAndWhatIsAllowed) {
  EXPECT_EQ(error_of(with_policy("standby = \"warm\"\n")),
            "site.toml:9:11: policy.standby: \"warm\" is not one of cold, image, frozen");
  EXPECT_EQ(error_of(with_policy("consistency = \"eventual\"\n")),
            "site.toml:9:15: policy.consistency: \"eventual\" is not one of shared, exclusive");
  EXPECT_EQ(error_of("kind = \"capsule\"\n" + std::string(smallest)), "site.toml:1:8: kind: \"capsule\" is not one of container, vm");
}

TEST(SpecTest, WhatIsNoTomlSaysWhere) {
  EXPECT_EQ(error_of("name = \"site\nkind=").substr(0, 15), "site.toml:1:13:");
  EXPECT_TRUE(error_of(with("port", "port = 1\nport = 2")).starts_with("site.toml:8:")) << "a key given twice";
  EXPECT_TRUE(error_of("name = \"\xff\"").starts_with("site.toml:1:"));
  EXPECT_TRUE(error_of("\n[=").starts_with("site.toml:2:2:")) << "ends the process in toml++ 3.3 by itself";
}

TEST(SpecTest, MissingKeysAreNamed) {
  EXPECT_EQ(error_of(""),
            "site.toml:1:1: name: is missing\nsite.toml:1:1: container: is missing\n"
            "site.toml:1:1: service: is missing");
  EXPECT_EQ(error_of(with("root", "")), "site.toml:2:1: container.root: is missing");
  EXPECT_EQ(error_of(with("command", "")), "site.toml:2:1: container.command: is missing");
  EXPECT_EQ(error_of(with("hosts", "")), "site.toml:5:1: service.hosts: is missing");
  EXPECT_EQ(error_of(with("port", "")), "site.toml:5:1: service.port: is missing");
  EXPECT_EQ(error_of(with("port", "port = 1\n[[container.mounts]]\nsource = \"/a\"")),
            "site.toml:8:1: container.mounts[0].target: is missing");
}

constexpr std::string_view machine = R"(name = "big"
kind = "vm"
[vm]
kernel = "/guest/kernel"
disks = ["/guest/disk.qcow2"]
memory = "256MiB"
[service]
hosts = ["big.test"]
port = 80
)";

TEST(SpecTest, AVirtualMachineHasNoContainerAndIsNotFrozen) {
  const auto spec = parse(machine, "big.toml", {});
  ASSERT_TRUE(spec) << spec.error().text();
  EXPECT_EQ(spec->kind, Kind::vm);
  EXPECT_EQ(spec->vm.memory_bytes, 256_MiB);
  EXPECT_EQ(spec->vm.disks, std::vector<std::string>{"/guest/disk.qcow2"});
  EXPECT_EQ(spec->policy.standby, StandbyLevel::image);

  const std::string text(machine);
  EXPECT_THAT(parse(text + "[policy]\nstandby = \"frozen\"\n", "big.toml", {}).error().message,
              HasSubstr("big.toml:11:11: policy.standby: a VM can have"));
  EXPECT_THAT(parse(text + "[container]\nroot = \"/r\"\ncommand = [\"c\"]\n", "big.toml", {}).error().message,
              HasSubstr("container: a workload of kind \"vm\" has none"));
  std::string odd = text;
  odd.replace(odd.find("256MiB"), 6, "3MiB");
  EXPECT_THAT(parse(odd, "big.toml", {}).error().message, HasSubstr("big.toml:6:10: vm.memory: 3145728 bytes"));
}

TEST(SpecTest, ASplitSaysHowItsPagesAreHeldAndSaved) {
  const auto split = [](const std::string& more) {
    std::string text(machine);
    return parse(text.insert(text.find("[service]"), "split = { local = \"64MiB\", " + more + " }\n"), "big.toml", {});
  };
  const auto spec = split("over = [\"h2\", \"h3\", \"h4\"], redundancy = \"parity\", checkpoint_rate = \"50MiB/s\"");
  ASSERT_TRUE(spec) << spec.error().text();
  EXPECT_EQ(spec->vm.split->redundancy, Redundancy::parity);
  EXPECT_EQ(spec->vm.split->checkpoint_bytes_per_second, 50_MiB);
  const auto refusal = [&](const std::string& more) {
    const auto parsed = split(more);
    return parsed ? std::string("nothing is wrong") : parsed.error().message;
  };
  EXPECT_THAT(refusal("over = [\"h2\", \"h3\"], redundancy = \"parity\""), HasSubstr("\"parity\" needs three hosts"));
  EXPECT_THAT(refusal("over = [\"h2:1GiB\", \"h3\", \"h4\"], redundancy = \"parity\""), HasSubstr("leave the sizes out"));
  EXPECT_THAT(refusal("over = [\"h2\"], redundancy = \"raid\""), HasSubstr("none, replica, parity"));
  EXPECT_THAT(refusal("over = [\"h2\"], checkpoint_rate = \"50MiB\""), HasSubstr("50MiB/s"));
  EXPECT_THAT(refusal("over = [\"h2\"], checkpoint_rate = \"64KiB/s\""), HasSubstr("at least 1MiB/s"));
}

TEST(SpecTest, ASplitThatNamesNobodyKeepsAllOfTheMemoryWhereItRuns) {
  const auto split = [](const std::string& what) {
    std::string text(machine);
    return parse(text.insert(text.find("[service]"), "split = " + what + "\n"), "big.toml", {});
  };
  for (const char* nobody : {"{}", "{ over = [] }", "{ local = \"256MiB\", over = [] }", "{ local = \"256MiB\" }"}) {
    const auto spec = split(nobody);
    ASSERT_TRUE(spec) << nobody << ": " << spec.error().text();
    EXPECT_EQ(spec->vm.split->local_bytes, 256_MiB);
    EXPECT_TRUE(spec->vm.split->over.empty());
  }
  EXPECT_THAT(split("{ local = \"64MiB\" }").error().message, HasSubstr("vm.split.over: no host is named that could keep the other 201326592 bytes"));
  EXPECT_THAT(split("{ over = [\"h2\"] }").error().message, HasSubstr("vm.split.local"));
}

TEST(SpecTest, AMemoryHostMayHaveASizeAndTogetherTheyHaveRoom) {
  const auto with_over = [](const std::string& over, const std::string& more = "") {
    std::string text(machine);
    const std::string memory = "memory = \"256MiB\"";
    text.insert(text.find(memory) + memory.size(), "\nsplit = { local = \"64MiB\", over = " + over + more + " }");
    return parse(text, "big.toml", {});
  };
  const auto spec = with_over(R"(["h2:128MiB", "h3"])");
  ASSERT_TRUE(spec) << spec.error().text();
  EXPECT_EQ(spec->vm.split->over, (std::vector<MemoryHost>{{.host = HostId("h2"), .address = {}, .bytes = 128_MiB}, {.host = HostId("h3"), .address = {}}}));
  EXPECT_TRUE(with_over(R"(["h2:128MiB", "h3:64MiB"])"));
  EXPECT_THAT(with_over(R"(["h2:128MiB", "h3:32MiB"])").error().message, HasSubstr("have room for 234881024 of 268435456 bytes"));
  EXPECT_TRUE(with_over(R"(["h2:192MiB", "h3:192MiB"])", ", redundancy = \"replica\""));
  EXPECT_THAT(with_over(R"(["h2:128MiB", "h3:128MiB"])", ", redundancy = \"replica\"").error().message, HasSubstr("each page twice"));
  EXPECT_THAT(with_over(R"(["h2:1KiB", "h3"])").error().message, HasSubstr("vm.split.over[0]: 1024 bytes: must be"));
  EXPECT_THAT(with_over(R"(["h2:lots", "h3"])").error().message, HasSubstr("vm.split.over[0]: h2: \"lots\" is not a size"));
  EXPECT_THAT(with_over(R"([7])").error().message, HasSubstr("vm.split.over[0]"));
}

TEST(SpecTest, UnknownKeysAreRefusedWithTheNearestOrTheRightPlace) {
  EXPECT_EQ(error_of(with("command", "comand = [\"a\"]\ncommand = [\"a\"]")),
            "site.toml:4:1: container: unknown key \"comand\", did you mean \"command\"?");
  EXPECT_EQ(error_of("port = 80\n" + std::string(smallest)),
            "site.toml:1:1: unknown key \"port\", it belongs to [service]");
  EXPECT_EQ(error_of(with("command", "command = [\"a\"]\nname = \"b\"")),
            "site.toml:5:1: container: unknown key \"name\", it belongs to the top of the file, above every [table]");
  EXPECT_EQ(error_of(with("port", "port = 1\nready = { pat = \"/\" }")),
            "site.toml:8:11: service.ready: unknown key \"pat\", did you mean \"path\"?");
  EXPECT_EQ(error_of("volumes = 1\n" + std::string(smallest)),
            "site.toml:1:1: unknown key \"volumes\"; allowed are name, kind, container, vm, service, policy");
}

TEST(SpecTest, AWrongTypeSaysWhatStandsThere) {
  EXPECT_EQ(error_of(with("name", "name = 3")), "site.toml:1:8: name: expected a string, found a whole number");
  EXPECT_EQ(error_of(with("command", "command = \"app\"")),
            "site.toml:4:11: container.command: expected an array of strings, found a string");
  EXPECT_EQ(error_of(with("command", "command = [\"app\", 3]")),
            "site.toml:4:19: container.command[1]: expected a string, found a whole number");
  EXPECT_EQ(error_of(with("port", "port = \"8000\"")),
            "site.toml:7:8: service.port: expected a whole number, found a string");
  EXPECT_EQ(error_of(with("root", "root = \"/a\"\ncpus = \"2\"")),
            "site.toml:4:8: container.cpus: expected a number, found a string");
  EXPECT_EQ(error_of(with("root", "root = \"/a\"\nenv = { PORT = 8000 }")),
            "site.toml:4:16: container.env.PORT: expected a string, found a whole number");
  EXPECT_EQ(error_of("policy = 1\n" + std::string(smallest)),
            "site.toml:1:10: policy: expected a table, found a whole number");
  EXPECT_EQ(error_of(with("root", "root = \"/a\"\nmounts = [\"/a:/b\"]")),
            "site.toml:4:11: container.mounts[0]: expected a table, found a string");
}

TEST(SpecTest, NumbersOutOfRangeAreRefused) {
  EXPECT_EQ(error_of(with("port", "port = 70000")), "site.toml:7:8: service.port: 70000 is not between 1 and 65535");
  EXPECT_EQ(error_of(with("port", "port = 0")), "site.toml:7:8: service.port: 0 is not between 1 and 65535");
  EXPECT_EQ(error_of(with("root", "root = \"/a\"\nuid = -1")),
            "site.toml:4:7: container.uid: -1 is not between 0 and 65534");
  EXPECT_EQ(error_of(with("root", "root = \"/a\"\ncpus = -0.5")),
            "site.toml:4:8: container.cpus: -0.5 is not between 0.01 and 4096");
  EXPECT_NE(error_of(with("root", "root = \"/a\"\ncpus = nan")), "(accepted)");
  EXPECT_NE(error_of(with("root", "root = \"/a\"\ncpus = 0")), "(accepted)");
  EXPECT_NE(error_of(with("root", "root = \"/a\"\npids = 0")), "(accepted)");
}

TEST(SpecTest, SizesDurationsAndRatesAreCheckedAtTheirPlace) {
  EXPECT_TRUE(error_of(with("root", "root = \"/a\"\nmemory = \"512MB\""))
                  .starts_with("site.toml:4:10: container.memory: \"512MB\" is not a size"));
  EXPECT_NE(error_of(with("root", "root = \"/a\"\nmemory = \"0B\"")), "(accepted)");
  EXPECT_NE(error_of(with("root", "root = \"/a\"\nmemory = \"4KiB\"")), "(accepted)");
  EXPECT_TRUE(error_of(with_policy("lease = \"5\"\n")).starts_with("site.toml:9:9: policy.lease: \"5\" is not a dura"));
  EXPECT_EQ(error_of(with_policy("lease = \"2h\"\n")), "site.toml:9:9: policy.lease: is not between 100ms and 1h");
  EXPECT_TRUE(error_of(with_policy("relocations = 10\n")).starts_with("site.toml:9:15: policy.relocations: expected"));
  EXPECT_TRUE(
      error_of(with_policy("relocations = \"10\"\n")).starts_with("site.toml:9:15: policy.relocations: \"10\""));
}

TEST(SpecTest, NamesMustFitEveryPlaceTheyAreUsedIn) {
  EXPECT_TRUE(
      error_of(with("name", "name = \"My Site\"")).starts_with("site.toml:1:8: name: \"My Site\" is not a name"));
  EXPECT_TRUE(error_of(with("name", "name = \"\"")).starts_with("site.toml:1:8: name: \"\" is not a name"));
  EXPECT_NE(error_of(with("name", "name = \"" + std::string(41, 'a') + "\"")), "(accepted)");
  EXPECT_EQ(error_of(with("name", "name = \"" + std::string(40, 'a') + "\"")), "(accepted)");
}

TEST(SpecTest, PathsMustBeAbsoluteAndMayNotClimb) {
  EXPECT_EQ(error_of(with("root", "root = \"site\"")),
            "site.toml:3:8: container.root: \"site\" is not an absolute path");
  EXPECT_EQ(error_of(with("root", "root = \"/srv/../etc\"")),
            "site.toml:3:8: container.root: \"/srv/../etc\" must not contain \"..\"");
  EXPECT_EQ(error_of(with("root", "root = \"/a\"\ncwd = \"srv\"")),
            "site.toml:4:7: container.cwd: \"srv\" is not an absolute path");
  EXPECT_EQ(error_of(with("root", "root = \"/a\"\nmounts = [{ source = \"data\", target = \"/data\" }]")),
            "site.toml:4:22: container.mounts[0].source: \"data\" is not an absolute path");
  EXPECT_NE(error_of(with("root", "root = \"/a\"\nmounts = [{ source = \"/data\", target = \"/\" }]")), "(accepted)");
  EXPECT_NE(error_of(with("root",
                          "root = \"/a\"\nmounts = [{ source = \"/a\", target = \"/c\" },"
                          "{ source = \"/b\", target = \"/c\" }]")),
            "(accepted)");
}

TEST(SpecTest, ACommandNamesAProgram) {
  EXPECT_TRUE(error_of(with("command", "command = []")).starts_with("site.toml:4:11: container.command: names no"));
  EXPECT_TRUE(error_of(with("command", "command = [\"\"]")).starts_with("site.toml:4:11: container.command: names no"));
  EXPECT_EQ(error_of(with("command", "command = [\"a\", \"${NUL}\"]")),
            "site.toml:4:17: container.command[1]: contains a NUL character");
}

TEST(SpecTest, HostsAreNamesWithoutPortsAndOnlyOnce) {
  EXPECT_TRUE(error_of(with("hosts", "hosts = []")).starts_with("site.toml:6:9: service.hosts: is empty"));
  EXPECT_TRUE(error_of(with("hosts", "hosts = [\"site.test:80\"]"))
                  .starts_with("site.toml:6:10: service.hosts[0]: \"site.test:80\" is not a host name"));
  EXPECT_NE(error_of(with("hosts", "hosts = [\"a..b\"]")), "(accepted)");
  EXPECT_EQ(error_of(with("hosts", "hosts = [\"a.test\", \"A.test\"]")),
            "site.toml:6:20: service.hosts[1]: \"a.test\" is named twice");
}

TEST(SpecTest, TheReadinessRequestCannotBecomeAnotherRequest) {
  EXPECT_EQ(error_of(with("port", "port = 1\nready = { path = \"ready\" }")),
            "site.toml:8:18: service.ready.path: \"ready\" does not start with '/'");
  EXPECT_NE(error_of(with("port", "port = 1\nready = { path = \"/ HTTP/1.1\\r\\nX: y\" }")), "(accepted)");
  EXPECT_EQ(error_of(with("port", "port = 1\nready = { status = 99 }")),
            "site.toml:8:20: service.ready.status: 99 is not between 200 and 599");
  EXPECT_NE(error_of(with("port", "port = 1\nidempotency_header = \"a: b\"")), "(accepted)");
}

TEST(SpecTest, ExclusiveWorkloadsHaveNoSecondStart) {
  EXPECT_TRUE(
      error_of(with_policy("consistency = \"exclusive\"\nstandby = \"image\"\n"))
          .starts_with("site.toml:10:11: policy.standby: an exclusive workload can only have standby = \"cold\""));
  EXPECT_NE(error_of(with_policy("consistency = \"exclusive\"\nstandby = \"frozen\"\n")), "(accepted)");
  auto spec = parse(with_policy("consistency = \"exclusive\"\n"), "site.toml", environment);
  ASSERT_TRUE(spec);
  EXPECT_EQ(spec->policy.standby, StandbyLevel::cold) << "the default follows the consistency";
}

TEST(SpecTest, PlacementNamesHostsOnce) {
  EXPECT_EQ(error_of(with_policy("placement = [\"h1\", \"h1\"]\n")),
            "site.toml:9:20: policy.placement[1]: \"h1\" is named twice");
  EXPECT_NE(error_of(with_policy("placement = [\"H 1\"]\n")), "(accepted)");
}

TEST(SpecTest, AnUnsetVariableIsAnErrorAtItsPlace) {
  EXPECT_EQ(error_of(with("root", "root = \"${SITE}/root\"")),
            "site.toml:3:8: container.root: the variable \"SITE\" is not set");
}

TEST(SpecTest, EveryMistakeIsReportedOnceInTheOrderOfTheFile) {
  EXPECT_EQ(
      error_of("name = \"\"\n[container]\nroot = \"a\"\ncommand = [3]\nenv = { \"\\n\" = 1 }\n[service]\n"
               "hosts = \"site.test\"\nport = 0\n[policy]\nstandby = \"hot\"\n"),
      "site.toml:1:8: name: \"\" is not a name: 1 to 40 of a-z, 0-9, '-' and '.', first and last a letter or digit\n"
      "site.toml:3:8: container.root: \"a\" is not an absolute path\n"
      "site.toml:4:12: container.command[0]: expected a string, found a whole number\n"
      "site.toml:5:16: container.env.\"\\x0a\": expected a string, found a whole number\n"
      "site.toml:7:9: service.hosts: expected an array of strings, found a string\n"
      "site.toml:8:8: service.port: 0 is not between 1 and 65535\n"
      "site.toml:10:11: policy.standby: \"hot\" is not one of cold, image, frozen");
}

TEST(SpecTest, ThousandsOfMistakesBecomeAShortError) {
  std::string hosts = "hosts = [";
  for (int i = 0; i < 50'000; ++i) hosts += i % 2 ? "\"-\"," : "1,";
  const std::string message = error_of(with("hosts", hosts + "]"));
  EXPECT_EQ(std::ranges::count(message, '\n'), 50);
  EXPECT_TRUE(message.ends_with("site.toml: and 49950 more"));
}

TEST(SpecTest, NestingAndSizeThatWouldEatTheStackAreRefused) {
  auto repeat = [](std::string_view what, int times) {
    std::string text;
    for (int i = 0; i < times; ++i) text += what;
    return text;
  };
  EXPECT_EQ(error_of(repeat("a.", 200'000) + "a = 1"), "site.toml:1:1: a key has more than 16 dots");
  EXPECT_EQ(error_of("[" + repeat("a.", 200'000) + "a]"), "site.toml:1:1: a key has more than 16 dots");
  EXPECT_EQ(error_of(repeat("\"a\" . ", 100'000) + "a = 1"), "site.toml:1:1: a key has more than 16 dots");
  EXPECT_NE(error_of("a = " + repeat("[", 500'000)), "(accepted)");
  EXPECT_NE(error_of("a = " + repeat("{a=", 300'000)), "(accepted)");
  EXPECT_NE(error_of(std::string(2 << 20, '\n')), "(accepted)");
  EXPECT_EQ(
      error_of(with("command", "command = [\"app\", \"" + repeat(".", 1000) + "\", '...\"']  # " + repeat(".", 100))),
      "(accepted)")
      << "dots in strings and comments are no keys";
}

// Damaged inputs of every shape: nothing throws, nothing ends the process, and a refusal always says where.
TEST(SpecTest, DamagedFilesAreRefusedWithAPlaceOrAccepted) {
  std::mt19937 random(20260101);  // the same inputs at every run: a failure can be looked at
  constexpr std::string_view spice = "\"'[]{}=.,#\n\\$ \t0159eE+-_:TZ\x00\x7f\xc3\xff";
  constexpr int rounds = 3000;
  int refused = 0;
  for (int round = 0; round < rounds; ++round) {
    std::string text(fullest);
    for (auto edits = 1 + random() % 6; edits > 0 && !text.empty(); --edits) {
      const std::size_t at = random() % text.size();
      switch (random() % 5) {
        case 0:
          text[at] = spice[random() % spice.size()];
          break;
        case 1:
          text.insert(at, 1, spice[random() % spice.size()]);
          break;
        case 2:
          text.erase(at, 1 + random() % 20);
          break;
        case 3:
          text.insert(at, text.substr(random() % text.size(), random() % 40));
          break;
        case 4:
          text.resize(at + 1);
          break;
      }
    }
    const auto result = parse(text, "f", environment);
    if (result) {
      EXPECT_TRUE(check(*result)) << text;
      continue;
    }
    ++refused;
    EXPECT_EQ(result.error().code, Errc::invalid_argument);
    std::string_view lines = result.error().message;
    while (!lines.empty()) {
      const auto line = lines.substr(0, lines.find('\n'));
      EXPECT_TRUE(line.starts_with("f:") && line.size() > 6 && line[2] >= '1' && line[2] <= '9') << line << "\n"
                                                                                                 << text;
      lines.remove_prefix(std::min(line.size() + 1, lines.size()));
    }
  }
  EXPECT_GT(refused, rounds / 3);
}

TEST(SpecCheckTest, ASpecThatCameAsJsonIsHeldToTheSameRules) {
  const auto problems = problems_of(WorkloadSpec{});
  std::vector<std::string> fields;
  for (const Problem& problem : problems) fields.push_back(problem.field);
  EXPECT_EQ(fields,
            (std::vector<std::string>{"name", "container.root", "container.command", "service.hosts", "service.port"}));
  EXPECT_FALSE(check(WorkloadSpec{}));
  auto spec = parse(smallest, "site.toml", {});
  ASSERT_TRUE(spec);
  EXPECT_TRUE(check(*spec));
  spec->policy.lease = 0ms;
  EXPECT_EQ(check(*spec).error().message, "policy.lease: is not between 100ms and 1h");
}

}  // namespace
}  // namespace yado::spec
