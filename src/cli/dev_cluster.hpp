#pragma once
// All roles on one machine: control and gate in the lab's front, an agent on every host. What dies by itself is started
// again, as an init system would; what a fault killed stays dead until it is healed.
//
//   <run>/<lab>/control.sock, lab.sock      APIs for people
//   <run>/<lab>/front/control               control's state
//   <run>/<lab>/identity/<role>             certificates
//   <run>/<lab>/log/<role>.log              what the roles say
//   <run>/<lab>/<host>                      the agent's state
//
// Belongs to the thread of its io_context.

#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <nlohmann/json_fwd.hpp>

#include "lab/lab.hpp"
#include "model/cluster.hpp"

namespace yado::cli {

struct DevOptions {
  lab::LabOptions lab;
  Endpoint listen{"127.0.0.1", 8080};  ///< of this machine, for the gate
  std::filesystem::path criu;          ///< empty: none
  std::string log = "info";
};

class DevCluster {
 public:
  static Result<std::unique_ptr<DevCluster>> create(boost::asio::io_context& io, DevOptions options);
  ~DevCluster();

  /// Control serves, then everybody is started; returns when every host has joined. Every event is given to `seen`,
  /// from here until the end.
  boost::asio::awaitable<Status> start(std::function<void(const nlohmann::json&)> seen);

  /// What is there (GET /v1/lab).
  nlohmann::json describe() const;
  /// The moment from which the fault is in force. `instance`: for "process".
  Result<Instant> inject(const std::string& kind, const HostId& host, const std::string& instance);
  /// Ends every fault of the host (front: control's too); a dead one is switched on with its agent.
  boost::asio::awaitable<Status> heal(HostId host);
  boost::asio::awaitable<Status> heal_all();
  Result<lab::HostProcess> spawn(const HostId& host, const lab::SpawnOptions& options) { return lab_->spawn(host, options); }

  bool has_host(const HostId& host) const;
  std::string control_socket() const { return (directory_ / "control.sock").native(); }
  std::string lab_socket() const { return (directory_ / "lab.sock").native(); }
  const std::filesystem::path& directory() const { return directory_; }
  std::uint16_t gate_port() const { return gate_port_; }
  const DevOptions& options() const { return options_; }

 private:
  struct Role;
  DevCluster(boost::asio::io_context& io, DevOptions options);

  Status make_identities();
  Status start_role(Role& role);
  Status stop_role(Role& role);
  void ended(Role& role, int generation);
  Role& add_role(std::string name, HostId host, std::vector<std::string> arguments);
  boost::asio::awaitable<Status> start_control();
  boost::asio::awaitable<void> follow(std::function<void(const nlohmann::json&)> seen);

  boost::asio::io_context& io_;
  DevOptions options_;
  std::filesystem::path directory_;
  std::string program_;
  std::unique_ptr<lab::Lab> lab_;
  os::Fd gate_socket_;
  std::uint16_t gate_port_ = 0;
  std::map<std::string, std::unique_ptr<Role>> roles_;
  std::map<HostId, std::set<std::string>> faults_;
  std::set<std::string> joined_;
  Status trouble_;
  struct Wake;
  std::unique_ptr<Wake> wake_;
};

/// Where the lab's people find it (dev_api.cpp): serves `cluster` on its lab.sock until `stop` of the returned server.
class LabApi {
 public:
  static Result<LabApi> serve(boost::asio::io_context& io, DevCluster& cluster);
  LabApi(LabApi&&) noexcept;
  ~LabApi();

 private:
  struct Impl;
  explicit LabApi(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace yado::cli
