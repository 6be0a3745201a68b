#pragma once
// Telling control how the host is: at the pace control asks for, and at once after a change.

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <functional>
#include <memory>
#include <optional>

#include "api/calls.hpp"
#include "wire/client.hpp"

namespace yado::agent {

struct HeartbeatAnswer {
  std::vector<StopCall> retire;
  std::vector<DropImageCall> drop;
  std::optional<std::vector<InstanceId>> expected;  ///< none: it cannot say
  milliseconds pace{0};
  Instant asked{};  ///< what this host did later control may not have known
};
Result<HeartbeatAnswer> heartbeat_answer_from_json(std::string_view text);

class Heartbeat {
 public:
  /// `client` outlives this. `report` makes the whole HostReport as JSON text; `answered` gets what control says.
  Heartbeat(boost::asio::io_context& io, wire::Client& client, HostId host, std::function<std::string()> report,
            std::function<void(const HeartbeatAnswer&)> answered);

  /// Until stop().
  boost::asio::awaitable<void> run();
  /// Something changed: control is told at once, unless it is known not to answer.
  void hurry();
  void stop();

 private:
  struct State;
  std::shared_ptr<State> state_;
};

}  // namespace yado::agent
