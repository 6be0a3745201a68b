#include "base/id.hpp"

#include <gtest/gtest.h>

namespace yado {
namespace {

TEST(NameTest, OnlyWhatFitsAFileACgroupAndAHostNameIsValid) {
  EXPECT_TRUE(valid_name("site-1.prod"));
  EXPECT_FALSE(valid_name(""));
  EXPECT_FALSE(valid_name("../etc"));
  EXPECT_FALSE(valid_name("Site"));
  EXPECT_FALSE(valid_name("-a"));
  EXPECT_FALSE(valid_name(std::string(64, 'a')));
}

}  // namespace
}  // namespace yado
