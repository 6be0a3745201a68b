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

// The golden manifest with a change and the checksum that belongs to it: what a peer could send.
std::string forged(const std::function<void(nlohmann::json&)>& change) {
  auto json = nlohmann::json::parse(golden);
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

TEST(ImageManifestTest, AManifestWithoutBaseAndPartsComesBackToo) {
  const Manifest empty{.id = ImageId("a"), .workload = WorkloadId("b")};
  EXPECT_EQ(manifest_from_json(to_json(empty)), empty);
}

TEST(ImageManifestTest, EveryFlippedBitIsSeen) {
  for (std::size_t byte = 0; byte < golden.size(); ++byte)
    for (int bit = 0; bit < 8; ++bit) {
      std::string damaged(golden);
      damaged[byte] = static_cast<char>(damaged[byte] ^ (1 << bit));
      EXPECT_FALSE(manifest_from_json(damaged)) << "byte " << byte << " bit " << bit << ": " << damaged;
    }
}

TEST(ImageManifestTest, EveryTruncationIsSeen) {
  for (std::size_t length = 0; length < golden.size(); ++length)
    EXPECT_FALSE(manifest_from_json(golden.substr(0, length))) << length;
}

TEST(ImageManifestTest, AnotherVersionIsRefusedByName) {
  auto newer = manifest_from_json(forged([](auto& m) { m["version"] = 2; }));
  ASSERT_FALSE(newer);
  EXPECT_EQ(newer.error().code, Errc::unsupported);
  EXPECT_EQ(newer.error().message, "manifest: version 2 is not one this yado reads (1)");
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
