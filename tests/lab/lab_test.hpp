#pragma once
// Fixtures: one cluster per test suite, and its last words when a test of it fails.

#include <gtest/gtest.h>

#include <iostream>

#include "base/testing.hpp"
#include "cluster.hpp"
#include "traffic.hpp"

#define LAB_MUST(declaration, expression)                                                   \
  auto YADO_CONCAT(must_, __LINE__) = (expression);                                         \
  ASSERT_TRUE(YADO_CONCAT(must_, __LINE__)) << YADO_CONCAT(must_, __LINE__).error().text(); \
  declaration = std::move(*YADO_CONCAT(must_, __LINE__))

namespace yado::labtest {

/// True with `./run test --long`.
bool long_run();

/// Why not, if there is no such guest for virtual machines here; else empty.
std::string missing_guest(const std::string& name);

/// Fails when a process, namespace, mount, control group or file of the lab is left, which ended just now.
void expect_nothing_left(const std::string& lab, const Traces& traces);

template <class Suite>
class LabTest : public ::testing::Test {
 protected:
  static ClusterOptions cluster_options() { return {}; }
  static void SetUpTestSuite() {
    auto started = Cluster::start(Suite::cluster_options());
    if (started)
      shared = std::move(*started);
    else
      std::cerr << "no cluster: " << started.error().text() << "\n";
  }
  static void TearDownTestSuite() {
    if (!shared) return;
    const std::string name = shared->name();
    const Traces traces = traces_of(shared->pid());
    EXPECT_TRUE(shared->end()) << "the lab did not end well";
    shared.reset();
    expect_nothing_left(name, traces);
  }
  void SetUp() override { ASSERT_TRUE(shared) << "the cluster did not start"; }
  void TearDown() override {
    if (HasFailure() && shared) std::cerr << shared->last_words() << std::flush;
  }
  Cluster& cluster() { return *shared; }

  static inline std::unique_ptr<Cluster> shared;
};

}  // namespace yado::labtest
