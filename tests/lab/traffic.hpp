#pragma once
// Clients of a counter workload, and the judgement of what they were told: open-loop GETs and POSTs with ids of their
// own, held against the rows in the database.

#include <memory>
#include <string>
#include <vector>

#include "cluster.hpp"
#include "drill/load.hpp"

namespace yado::labtest {

struct Verdict {
  std::size_t gets = 0, posts = 0, acknowledged = 0, unknown = 0, refused = 0;
  nanoseconds slowest{0};
  std::vector<std::string> wrong;  ///< empty: everything is as promised
  std::vector<drill::Sample> samples;
  std::string text() const;
};

class Traffic {
 public:
  /// Starts asking `workload`, a counter; returns when one GET and one POST were answered as they should.
  static Result<std::unique_ptr<Traffic>> start(const Cluster& cluster, const std::string& workload, double rate = 40,
                                                double post_share = 0.3);
  /// The first correct answer of a newer epoch than this.
  std::optional<drill::Sample> answered_after(std::uint64_t epoch, nanoseconds limit = generous) const;
  /// A correct GET and a correct POST that were due after `moment`.
  bool serves_since(Instant moment, nanoseconds limit = generous) const;
  Verdict finish();

  const drill::Load& load() const { return *load_; }
  const std::string& prefix() const { return prefix_; }

 private:
  Traffic(const Cluster& cluster, std::string workload) : cluster_(cluster), workload_(std::move(workload)) {}
  const Cluster& cluster_;
  std::string workload_, prefix_;
  std::unique_ptr<drill::Load> load_;
};

}  // namespace yado::labtest
