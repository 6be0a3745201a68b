// `yado images show`, `export` and `import` as a person calls them, on stores made here.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "cli/cli.hpp"
#include "image/page_testing.hpp"
#include "image/store.hpp"
#include "image/temporary_directory.hpp"
#include "image/working_set.hpp"

namespace yado::cli {
namespace {

namespace fs = std::filesystem;
using namespace image;  // page_of, 0_page
using nlohmann::json;

class CliImagesTest : public ::testing::Test {
 protected:
  CliImagesTest() : store_(std::move(*Store::open(directory_.path() / "images"))) {
    const Manifest base = make("m1", {}, all_pages(16), 1, 0, 16);
    Manifest member{.id = ImageId("m2.h2"), .base = base.id, .member_of = ImageId("m2")};
    member = make("m2.h2", member, {{8_page, 8}}, 2, 1, 9);
    Manifest main{.base = base.id, .members = {{member.id, HostId("h2"), checksum_of_manifest(member)}}};
    make("m2", main, {{0_page, 8}}, 2, 1, 2);
  }

  /// Pages up to `last` of the owned ones; of a delta of cut `base`.
  Manifest make(const char* id, Manifest manifest, const PageSet& owned, int cut, int base, std::uint64_t last) {
    auto draft = store_.begin(ImageId(id));
    EXPECT_TRUE(draft) << draft.error().text();
    const fs::path part = *draft->part_directory("memory");
    auto writer = PageWriter::create(
        part, {.guest_pages = 16, .cut = cut_number(cut), .base_cut = base ? cut_number(base) : CutId{}});
    EXPECT_TRUE(writer) << writer.error().text();
    PageAppender appender = writer->appender();
    for (std::uint64_t page = owned.front().begin(); page < last; ++page)
      EXPECT_TRUE(appender.put(PageNumber{page}, page_of(page == 0 ? 0 : 100 * cut + page), 0_round));
    EXPECT_TRUE(appender.flush());
    EXPECT_TRUE(writer->finish(owned));
    if (base == 0) {
      EXPECT_TRUE(write_working_set(part, {16, {5_page}}));
    }
    manifest.id = ImageId(id);
    manifest.workload = WorkloadId("vm");
    manifest.created_wall_ms = cut;
    manifest.parts = {{PartType::pages, "memory", {}}};
    auto made = draft->commit(manifest);
    EXPECT_TRUE(made) << made.error().text();
    return *made;
  }

  struct Said {
    int status;
    std::string out, err;
  };
  static Said yado(std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), {"yado", "images"});
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int status = run(static_cast<int>(argv.size()), argv.data());
    std::fflush(stdout);
    Said said{status, testing::internal::GetCapturedStdout(), testing::internal::GetCapturedStderr()};
    return said;
  }
  std::string root() const { return store_.root().native(); }
  std::string file(const char* name) const { return (directory_.path() / name).native(); }

  TemporaryDirectory directory_;
  Store store_;  // its lock is held, as by an agent that runs
};

TEST_F(CliImagesTest, ShowSaysWhatAnImageIsMadeOf) {
  const Said said = yado({"show", "m2", "--store", root(), "--verify", "--json"});
  ASSERT_EQ(said.status, Exit::ok) << said.err;
  const json all = json::parse(said.out);
  EXPECT_EQ(all["chain"], json::parse(R"([{"id":"m1","here":true},{"id":"m2","here":true}])"));
  EXPECT_EQ(all["verified"]["images"], 3) << "with its member and its base";
  const json& pages = all["parts"][0]["pages"];
  EXPECT_EQ(pages["owned_pages"], 8);
  EXPECT_EQ(pages["records"], 2);
  EXPECT_EQ(pages["zeros"], 1);
  EXPECT_EQ(pages["base_cut"], cut_number(1).hex());
  EXPECT_FALSE(pages.contains("working_set"));
  ASSERT_EQ(all["members"].size(), 1U);
  EXPECT_EQ(all["members"][0]["host"], "h2");
  EXPECT_EQ(all["members"][0]["here"], "image");
  EXPECT_EQ(all["members"][0]["parts"][0]["pages"]["records"], 1);

  const Said base = yado({"show", "m1", "--store", root(), "--json"});
  EXPECT_EQ(json::parse(base.out)["parts"][0]["pages"]["working_set"], 1);
}

TEST_F(CliImagesTest, ShowForPeopleNamesHostsAndBases) {
  ASSERT_OK(store_.remove(ImageId("m2.h2"), Store::Dependents::ignore));
  ASSERT_OK(store_.remove(ImageId("m1"), Store::Dependents::ignore));
  const Said said = yado({"show", "m2", "--store", root()});
  ASSERT_EQ(said.status, Exit::ok) << said.err;
  EXPECT_NE(said.out.find("chain     m1 (not here) <- m2\n"), std::string::npos) << said.out;
  EXPECT_NE(said.out.find("h2    m2.h2"), std::string::npos) << said.out;
  EXPECT_NE(said.out.find("pages, delta"), std::string::npos) << said.out;
}

TEST_F(CliImagesTest, AHostThatHasSharesOnlySeesItsOwnChain) {
  make("m3.h2", Manifest{.id = ImageId("m3.h2"), .base = ImageId("m2"), .member_of = ImageId("m3")}, {{8_page, 8}}, 3, 2, 10);
  ASSERT_OK(store_.remove(ImageId("m2"), Store::Dependents::ignore));
  ASSERT_OK(store_.remove(ImageId("m1"), Store::Dependents::ignore));
  const Said said = yado({"show", "m3.h2", "--store", root(), "--verify"});
  ASSERT_EQ(said.status, Exit::ok) << said.err;
  EXPECT_NE(said.out.find("chain     m1 (not here) <- m2.h2 <- m3.h2\n"), std::string::npos) << said.out;
  EXPECT_NE(said.out.find("member of m3\n"), std::string::npos) << said.out;
  EXPECT_NE(said.out.find("in 2 image(s)"), std::string::npos) << said.out;
}

TEST_F(CliImagesTest, DamageInABaseIsFoundByVerify) {
  flip_bit(store_.part_directory(ImageId("m1"), "memory") / "pages.log", 5 * page_bytes, 3);
  EXPECT_EQ(yado({"show", "m2", "--store", root()}).status, Exit::ok) << "nothing was asked of the pages";
  const Said said = yado({"show", "m2", "--store", root(), "--verify"});
  EXPECT_EQ(said.status, Exit::failed);
  EXPECT_NE(said.err.find("image m1: part memory: part memory: page 6 (pages.log offset 20480): checksum differs"),
            std::string::npos)
      << said.err;
}

TEST_F(CliImagesTest, MemoryGoesOutAsAFileAndComesBackAsAnImage) {
  ASSERT_EQ(yado({"export", "m2", "--flat", file("memory"), "--store", root()}).status, Exit::ok);
  const std::string memory = read_file(file("memory"));
  ASSERT_EQ(memory.size(), 16 * page_bytes);
  for (std::uint64_t page = 0; page < 16; ++page) {
    const Page wanted = page_of(page == 0 ? 0 : page < 2 || page == 8 ? 200 + page : 100 + page);
    EXPECT_EQ(std::memcmp(memory.data() + page * page_bytes, wanted.data(), page_bytes), 0) << "page " << page;
  }
  const Said again = yado({"export", "m2", "--flat", file("memory"), "--store", root()});
  EXPECT_EQ(again.status, Exit::failed) << "nothing is overwritten";
  EXPECT_EQ(read_file(file("memory")), memory);

  const Said said = yado({"import", file("memory"), "--workload", "vm", "--store", root()});
  ASSERT_EQ(said.status, Exit::ok) << said.err;
  const std::string id = said.out.substr(0, said.out.size() - 1);
  ASSERT_EQ(yado({"export", id, "--flat", file("back"), "--store", root()}).status, Exit::ok);
  EXPECT_EQ(read_file(file("back")), memory);
  ASSERT_OK(store_.verify(ImageId(id)));
}

TEST_F(CliImagesTest, AnImportLikeAnotherImageHasItsDisks) {
  const auto make = [&](const std::string& id, PartType type, const std::string& layer, std::optional<ImageId> base) {
    auto draft = store_.begin(ImageId(id));
    ASSERT_TRUE(draft);
    put_file(*draft->part_directory("disk") / layer, "of " + id);
    ASSERT_OK(draft->commit({.id = ImageId(id),
                             .workload = WorkloadId("vm"),
                             .spec_hash = "abc",
                             .base = base,
                             .parts = {{type, "disk", {}}},
                             .properties = {{"cpu", "max"}}}));
  };
  make("whole", PartType::disk, "layers/0", {});
  make("delta", PartType::disk_delta, "layers/1", ImageId("whole"));
  fs::resize_file((put_file(file("memory"), ""), file("memory")), 4 * page_bytes);
  for (const auto& [like, layers] : {std::pair<std::string, std::size_t>{"whole", 1}, {"delta", 2}}) {
    SCOPED_TRACE(like);
    const std::string id = "like-" + like;
    const Said said = yado({"import", file("memory"), "--workload", "vm", "--like", like, "--id", id, "--store", root()});
    ASSERT_EQ(said.status, Exit::ok) << said.err;
    const auto made = store_.read(ImageId(id));
    ASSERT_TRUE(made) << made.error().text();
    EXPECT_EQ(made->spec_hash, "abc");
    EXPECT_EQ(made->properties.at("cpu"), "max");
    ASSERT_EQ(made->parts.size(), 2U);
    EXPECT_EQ(made->parts[0].type, PartType::disk);
    EXPECT_EQ(made->parts[0].files.size(), layers);
    EXPECT_EQ(made->parts[0].files[0], store_.read(ImageId("whole"))->parts[0].files[0]);
    EXPECT_FALSE(made->base);
    ASSERT_OK(store_.verify(ImageId(id)));
  }
}

TEST_F(CliImagesTest, MistakesGetOneLineAndLeaveNothing) {
  EXPECT_EQ(yado({"show"}).status, Exit::usage);
  EXPECT_EQ(yado({"show", "nobody", "--store", root()}).status, Exit::not_found);
  EXPECT_EQ(yado({"show", "m1", "--store", file("nowhere")}).status, Exit::not_found);
  EXPECT_EQ(yado({"export", "m1", "--store", root()}).status, Exit::usage);
  put_file(file("odd"), "odd");
  const Said odd = yado({"import", file("odd"), "--workload", "vm", "--id", "odd", "--store", root()});
  EXPECT_EQ(odd.status, Exit::usage);
  EXPECT_EQ(odd.err,
            fmt::format("yado: import: import of memory from {}: 3 bytes are no number of pages of 4096 bytes\n",
                        file("odd")));
  EXPECT_EQ(yado({"import", file("odd"), "--workload", "../vm", "--store", root()}).status, Exit::usage);
  EXPECT_EQ(store_.list().size(), 3U);
  std::size_t left = 0;
  for ([[maybe_unused]] const auto& entry : fs::directory_iterator(root())) ++left;
  EXPECT_EQ(left, 4U) << "three images and the lock";
}

}  // namespace
}  // namespace yado::cli
