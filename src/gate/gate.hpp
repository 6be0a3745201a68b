#pragma once
// The front door: an HTTP/1.1 reverse proxy that answers every request from the workload's owner, wherever that is,
// or says why not and whether the request may have taken effect (docs/api.md, "Gate").
//
//   clients ──▶ Session ──▶ Scheduler (core/: who, when, again?) ──▶ Session ──▶ instance
//                                │ asks                ▲ tables, answers
//                                ▼                     │
//                            ControlLink ───────── control, agents
//
// One io_context, one thread. Everything that happens is told to the Scheduler; everything that is done is one of its
// actions, carried out by the Hub.

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "gate/limits.hpp"
#include "model/cluster.hpp"
#include "os/fd.hpp"
#include "wire/tls.hpp"

namespace yado::gate {

class Gate {
 public:
  struct Config {
    std::vector<Endpoint> listen;   ///< numeric addresses; port 0: any free one
    std::vector<os::Fd> inherited;  ///< sockets that are bound and listen already (socket activation)
    Endpoint control;
    wire::Identity identity;                ///< names this gate "gate:…"
    std::string control_peer = "control:";  ///< the name in control's certificate; a prefix when it ends in ':'
    std::uint8_t granter = 1;               ///< this gate's number in the epochs it may have to give out (1..255)
    std::filesystem::path table_file;       ///< the last route table, for a start without control; empty: none is kept
    std::string admin_socket;               ///< a unix socket (mode 0600) that answers GET /v1/gate; empty: none
    Limits limits;
  };

  Gate(boost::asio::io_context& io, Config config);
  /// stop().
  ~Gate();
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;

  /// Takes up the table kept last, listens, and begins to follow control, which need not be there yet. From now on the
  /// gate works while `io` runs. Errors: an address in use or not ours, an unusable identity, granter 0.
  Status run();
  /// Breaks off what is under way; `io` has no work of the gate any more soon after.
  void stop();

  /// Where it listens, in the order of Config::listen and then of Config::inherited.
  std::vector<std::uint16_t> ports() const;
  Counters counters() const;

 private:
  struct Impl;
  std::shared_ptr<Impl> impl_;
};

}  // namespace yado::gate
