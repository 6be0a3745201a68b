#include "api/answer.hpp"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace yado::api {
namespace {

TEST(AnswerTest, AnErrorComesBackAsItself) {
  for (int number = 1; number <= 18; ++number) {
    const Error error{static_cast<Errc>(number), "what, where and why"};
    const auto body = body_of(answer(error));
    ASSERT_FALSE(body);
    EXPECT_EQ(body.error().code, error.code) << number;
    EXPECT_EQ(body.error().message, error.message);
    EXPECT_GE(answer(error).status, 400);
  }
}

TEST(AnswerTest, AnAnswerThatIsNotOursSaysNothingOfItsEffect) {
  wire::Response page{.status = 500, .headers = {}, .body = "<html>oops"};
  EXPECT_EQ(body_of(page).error().code, Errc::unavailable);
  page.status = 404;
  EXPECT_EQ(body_of(page).error().code, Errc::corrupt);
  page.status = 200;
  EXPECT_EQ(body_of(page).error().code, Errc::corrupt);
  page.body.clear();
  EXPECT_TRUE(body_of(page));
}

}  // namespace
}  // namespace yado::api
