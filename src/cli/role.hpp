#pragma once
// What the daemons share: how they log, where they listen, and how they end.

#include <string>

#include <boost/asio/io_context.hpp>

#include "base/error.hpp"
#include "base/log.hpp"
#include "model/cluster.hpp"

namespace CLI {
class App;
}

namespace yado::cli {

/// "10.77.0.2:7400", "[::1]:7400"; the port may be left out when `default_port` is not 0.
Result<Endpoint> parse_endpoint(const std::string& text, std::uint16_t default_port);

void add_log_level(CLI::App& command, std::string& level);
void start_log(const std::string& role, const std::string& level);

/// Runs `io` until SIGINT or SIGTERM, then calls `stop` and lets `io` finish.
void serve_until_signal(boost::asio::io_context& io, const std::function<void()>& stop);

inline constexpr std::uint16_t control_port = 7400;

}  // namespace yado::cli
