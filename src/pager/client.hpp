#pragma once
// One client of a pager's control socket: its calls (service.hpp), one after the other, and what it has under way.
//
//   client.cpp             lines and answers, and the calls that are done at once
//   client_figures.cpp     what `yado top` shows
//   client_checkpoint.hpp  from `save` to `keep`
//   client_move.hpp        from `leave` to `left`

#include <nlohmann/json_fwd.hpp>

#include "os/fd.hpp"
#include "pager/client_checkpoint.hpp"
#include "pager/client_move.hpp"
#include "pager/served_memory.hpp"

namespace yado::pager {

/// As a call is answered that came to nothing.
nlohmann::json error_of(const Error& error);

/// A thread of its own.
class Client {
 public:
  /// `memory` outlives it.
  Client(os::Fd socket, ServedMemory& memory);
  /// Until it hangs up.
  void serve();

 private:
  Result<nlohmann::json> answer_to(const std::string& line);
  Result<nlohmann::json> answer(const nlohmann::json& call);
  Result<nlohmann::json> servers(const nlohmann::json& call);
  Result<nlohmann::json> own(const nlohmann::json& call);
  Result<nlohmann::json> used(const nlohmann::json& call);
  nlohmann::json figures() const;
  nlohmann::json saving_json() const;

  os::Fd socket_;
  const ServiceConfig& config_;
  Pager& pager_;
  Network& network_;
  std::shared_ptr<SaveWatch> watch_;
  KeptCut& kept_;
  CheckpointCalls checkpoint_;
  MoveCalls move_;
};

}  // namespace yado::pager
