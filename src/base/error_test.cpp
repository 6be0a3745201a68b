#include "base/error.hpp"

#include <cerrno>

#include <gtest/gtest.h>

namespace yado {
namespace {

Result<int> parse(bool good) {
  if (good) return 7;
  return fail(Errc::corrupt, "part {}: checksum differs", "criu");
}

Result<int> outer(bool good) {
  YADO_ASSIGN(int value, parse(good), "image site-1");
  return value + 1;
}

TEST(ErrorTest, ContextGoesInFrontAndTheCodeStays) {
  EXPECT_EQ(*outer(true), 8);
  auto failed = outer(false);
  ASSERT_FALSE(failed);
  EXPECT_EQ(failed.error().text(), "image site-1: part criu: checksum differs (corrupt)");
}

TEST(ErrorTest, EveryCodeHasANameThatLeadsBack) {
  for (int code = 1; code <= 18; ++code)
    EXPECT_EQ(errc_from_name(name_of(static_cast<Errc>(code))), static_cast<Errc>(code)) << code;
}

TEST(ErrorTest, ErrnoBecomesAnErrorInOnePlace) {
  auto error = fail_errno(ENOSPC, "write /images/a");
  EXPECT_EQ(error.error().code, Errc::no_space);
  EXPECT_NE(error.error().message.find("write /images/a: No space left"), std::string::npos);
}

}  // namespace
}  // namespace yado
