// A virtual machine as a workload: the same gate, the same faults.

#include <cstdlib>
#include <ctime>

#include "drill/load.hpp"
#include "lab_test.hpp"

namespace yado::labtest {
namespace {

class VmTest : public LabTest<VmTest> {};

TEST_F(VmTest, AVirtualMachineOutlivesItsHost) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(const json spec, cluster().spec("vmweb", "vmweb"));
  ASSERT_OK(cluster().deploy(spec));
  drill::LoadOptions options;
  options.address = cluster().gate();
  options.host = "vm.test";
  options.path = "/";
  options.contains = "virtual machine";
  LAB_MUST(auto load, drill::Load::start(std::move(options)));
  const auto answered_after = [&](std::uint64_t epoch) {
    return load->wait_for([&](const drill::Sample& sample) { return sample.correct && sample.epoch > epoch; },
                          generous);
  };
  ASSERT_TRUE(answered_after(0));
  const auto in_guest = [&](const std::string& script) { return cluster().yado({"exec", "--control", cluster().control_socket(), "vmweb", "--", "/bin/sh", "-c", script}); };
  // Its agent starts beside its service.
  ASSERT_TRUE(cluster().until([&] { return in_guest("true").status == 0; })) << in_guest("true").output;
  const Ended said = in_guest("echo from the guest; exit 7");
  EXPECT_EQ(said.status, 7);
  EXPECT_EQ(said.output, "from the guest\n");
  // What is typed at the console it echoes, for whoever sits there, and in the log.
  const std::string at_console = fmt::format("echo typed by a person | {} exec --console --control {} vmweb", std::getenv("YADO_PROGRAM"), cluster().control_socket());
  LAB_MUST(const Ended echoed, cluster().exec("h1", {"/bin/sh", "-c", at_console}));
  EXPECT_EQ(echoed.status, 0);
  EXPECT_NE(echoed.output.find("typed by a person"), std::string::npos) << echoed.output;
  EXPECT_NE(cluster().yado({"logs", "vmweb"}).output.find("typed by a person"), std::string::npos);
  ASSERT_TRUE(cluster().wait_redundant("vmweb")) << cluster().why_not_redundant("vmweb");
  for (const char* fault : {"host-silent", "process"}) {
    const std::uint64_t before = cluster().epoch("vmweb");
    const std::string host = cluster().owner_host("vmweb");
    const std::uint64_t since = cluster().newest_event();
    ASSERT_OK(cluster().fault(fault, host, std::string(fault) == "process" ? "vmweb" : ""));
    EXPECT_TRUE(answered_after(before)) << fault;
    const auto ready = cluster().event(since, "ready", "vmweb");
    ASSERT_TRUE(ready);
    EXPECT_EQ((*ready)["fields"].value("way", ""), "image") << ready->dump();
    // Its clock stood still with the image, and its disks were at rest.
    EXPECT_TRUE(cluster().until([&] {
      const Ended clock = in_guest("date +%s");
      return clock.status == 0 && std::abs(std::atol(clock.output.c_str()) - std::time(nullptr)) <= 1;
    })) << fault << ": " << in_guest("date +%s").output;
    EXPECT_EQ(in_guest("echo x > /var/written && sync").status, 0);
    ASSERT_OK(cluster().heal(host));
  }
  for (const drill::Sample& sample : load->finish())
    EXPECT_TRUE(sample.correct) << sample.number << ": " << sample.error;
}

}  // namespace
}  // namespace yado::labtest
