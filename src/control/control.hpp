#pragma once
// Control: the shell around ControlCore. One io_context, one thread, no decisions of its own.
//
//   people ──unix socket──▶ ┌─────────┐ ──▶ store (SQLite): a Persist is durable before what follows it
//   agents ──mutual TLS──▶  │ Control │ ──▶ agents: calls, each under the limit the core named
//   gates  ──mutual TLS──▶  └─────────┘ ──▶ gates: the route table whenever it changed; events to whoever follows
//
// When the store cannot be written (disk full), nothing that depends on it is done: actions wait in order behind the
// write, which is repeated every second; questions are answered by that error; what runs goes on running, leases are
// renewed and gates keep their table. It goes on where it stopped as soon as a write succeeds.
//
// Killed at any moment it loses nothing: a new Control on the same state directory goes on from the store.

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include <boost/asio/io_context.hpp>

#include "base/error.hpp"
#include "control/core/control_core.hpp"
#include "state/store.hpp"

namespace yado::control {

struct ControlOptions {
  /// Made when missing (mode 0700): control.db, authority/ (the cluster's CA), identity/ (control's own).
  std::filesystem::path state;
  std::string socket;             ///< unix socket for people, mode 0600
  std::string address = "127.0.0.1";  ///< numeric; for agents and gates, mutual TLS
  std::uint16_t port = 0;         ///< 0: any free one
  Settings settings;
  std::size_t events_kept = 10'000;  ///< the oldest go first
};

class Control {
 public:
  /// Serves when it returns. Errors: `conflict` when another control uses the state directory, and whatever the store,
  /// the authority or a socket says.
  static Result<Control> start(boost::asio::io_context& io, const ControlOptions& options);
  /// The same with another store than the SQLite one in options.state.
  static Result<Control> start(boost::asio::io_context& io, const ControlOptions& options,
                               std::unique_ptr<state::Store> store);
  Control(Control&&) noexcept;
  Control& operator=(Control&&) = delete;
  /// stop().
  ~Control();

  /// Where agents and gates are listened for.
  std::uint16_t port() const;
  /// Closes everything; `io` runs out of work.
  void stop();

 private:
  explicit Control(std::shared_ptr<class Shell> shell);
  std::shared_ptr<class Shell> shell_;
};

/// Writes cert.pem, key.pem and ca.pem of a role ("agent:h1", "gate:g1") to `directory`, made by the authority in
/// control's state directory (itself made on first use). Control need not run.
Status issue(const std::filesystem::path& state, const std::string& common_name, const std::filesystem::path& directory);

}  // namespace yado::control
