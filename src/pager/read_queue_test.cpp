#include "pager/read_queue.hpp"

#include <gtest/gtest.h>

#include <future>
#include <string>

namespace yado::pager {
namespace {

TEST(ReadQueueTest, WhatSomebodyWaitsForGoesBetweenTwoStepsOfWhatCanWait) {
  std::string order;
  std::promise<void> done;
  {
    ReadQueue queue;
    int step = 0;
    queue.add(ReadQueue::Urgency::background, [&] {
      order += static_cast<char>('a' + step);
      if (step == 1)
        for (const char* name : {"1", "2"})
          queue.add(ReadQueue::Urgency::somebody_waits, [&order, name] {
            order += name;
            return false;
          });
      return ++step < 4;
    });
    queue.add(ReadQueue::Urgency::background, [&] {
      order += "-";
      done.set_value();
      return false;
    });
    done.get_future().wait();
  }
  EXPECT_EQ(order, "ab12cd-");
}

TEST(ReadQueueTest, ItsEndWaitsForOneStepAndNotForAll) {
  std::promise<void> begun;
  int steps = 0;
  {
    ReadQueue queue;
    queue.add(ReadQueue::Urgency::background, [&] {
      if (++steps == 1) begun.set_value();
      return true;  // for ever
    });
    begun.get_future().wait();
  }
  EXPECT_GE(steps, 1);
}

}  // namespace
}  // namespace yado::pager
