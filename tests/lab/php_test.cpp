// An application of another kind, nginx with php-fpm, from its spec alone.

#include "drill/load.hpp"
#include "lab_test.hpp"

namespace yado::labtest {
namespace {

class PhpTest : public LabTest<PhpTest> {};

TEST_F(PhpTest, RunsFromItsSpecAndSurvivesItsHostFromAnImage) {
  LAB_MUST(const json spec, cluster().spec("php", "php"));
  ASSERT_OK(cluster().deploy(spec));
  ASSERT_TRUE(cluster().wait_redundant("php")) << cluster().why_not_redundant("php");
  drill::LoadOptions options;
  options.address = cluster().gate();
  options.host = "php.test";
  options.path = "/ready";
  options.contains = "ready";
  LAB_MUST(auto load, drill::Load::start(std::move(options)));
  const auto any = [&](std::uint64_t epoch) {
    return load->wait_for([&](const drill::Sample& sample) { return sample.correct && sample.epoch > epoch; },
                          generous);
  };
  ASSERT_TRUE(any(0));
  const std::uint64_t before = cluster().epoch("php"), since = cluster().newest_event();
  ASSERT_OK(cluster().fault("host-silent", cluster().owner_host("php")));
  EXPECT_TRUE(any(before));
  for (const drill::Sample& sample : load->finish())
    EXPECT_TRUE(sample.correct) << sample.number << ": " << sample.error;
  const auto ready = cluster().event(since, "ready", "php");
  ASSERT_TRUE(ready);
  EXPECT_EQ((*ready)["fields"].value("way", ""), "image") << ready->dump();
}

}  // namespace
}  // namespace yado::labtest
