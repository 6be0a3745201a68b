#pragma once
// `yado agent`: one per host. The shell around AgentCore (agent/core): it carries out what the core decides, and tells
// it what came of it.
//
//            control ◀── heart-beats, exits, renewals ──┐   ┌── calls ── control, gates (mutual TLS)
//                                                      AgentCore
//   supervisors ◀── start, restore, freeze, promote ───┘   └── Workers: fsync, hashing, networks, unpacking
//
// Everything but the Workers' jobs runs on the io_context's one thread. The agent may be killed at any moment: what
// runs goes on under its supervisors, and the next agent process on the same state directory adopts it.
//
//   agent.cpp         start-up, the pump of actions, adoption        instances.cpp    one instance: place, supervisor, end
//                                                                    launch.cpp       its start, restore or thaw
//   api.cpp           the HTTP API                                   side_calls.cpp   build, pull, drop, inspect
//   heartbeat.cpp     reports to control                             images.cpp       which images may be used
//   merger.cpp        images need their bases no more                image_pace.hpp   what this may take of the host

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "base/time.hpp"
#include "model/cluster.hpp"

namespace yado::agent {

struct Config {
  HostId host;
  std::string address;     ///< IPv4 of this host, not loopback: the API and the published ports are reached there
  std::uint16_t port = 0;  ///< of the API; 0: the one of the last time, or any free one
  Endpoint control;
  std::filesystem::path identity;         ///< directory with cert.pem, key.pem, ca.pem of "agent:<host>"
  std::filesystem::path state_directory;  ///< docs: state_directory.hpp
  std::optional<std::uint64_t> memory_bytes;  ///< what its memory server may keep for other hosts; 0: none; nothing: half of the machine's
  std::uint64_t background_bytes_per_second = 0;  ///< for copying and merging images that nobody waits for; 0: no limit
  std::string cgroup;                     ///< parent of the instances' groups, relative: "yado/h1"
  std::filesystem::path criu;             ///< empty: none
  /// How a supervisor is started: this program and arguments, then the instance's directory. It inherits the
  /// instance's network namespace as descriptor 3 and a pipe as descriptor 4 (supervisor::run's `network` and `ready`).
  std::vector<std::string> supervisor;
  /// Who may call /v1/calls: prefixes of the peers' common names. A gate may only raise, and only what is `shared`.
  std::vector<std::string> callers{"control:", "gate:"};
};

class Agent {
 public:
  Agent(boost::asio::io_context& io, Config config);
  /// stop(). Instances go on.
  ~Agent();
  Agent(Agent&&) noexcept;

  /// Adopts what runs, listens (then `listening` is told the API's port), reports; returns after stop(), or at once
  /// with the reason why it cannot start: `permission` without root, `conflict` when another agent has the state
  /// directory, `corrupt` for a fence that cannot be read.
  boost::asio::awaitable<Status> run(std::function<void(std::uint16_t)> listening);
  void stop();

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace yado::agent
