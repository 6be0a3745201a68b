#include "base/base64.hpp"

#include <gtest/gtest.h>

namespace yado {
namespace {

TEST(Base64Test, TheVectorsOfTheRfc) {
  const std::pair<const char*, const char*> vectors[] = {{"", ""},          {"f", "Zg=="},         {"fo", "Zm8="},        {"foo", "Zm9v"},
                                                         {"foob", "Zm9vYg=="}, {"fooba", "Zm9vYmE="}, {"foobar", "Zm9vYmFy"}};
  for (const auto& [bytes, text] : vectors) {
    EXPECT_EQ(to_base64(bytes), text);
    EXPECT_EQ(from_base64(text).value_or("?"), bytes);
  }
}

TEST(Base64Test, EveryByteComesBack) {
  std::string all;
  for (int i = 0; i < 256; ++i) all += static_cast<char>(i);
  EXPECT_EQ(from_base64(to_base64(all)).value_or(""), all);
}

TEST(Base64Test, AnythingElseIsRefused) {
  for (const char* text : {"Zg=", "Zg", "Z===", "Zm9v=m8=", "Zm9*", "Zm 9", "===="})
    EXPECT_FALSE(from_base64(text)) << text;
}

}  // namespace
}  // namespace yado
