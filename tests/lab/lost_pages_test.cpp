// Pages that nobody has any more. (That a guest is ended which does not want them: PagerLiveTest; this one may want one soon.)
#include "split_testing.hpp"

namespace yado::labtest {
namespace {

class LostPagesTest : public LabTest<LostPagesTest> {
 public:
  static ClusterOptions cluster_options() { return {.hosts = 4, .criu = true, .database = false, .disk = {}, .name = {}}; }

 protected:
  std::uint64_t pages_on(const std::string& host) {
    if (const auto memory = cluster().control("GET", "/v1/workloads/bigvm/memory"))
      for (const json& server : (*memory)["servers"])
        if (server.value("host", "") == host) return server.value("pages", std::uint64_t{0});
    return 0;
  }
};

TEST_F(LostPagesTest, TheirVmGoesBackToItsCheckpointByItselfAndSaysWhy) {
  if (const std::string why = missing_guest("vmweb"); !why.empty()) GTEST_SKIP() << why;
  LAB_MUST(json spec, cluster().spec("bigvm", "bigvm"));
  spec["policy"]["placement"] = {"h1", "h2", "h3", "h4"};
  spec["vm"]["split"]["local_bytes"] = 64u << 20;
  ASSERT_OK(cluster().deploy(spec));
  const auto load = load_of_split_guest(cluster().gate());
  ASSERT_TRUE(load && answered_after(*load, 0));
  const std::string cold = said_by(cluster(), "bigvm", "mount -t tmpfs none /mnt && head -c 96M /dev/urandom > /mnt/cold && sha1sum /mnt/cold");
  Ended checkpoint = cluster().yado({"checkpoint", "bigvm"});
  ASSERT_EQ(checkpoint.status, 0) << checkpoint.output;
  ASSERT_TRUE(cluster().wait_redundant("bigvm")) << cluster().why_not_redundant("bigvm");
  ASSERT_GT(pages_on("h2"), 0u);

  const std::uint64_t since = cluster().newest_event(), epoch = cluster().epoch("bigvm");
  ASSERT_OK(cluster().fault("agent", "h2"));
  const auto ready = cluster().event(since, "ready", "bigvm");
  ASSERT_TRUE(ready) << cluster().last_words();
  EXPECT_EQ((*ready)["fields"].value("way", ""), "image") << ready->dump();
  ASSERT_TRUE(answered_after(*load, epoch));
  const auto lost = cluster().event(since, "owner-lost", "bigvm");
  ASSERT_TRUE(lost);
  EXPECT_NE((*lost)["fields"].value("detail", "").find("its memory is lost: page "), std::string::npos) << lost->dump();
  ASSERT_OK(cluster().heal("h2"));
  EXPECT_EQ(said_by(cluster(), "bigvm", "sha1sum /mnt/cold"), cold);
  checkpoint = cluster().yado({"checkpoint", "bigvm"});
  EXPECT_EQ(checkpoint.status, 0) << checkpoint.output;
}

}  // namespace
}  // namespace yado::labtest
