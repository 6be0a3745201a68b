#pragma once
// What `./run bench paging` measured.

#include <map>
#include <string>
#include <vector>

#include "drill/metrics.hpp"

namespace yado::bench {

struct Value {
  std::string metric, unit;
  double value = 0;
};

/// One measurement of a variant in a case.
struct PagingRun {
  std::string scenario;  ///< "case" in JSON; begins with the part's name
  std::string variant;
  int round = 0;
  std::vector<Value> values;
};

/// Which figures of which variants are compared with the others' of the same case and round: "<metric>_times_as_good_as_<other>", above 1
/// when `variant`'s is better.
struct Comparison {
  std::string metric;
  bool less_is_better = true;
  std::string variant;    ///< all that begin with it, with
  std::string reference;  ///< this one; empty: all that do not begin with it
};

struct PagingReport {
  std::string machine;
  std::vector<PagingRun> runs;
  std::vector<Comparison> comparisons;
  std::vector<std::string> left_out;  ///< variants that this machine cannot have, and why

  std::vector<drill::Row> rows() const;
  /// A table per case: medians, and in brackets the smallest and the largest.
  void print() const;
};

}  // namespace yado::bench
