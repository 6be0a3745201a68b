#pragma once
// The demo's stage: a lab of its own, PostgreSQL in its front, and a real Django site on its hosts. Everything is done by
// what a person has too: the yado binary, control's API and the lab's (docs/api.md).

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cli/client.hpp"
#include "drill/timeline.hpp"
#include "model/workload.hpp"
#include "program.hpp"

namespace yado::bench {

struct StageOptions {
  std::filesystem::path yado;        ///< the binary
  std::filesystem::path repository;  ///< where examples/ and tools/ are
};

/// Who answers now.
struct Owner {
  std::string host, instance;
  std::uint64_t epoch = 0;
};

class Stage {
 public:
  /// `said` is told what has been reached. `lab_started` gets the lab's program as soon as there is one: whoever is
  /// interrupted ends it.
  static Result<std::unique_ptr<Stage>> start(const StageOptions& options, const std::function<void(std::string)>& said,
                                              const std::function<void(const Program&)>& lab_started);

  Endpoint gate() const { return gate_; }
  const WorkloadSpec& spec() const { return spec_; }

  /// Returns when an owner answers.
  Status deploy(StandbyLevel level);
  /// Waits until every host lives, the image is acknowledged by two of them, the standby stands frozen beside the owner
  /// (as far as the level wants them), and nothing else of the site is left anywhere.
  Status wait_complete(StandbyLevel level);
  Result<Owner> owner();

  /// The moment from which the fault is in force.
  Result<Instant> inject(const std::string& fault, const std::string& host);
  Status heal(const std::string& host);
  std::uint64_t newest_event() { return cli::newest_event(control_); }
  Result<std::vector<drill::Moment>> moments_since(std::uint64_t event);
  /// The newest events as `yado events` shows them.
  std::string last_events();

  /// How often each guest book entry that begins with `prefix` stands in the database.
  Result<std::map<std::string, int>> entries(const std::string& prefix);

 private:
  Stage(std::unique_ptr<Program> lab, std::string directory)
      : lab_(std::move(lab)), control_(directory + "/control.sock"), lab_api_(directory + "/lab.sock") {}
  Status start_database(const StageOptions& options, const std::string& directory);
  Status read_spec(const StageOptions& options);
  Result<bool> complete(StandbyLevel level);

  // Destroyed from the last to the first: the database ends before the lab.
  std::unique_ptr<Program> lab_;
  cli::Client control_, lab_api_;
  std::unique_ptr<Program> database_;
  std::string front_;
  Endpoint gate_;
  WorkloadSpec spec_;
  std::string missing_;  ///< what complete() found last
};

}  // namespace yado::bench
