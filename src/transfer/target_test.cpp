#include "transfer/target.hpp"

#include <gtest/gtest.h>

namespace yado::transfer {
namespace {

const ImageId image("site-img.3");

TEST(TransferTargetTest, WhatIsWrittenIsRead) {
  EXPECT_EQ(manifest_target(image), "/v1/images/site-img.3/manifest");
  EXPECT_EQ(parse_target(manifest_target(image)), (Target{image, "", ""}));
  for (const char* path : {"core-1.img", "a/b/c", "with space?#%41&", "\xc3\xa4", "..", "manifest"})
    EXPECT_EQ(parse_target(file_target(image, "criu", path)), (Target{image, "criu", path})) << path;
  EXPECT_EQ(file_target(image, "criu", "a b/%"), "/v1/images/site-img.3/parts/criu/a%20b/%25");
}

TEST(TransferTargetTest, AnythingElseIsNoTarget) {
  for (const char* target :
       {"", "/", "/v1/images", "/v1/images/", "/v1/images/a", "/v1/images/a/", "/v1/images/a/manifest/x",
        "/v1/images/a/parts", "/v1/images/a/parts/criu", "/v1/images/a/parts/criu/", "/v1/images/a/parts//x",
        "/v1/images/a/parts/criu/%", "/v1/images/a/parts/criu/%4", "/v1/images/a/parts/criu/%zz",
        "/v1/images/a/parts/criu/x?y", "/v2/images/a/manifest", "http://h/v1/images/a/manifest"})
    EXPECT_EQ(parse_target(target), std::nullopt) << target;
}

TEST(TransferTargetTest, OneRangeInsideTheFile) {
  EXPECT_EQ(parse_range("", 10), (Range{0, 10}));
  EXPECT_EQ(parse_range("", 0), (Range{0, 0}));
  EXPECT_EQ(parse_range("bytes=0-9", 10), (Range{0, 10}));
  EXPECT_EQ(parse_range("bytes=3-3", 10), (Range{3, 4}));
  EXPECT_EQ(parse_range("bytes=3-18446744073709551615", 10), (Range{3, 10}));
  EXPECT_EQ(parse_range(range_header({3, 7}), 10), (Range{3, 7}));
  for (const char* wrong : {"bytes=", "bytes=-5", "bytes=5-", "bytes=5-4", "bytes=10-11", "bytes=0-1,3-4", "0-1",
                            "bytes=0-1 ", "bytes=a-b", "bytes=-1-2", "bytes=99999999999999999999-1"})
    EXPECT_FALSE(parse_range(wrong, 10)) << wrong;
  EXPECT_FALSE(parse_range("bytes=0-0", 0));
}

TEST(TransferTargetTest, DataAndWhatItCoversComeBack) {
  EXPECT_EQ(parse_content_range(content_range({3, 10}, 20)), (Range{3, 10}));
  for (const char* header : {"", "bytes 3-9", "bytes=3-9/20", "bytes 9-3/20", "bytes 3-/20", "bytes a-9/20"})
    EXPECT_EQ(parse_content_range(header).error().code, Errc::corrupt) << header;

  const std::vector<Range> data{{3, 5}, {5, 6}, {9, 10}};
  EXPECT_EQ(data_header(data), "3-4,5-5,9-9");
  EXPECT_EQ(parse_data_header(data_header(data), {3, 10}), data);
  EXPECT_EQ(parse_data_header(data_header({}), {3, 10}), std::vector<Range>());
  for (const char* header : {"", "3-4,", ",3-4", "3-4,4-5", "2-4", "9-10", "5-3", "3", "3-4 5-6",
                             "3-18446744073709551615", "18446744073709551615-18446744073709551615"})
    EXPECT_EQ(parse_data_header(header, {3, 10}).error().code, Errc::corrupt) << header;
}

}  // namespace
}  // namespace yado::transfer
