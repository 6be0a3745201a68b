#include "agent/supervisor/console_tail.hpp"

#include <gtest/gtest.h>

namespace yado::supervisor {
namespace {

TEST(ConsoleTailTest, EachReaderGoesOnWhereItStopped) {
  ConsoleTail tail;
  tail.append("one\n");
  const auto first = tail.since(0);
  EXPECT_EQ(first.text, "one\n");
  tail.append("two");
  EXPECT_EQ(tail.since(first.next).text, "two");
  EXPECT_EQ(tail.since(0).text, "one\ntwo");
  EXPECT_EQ(tail.since(tail.end()).text, "");
}

TEST(ConsoleTailTest, WhoComesNewSeesThePrompt) {
  ConsoleTail tail;
  EXPECT_EQ(tail.since(std::nullopt).text, "");
  tail.append("old\nlogin: ");
  EXPECT_EQ(tail.since(std::nullopt).text, "login: ");
  tail.append("x\n");
  EXPECT_EQ(tail.since(std::nullopt).text, "");
}

TEST(ConsoleTailTest, WhatIsNotKeptIsCountedAndPiecesAreBounded) {
  ConsoleTail tail(8, 4);
  tail.append("0123456789abcdefg");
  const auto piece = tail.since(2);
  EXPECT_EQ(piece.text, "9abc");
  EXPECT_EQ(piece.lost, 7U);
  EXPECT_EQ(piece.next, 13U);
  EXPECT_EQ(tail.since(piece.next).text, "defg");
  EXPECT_EQ(tail.end(), 17U);
}

TEST(ConsoleTailTest, APositionOfAnotherInstanceStartsAnew) {
  ConsoleTail tail;
  tail.append("new");
  EXPECT_EQ(tail.since(1'000).text, "new");
}

}  // namespace
}  // namespace yado::supervisor
