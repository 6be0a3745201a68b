#include "image/manifest.hpp"

#include <gtest/gtest.h>

#include <functional>
#include <nlohmann/json.hpp>

#include "image/checksum.hpp"
#include "image/paths.hpp"

namespace yado::image {
namespace {

// The example of docs/formats/image.md: what is on people's disks stays readable.
constexpr std::string_view golden =
    R"({"base":"site-img.2","checksum":"94878ac3e5c676708d0f750646474cc3","created_wall_ms":1700000000000,)"
    R"("format":"yado-image","id":"site-img.3","parts":[{"files":[{"bytes":5,"path":"core-1.img",)"
    R"("xxh128":"b5e9c1ad071b3e7fc779cfaa5e523818"}],"name":"criu","type":"criu"}],)"
    R"("properties":{"pipe":"pipe:[42]"},"spec_hash":"abc","version":1,"workload":"site"})";

Manifest golden_manifest() {
  return {.id = ImageId("site-img.3"),
          .workload = WorkloadId("site"),
          .spec_hash = "abc",
          .created_wall_ms = 1'700'000'000'000,
          .base = ImageId("site-img.2"),
          .parts = {{PartType::criu, "criu", {{"core-1.img", 5, "b5e9c1ad071b3e7fc779cfaa5e523818"}}}},
          .properties = {{"pipe", "pipe:[42]"}}};
}

// The main image of a guest on two hosts: what version 2 brought.
constexpr std::string_view golden_main =
    R"({"base":"vm-img.2","checksum":"f3fb380c1f84d51f4258cc36139f1dd4","created_wall_ms":1700000000000,)"
    R"("format":"yado-image","id":"vm-img.3","members":[{"host":"h2","id":"vm-img.3.h2",)"
    R"("xxh128":"99aa06d3014798d86001c324468d497f"}],"parts":[{"files":[{"bytes":120,"path":"pages.index",)"
    R"("xxh128":"b5e9c1ad071b3e7fc779cfaa5e523818"},{"bytes":1048576,"data_bytes":8192,"path":"pages.log",)"
    R"("proved_by":"pages.index"}],"name":"memory","type":"pages"}],"properties":{},"spec_hash":"abc",)"
    R"("stands_for":"94878ac3e5c676708d0f750646474cc3","version":2,"workload":"vm"})";

Manifest golden_main_manifest() {
  return {.id = ImageId("vm-img.3"),
          .workload = WorkloadId("vm"),
          .spec_hash = "abc",
          .created_wall_ms = 1'700'000'000'000,
          .base = ImageId("vm-img.2"),
          .parts = {{PartType::pages,
                     "memory",
                     {{"pages.index", 120, "b5e9c1ad071b3e7fc779cfaa5e523818", "", std::nullopt},
                      {"pages.log", 1'048'576, "", "pages.index", 8192}}}},
          .members = {{ImageId("vm-img.3.h2"), HostId("h2"), "99aa06d3014798d86001c324468d497f"}},
          .stands_for = "94878ac3e5c676708d0f750646474cc3"};
}

// A golden manifest with a change and the checksum that belongs to it: what a peer could send.
std::string forged(const std::function<void(nlohmann::json&)>& change, std::string_view from = golden) {
  auto json = nlohmann::json::parse(from);
  json.erase("checksum");
  change(json);
  json["checksum"] = checksum_of(json.dump());
  return json.dump();
}

std::string refusal(std::string_view text) {
  auto manifest = manifest_from_json(text);
  if (manifest) return "(accepted)";
  EXPECT_TRUE(manifest.error().code == Errc::corrupt || manifest.error().code == Errc::unsupported);
  return manifest.error().message;
}

std::string refusal_of(const std::function<void(nlohmann::json&)>& change) { return refusal(forged(change)); }
std::string refusal_of_main(const std::function<void(nlohmann::json&)>& change) {
  return refusal(forged(change, golden_main));
}

TEST(ImageChecksumTest, IsXxh3OfThatSpelling) {
  // From the reference implementation's command: printf '' | xxh128sum; printf hello | xxh128sum
  EXPECT_EQ(checksum_of(std::string_view()), "99aa06d3014798d86001c324468d497f");
  EXPECT_EQ(checksum_of(std::string_view("hello")), "b5e9c1ad071b3e7fc779cfaa5e523818");
}

TEST(ImageManifestTest, TheGoldenExampleIsWrittenAndRead) {
  EXPECT_EQ(to_json(golden_manifest()), golden);
  auto manifest = manifest_from_json(golden);
  ASSERT_TRUE(manifest) << manifest.error().message;
  EXPECT_EQ(*manifest, golden_manifest());
  EXPECT_EQ(manifest->bytes(), 5U);
}

TEST(ImageManifestTest, TheGoldenMainImageIsWrittenAndRead) {
  EXPECT_EQ(to_json(golden_main_manifest()), golden_main);
  auto manifest = manifest_from_json(golden_main);
  ASSERT_TRUE(manifest) << manifest.error().message;
  EXPECT_EQ(*manifest, golden_main_manifest());
  EXPECT_EQ(manifest->bytes(), 1'048'696U);
  EXPECT_EQ(manifest->data_bytes(), 8312U);
}

TEST(ImageManifestTest, AManifestSaysTheLowestVersionThatItNeeds) {
  const auto version_of = [](const Manifest& manifest) { return nlohmann::json::parse(to_json(manifest))["version"]; };
  EXPECT_EQ(version_of(golden_manifest()), 1);
  Manifest member = golden_manifest();
  member.member_of = ImageId("site-img.1");
  EXPECT_EQ(version_of(member), 2);
  EXPECT_EQ(manifest_from_json(to_json(member)), member);
}

TEST(ImageManifestTest, AMainImageNamesItsMembersOnce) {
  EXPECT_EQ(refusal_of_main([](auto& m) { m["members"] = "h2"; }), "manifest: members: is not an array");
  EXPECT_EQ(refusal_of_main([](auto& m) { m["members"].push_back(m["members"][0]); }),
            "manifest: members[1].id: is there twice, or the image itself");
  EXPECT_EQ(refusal_of_main([](auto& m) { m["members"][0]["id"] = m["id"]; }),
            "manifest: members[0].id: is there twice, or the image itself");
  EXPECT_EQ(refusal_of_main([](auto& m) { m["members"][0]["host"] = "../h2"; }),
            "manifest: members[0].host: is not a valid name");
  EXPECT_EQ(refusal_of_main([](auto& m) { m["members"][0].erase("xxh128"); }),
            "manifest: members[0].xxh128: is missing");
  EXPECT_EQ(refusal_of_main([](auto& m) { m["member_of"] = "vm-img.1"; }),
            "manifest: member_of: a member has no members");
  EXPECT_EQ(refusal_of([](auto& m) { m["member_of"] = m["id"]; }), "manifest: member_of: is the image itself");
  EXPECT_EQ(refusal_of([](auto& m) { m["base"] = m["id"]; }), "manifest: base: is the image itself");
  EXPECT_EQ(refusal_of([](auto& m) { m["stands_for"] = "x"; }), "manifest: stands_for: is not 32 hex digits");
}

TEST(ImageManifestTest, OnlyALogIsProvedByItsIndex) {
  EXPECT_EQ(refusal_of_main([](auto& m) { m["parts"][0]["type"] = "disk"; }),
            "manifest: parts[0].files: proved_by in a part that is not of type pages");
  EXPECT_EQ(refusal_of_main([](auto& m) { m["parts"][0]["files"].erase(0); }),
            "manifest: parts[0].files: pages.log is proved by pages.index, which is not there");
  EXPECT_EQ(refusal_of_main([](auto& m) { m["parts"][0]["files"][1]["path"] = "memory"; }),
            "manifest: parts[0].files[1].proved_by: is not pages.index for pages.log");
  EXPECT_EQ(refusal_of_main([](auto& m) { m["parts"][0]["files"][0] = m["parts"][0]["files"][1]; }),
            "manifest: parts[0].files[1].path: is there twice");
  EXPECT_EQ(refusal_of_main([](auto& m) { m["parts"][0]["files"][1]["xxh128"] = std::string(32, '0'); }),
            "manifest: parts[0].files[1]: has xxh128 and proved_by");
  EXPECT_EQ(refusal_of_main([](auto& m) { m["parts"][0]["files"][1].erase("proved_by"); }),
            "manifest: parts[0].files[1].xxh128: is missing");
  EXPECT_EQ(refusal_of_main([](auto& m) { m["parts"][0]["files"][0]["data_bytes"] = 121; }),
            "manifest: parts[0].files[0].data_bytes: is more than bytes");
}

TEST(ImageManifestTest, AManifestWithoutBaseAndPartsComesBackToo) {
  const Manifest empty{.id = ImageId("a"), .workload = WorkloadId("b")};
  EXPECT_EQ(manifest_from_json(to_json(empty)), empty);
}

TEST(ImageManifestTest, EveryFlippedBitIsSeen) {
  for (const std::string_view whole : {golden, golden_main})
    for (std::size_t byte = 0; byte < whole.size(); ++byte)
      for (int bit = 0; bit < 8; ++bit) {
        std::string damaged(whole);
        damaged[byte] = static_cast<char>(damaged[byte] ^ (1 << bit));
        EXPECT_FALSE(manifest_from_json(damaged)) << "byte " << byte << " bit " << bit << ": " << damaged;
      }
}

TEST(ImageManifestTest, EveryTruncationIsSeen) {
  for (std::size_t length = 0; length < golden.size(); ++length)
    EXPECT_FALSE(manifest_from_json(golden.substr(0, length))) << length;
}

TEST(ImageManifestTest, AnotherVersionIsRefusedByName) {
  auto newer = manifest_from_json(forged([](auto& m) { m["version"] = 3; }));
  ASSERT_FALSE(newer);
  EXPECT_EQ(newer.error().code, Errc::unsupported);
  EXPECT_EQ(newer.error().message, "manifest: version 3 is not one this yado reads (1 to 2)");
  EXPECT_EQ(refusal_of([](auto& m) { m["format"] = "tar"; }), "manifest: format: is not yado-image");
}

TEST(ImageManifestTest, KeysOfLaterWritersAreIgnored) {
  EXPECT_EQ(manifest_from_json(forged([](auto& m) { m["signature"] = {{"by", "me"}}; })), golden_manifest());
}

TEST(ImageManifestTest, PathsThatLeaveThePartAreRefused) {
  for (const char* path : {"", "/etc/passwd", "../manifest.json", "a/../../b", "a//b", "./a", "a/", "a/.", "a\nb"})
    EXPECT_EQ(refusal_of([&](auto& m) { m["parts"][0]["files"][0]["path"] = path; }),
              "manifest: parts[0].files[0].path: leaves its part or is no path")
        << path;
  for (const char* name : {"", "..", "a/b", ".draft-x", "CRIU"})
    EXPECT_EQ(refusal_of([&](auto& m) { m["parts"][0]["name"] = name; }),
              "manifest: parts[0].name: is not a valid name");
  EXPECT_EQ(refusal_of([](auto& m) { m["parts"][0]["name"] = "manifest.json"; }),
            "manifest: parts[0].name: is the manifest's own");
  EXPECT_EQ(refusal_of([](auto& m) { m["id"] = "../../etc"; }), "manifest: id: is not a valid name");
  EXPECT_EQ(refusal_of([](auto& m) { m["base"] = "a/b"; }), "manifest: base: is not a valid name");
}

TEST(ImageManifestTest, FilesAndPartsAreThereOnce) {
  auto again = [](const char* path) {
    return [path](nlohmann::json& m) {
      auto file = m["parts"][0]["files"][0];
      file["path"] = path;
      m["parts"][0]["files"].push_back(file);
    };
  };
  EXPECT_EQ(refusal_of(again("core-1.img")), "manifest: parts[0].files[1].path: is there twice");
  EXPECT_EQ(refusal_of(again("core-1.img/x")), "manifest: parts[0].files: core-1.img is a file and a directory");
  EXPECT_EQ(refusal_of(again("core-1.imgx")), "(accepted)");
  EXPECT_EQ(refusal_of([](auto& m) { m["parts"].push_back(m["parts"][0]); }),
            "manifest: parts[1].name: is there twice");
}

TEST(ImageManifestTest, WrongTypesNameTheField) {
  EXPECT_EQ(refusal("[]"), "manifest: text: is not an object");
  EXPECT_EQ(refusal_of([](auto& m) { m.erase("workload"); }), "manifest: workload: is missing");
  EXPECT_EQ(refusal_of([](auto& m) { m["parts"] = 3; }), "manifest: parts: is not an array");
  EXPECT_EQ(refusal_of([](auto& m) { m["parts"][0] = 3; }), "manifest: parts[0]: is not an object");
  EXPECT_EQ(refusal_of([](auto& m) { m["parts"][0]["type"] = "floppy"; }),
            "manifest: parts[0].type: is none of criu, pages, device-state, disk");
  EXPECT_EQ(refusal_of([](auto& m) { m["parts"][0]["files"][0]["bytes"] = -5; }),
            "manifest: parts[0].files[0].bytes: is negative");
  EXPECT_EQ(refusal_of([](auto& m) { m["parts"][0]["files"][0]["bytes"] = 5.5; }),
            "manifest: parts[0].files[0].bytes: is not a whole number");
  EXPECT_EQ(refusal_of([](auto& m) { m["parts"][0]["files"][0]["xxh128"] = "B5"; }),
            "manifest: parts[0].files[0].xxh128: is not 32 hex digits");
  EXPECT_EQ(refusal_of([](auto& m) { m["properties"]["pipe"] = 1; }), "manifest: properties.pipe: is not a string");
}

TEST(ImageManifestTest, DepthAndLengthAreNotThePeersChoice) {
  const std::string deep = "{\"x\":" + std::string(1'000'000, '[') + std::string(1'000'000, ']') + "}";
  EXPECT_EQ(refusal(deep), "manifest: not JSON: nested deeper than 16");
  EXPECT_NE(refusal(std::string((64 << 20) + 1, ' ')), "(accepted)");
}

TEST(ImagePathsTest, LongNamesAreRefusedBeforeTheFileSystemDoes) {
  EXPECT_TRUE(safe_path(std::string(255, 'a')));
  EXPECT_FALSE(safe_path(std::string(256, 'a')));
  EXPECT_TRUE(safe_path("a/..b/c..."));
}

}  // namespace
}  // namespace yado::image
