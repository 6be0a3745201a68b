// A virtual machine writes, and its host's disk is full.
#include "split_testing.hpp"

namespace yado::labtest {
namespace {

class FullDiskVmTest : public LabTest<FullDiskVmTest> {
 public:
  static ClusterOptions cluster_options() { return {.hosts = 3, .criu = false, .database = false, .disk = "600MB", .name = {}}; }
};

TEST_F(FullDiskVmTest, AVmThatFindsNoRoomStandsStillUntilThereIsSome) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm", "cold"));
  spec["policy"]["placement"] = {"h1"};
  ASSERT_OK(cluster().deploy(spec));
  const auto load = load_of_split_guest(cluster().gate());
  ASSERT_TRUE(load && answered_after(*load, 0));
  const auto in_guest = [&](const std::string& script) { return labtest::in_guest(cluster(), "bigvm", script); };
  said_by(cluster(), "bigvm", "true");
  const std::uint64_t epoch = cluster().epoch("bigvm");
  ASSERT_OK(cluster().fault("disk-full", "h1"));
  const auto says = [&](const std::string& what) { return cluster().until([&] { return cluster().yado({"logs", "bigvm"}).output.find(what) != std::string::npos; }); };
  // It may stand still before this is answered: its server writes, too.
  (void)in_guest("dd if=/dev/zero of=/var/fill bs=1M count=30 conv=fsync >/dev/null 2>&1 &");
  EXPECT_TRUE(says("the host's disk is full"));
  const auto noted = [&](const std::string& note) { return cluster().until([&] { return cluster().workload("bigvm").value("note", "") == note; }); };
  EXPECT_TRUE(noted("it stands still: its host's disk is full")) << cluster().workload("bigvm").dump();
  ASSERT_OK(cluster().heal("h1"));
  const std::size_t samples = load->samples().size();
  EXPECT_TRUE(load->wait_for([&](const drill::Sample& sample) { return sample.correct && sample.number > samples; }, generous));
  // The guest noticed nothing but the time.
  EXPECT_TRUE(cluster().until([&] { return in_guest("echo x > /var/written && sync").status == 0; })) << in_guest("mount; dmesg | tail").output;
  EXPECT_EQ(in_guest("dmesg | grep -c 'I/O error'").output, "0\n");
  EXPECT_EQ(cluster().epoch("bigvm"), epoch) << "raised anew";
  EXPECT_TRUE(noted("")) << cluster().workload("bigvm").dump();
  EXPECT_TRUE(says("there is room on the host's disk")) << cluster().yado({"logs", "bigvm"}).output;
  for (const drill::Sample& sample : load->finish()) EXPECT_TRUE(sample.correct || sample.status != 200) << sample.number << ": " << sample.error;
}

}  // namespace
}  // namespace yado::labtest
