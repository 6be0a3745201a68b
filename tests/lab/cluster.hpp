#pragma once
// A lab as people have it: `yado dev` with control, gate and agents, and PostgreSQL in its front. Tests ask its
// sockets, as curl could. Everything ends with the object: also when a test fails, and, by the death signal, when it
// crashes.
//
// Tests wait for what they want to see by until() and event(): both look again whenever control says anything on its
// event stream (at least every 500 ms), and give up after a limit that no working cluster comes near.

#include <condition_variable>
#include <filesystem>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "model/cluster.hpp"
#include "os/process.hpp"

namespace yado::labtest {

using nlohmann::json;

constexpr nanoseconds generous = 60s;

struct ClusterOptions {
  unsigned hosts = 3;
  bool criu = true;
  bool database = true;
  std::string disk;  ///< of every host, "64MB"; empty: the directory's
  std::string name;  ///< empty: a unique one
  std::string link = "0";  ///< bits per second of every host's; 0: as fast as it goes
};

/// A program that ran to its end.
struct Ended {
  int status = -1;
  std::string output;
};
/// A program on this machine, with standard output and error in one.
Result<Ended> run_program(std::vector<std::string> arguments);

class Cluster {
 public:
  /// All hosts have joined and the database answers.
  static Result<std::unique_ptr<Cluster>> start(ClusterOptions options = {});
  ~Cluster();
  Cluster(const Cluster&) = delete;

  /// Ctrl-C. True when the lab ended well, and within the limit.
  bool end();
  void kill_all_roles();  ///< SIGKILL to `yado dev`: the kernel has to end the lab

  const std::string& name() const { return name_; }
  pid_t pid() const;
  std::filesystem::path directory() const { return std::filesystem::path("/run/yado") / name_; }
  std::filesystem::path host_directory(const std::string& host) const { return directory() / host; }
  std::string control_socket() const { return (directory() / "control.sock").native(); }
  std::string lab_socket() const { return (directory() / "lab.sock").native(); }
  const Endpoint& gate() const { return gate_; }
  std::string cgroup(const std::string& host, const std::string& instance) const;

  Result<json> control(const std::string& method, const std::string& target, const json& body = nullptr) const;
  Result<json> lab(const std::string& method, const std::string& target, const json& body = nullptr) const;
  /// The `yado` program with these arguments, with --control where `command` knows it.
  Ended yado(std::vector<std::string> arguments) const;
  /// A program on a host, or in the front.
  Result<Ended> exec(const std::string& host, const std::vector<std::string>& command) const;
  /// Rows of the answer, columns separated by '|'.
  Result<std::vector<std::string>> sql(const std::string& statement) const;

  /// The moment from which it is in force.
  Result<Instant> fault(const std::string& kind, const std::string& host, const std::string& workload = "") const;
  Status heal(const std::string& host) const;

  /// The spec of an example, with the policy as wanted.
  Result<json> spec(const std::string& example, const std::string& name, const std::string& standby = "",
                    const std::string& consistency = "") const;
  /// Its route, when an owner answers.
  Result<json> deploy(const json& spec) const;
  json workload(const std::string& name) const;
  std::string owner_host(const std::string& name) const;
  std::string owner_instance(const std::string& name) const;
  std::uint64_t epoch(const std::string& name) const;
  /// An owner answers, its image is where it should be, its standby stands; and every host is there.
  bool redundant(const std::string& name) const;
  std::string why_not_redundant(const std::string& name) const;
  bool wait_redundant(const std::string& name, nanoseconds limit = generous) const;

  std::uint64_t newest_event() const;
  std::vector<json> events(std::uint64_t since = 0) const;
  std::optional<json> event(std::uint64_t since, const std::function<bool(const json&)>& wanted,
                            nanoseconds limit = generous) const;
  std::optional<json> event(std::uint64_t since, const std::string& kind, const std::string& workload,
                            nanoseconds limit = generous) const;
  bool until(const std::function<bool()>& condition, nanoseconds limit = generous) const;

  /// What the roles said last, for a test that failed.
  std::string last_words() const;

 private:
  Cluster() = default;
  Status start_lab(const ClusterOptions& options);
  Status start_database();
  void follow();

  std::string name_;
  Endpoint gate_;
  os::Process dev_, database_;
  os::Fd dev_output_, database_output_;
  std::string front_;
  std::filesystem::path scratch_;

  std::thread follower_, dev_drain_, database_drain_;
  mutable std::mutex mutex_;
  mutable std::condition_variable news_;
  bool stopping_ = false;     // guarded by mutex_
  std::uint64_t pieces_ = 0;  // guarded by mutex_
  std::vector<json> events_;  // guarded by mutex_
};

/// What only this lab has while it runs.
struct Traces {
  std::vector<std::string> namespaces;  ///< "net:[4026532201]"
  nanoseconds lab_started{0};           ///< since the machine's boot
};
Traces traces_of(pid_t dev);
/// What is left of a lab that had ended at that moment; empty when nothing is.
std::vector<std::string> running_leftovers(const std::string& lab, const Traces& traces, Instant ended);
std::vector<std::string> files_left(const std::string& lab);  ///< directories, control groups, mounts

}  // namespace yado::labtest
