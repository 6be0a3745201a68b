#include "workload/vm/accelerator.hpp"

#include <gtest/gtest.h>

namespace yado::vm {
namespace {

TEST(AcceleratorTest, TheChoiceIsExplainedAndTheSameTwice) {
  const AcceleratorChoice first = choose_accelerator(), second = choose_accelerator();
  EXPECT_EQ(first.kind, second.kind) << first.why << "; then: " << second.why;
  EXPECT_NE(first.why.find("KVM"), std::string::npos) << first.why;
}

}  // namespace
}  // namespace yado::vm
