#pragma once
// PostgreSQL in a guest whose memory is split, and its load from outside, by PostgreSQL's own programs on the guest's host.

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "net/rtnl.hpp"
#include "split_vm_hosts.hpp"
#include "split_vm_image.hpp"
#include "workload/vm/vm.hpp"

namespace yado::bench {

struct PgbenchLoad {
  const char* name;
  const char* script;  ///< of pgbench
  bool writes;
};
inline constexpr PgbenchLoad database_reading{"database reading", "select-only", false}, database_writing{"database writing", "tpcb-like", true};

struct Transaction {
  double ended_s = 0;  ///< by the clock of the day
  double ms = 0;
};

/// What they took.
struct Transactions {
  std::vector<Transaction> all;  ///< in no order
  double per_s = 0;              ///< pgbench's own figure, without connecting
  /// Error: there is none.
  Result<double> percentile_ms(double part) const;
};

class PostgresGuest {
 public:
  /// In which it runs, on the rig's first host; its other memory host is the second.
  struct Where {
    Rig& rig;
    const WorkDirectories& work;
    std::filesystem::path guests;    ///< of tools/make-guest
    std::string name;                ///< of its directory and control group
    std::uint64_t memory_bytes = 0;
    std::uint64_t local_bytes = 0;
  };
  static constexpr std::uint32_t hosts = 2;

  /// Returns when it answers. Errors: `not_found` when it was not made.
  static Result<PostgresGuest> boot(const Where& where);
  /// Returns when it runs. `use`: in which order its pages were used after the image was taken; empty: not known.
  static Result<PostgresGuest> restore(const Where& where, const SplitImage& image, const std::filesystem::path& use);

  /// Makes pgbench's tables. `scale`: 100 000 accounts each, some 16 MB with their index.
  Status fill(int scale);
  /// Error `application`: a transaction failed.
  Result<Transactions> run(const PgbenchLoad& load, int seconds);
  /// Reads every account. All sums are of the same transfers, and there are as many of these as were acknowledged.
  Status check();

  /// The pager's (docs/api.md).
  Result<nlohmann::json> figures() const;
  /// Returns when no more than that is here.
  Status limit(std::uint64_t local_bytes);
  const vm::Vm& vm() const { return *vm_; }

 private:
  static Result<PostgresGuest> prepare(const Where& where);
  vm::VmSpec spec(const Where& where) const;
  vm::Place place(const Where& where, vm::Paging paging) const;
  Result<std::string> outside(std::vector<std::string> arguments);
  Result<std::string> pgbench(std::vector<std::string> options);

  std::filesystem::path directory_;
  const os::Netns* network_ = nullptr;
  std::optional<SplitHosts> servers_;
  std::optional<vm::Vm> vm_;
  std::uint64_t written_ = 0;  ///< transactions that were acknowledged
};

}  // namespace yado::bench
