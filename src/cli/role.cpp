#include "cli/role.hpp"

#include <csignal>

#include <charconv>

#include <CLI/CLI.hpp>
#include <boost/asio/signal_set.hpp>

namespace yado::cli {

Result<Endpoint> parse_endpoint(const std::string& text, std::uint16_t default_port) {
  Endpoint endpoint{text, default_port};
  const auto colon = text.rfind(':');
  // More than one colon without brackets is an IPv6 address without a port.
  const bool has_port = colon != text.npos && (text.find(':') == colon || (colon > 0 && text[colon - 1] == ']'));
  if (has_port) {
    endpoint.address = text.substr(0, colon);
    const char *begin = text.data() + colon + 1, *end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(begin, end, endpoint.port);
    if (error != std::errc() || stop != end || begin == end)
      return fail(Errc::invalid_argument, "\"{}\": the port is not a number from 0 to 65535", text);
  } else if (default_port == 0) {
    return fail(Errc::invalid_argument, "\"{}\" is not ADDRESS:PORT", text);
  }
  if (endpoint.address.starts_with('[') && endpoint.address.ends_with(']'))
    endpoint.address = endpoint.address.substr(1, endpoint.address.size() - 2);
  if (endpoint.address.empty()) return fail(Errc::invalid_argument, "\"{}\" has no address", text);
  return endpoint;
}

void add_log_level(CLI::App& command, std::string& level) {
  command.add_option("--log", level, "What is logged to stderr")
      ->check(CLI::IsMember({"debug", "info", "warn", "error", "off"}))
      ->capture_default_str();
}

void start_log(const std::string& role, const std::string& level) {
  using log::Level;
  log::start(role, level == "debug"   ? Level::debug
                   : level == "warn"  ? Level::warn
                   : level == "error" ? Level::error
                   : level == "off"   ? Level::off
                                      : Level::info);
}

void serve_until_signal(boost::asio::io_context& io, const std::function<void()>& stop) {
  boost::asio::signal_set signals(io, SIGINT, SIGTERM);
  signals.async_wait([&](const boost::system::error_code& error, int) {
    if (!error) stop();
  });
  io.run();
}

}  // namespace yado::cli
