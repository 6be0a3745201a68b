#pragma once
// Asking a role over its unix socket, one call at a time.

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include <nlohmann/json_fwd.hpp>

#include "base/error.hpp"
#include "base/time.hpp"

namespace yado::cli {

/// The socket `file` ("control.sock", "lab.sock") to use: `given`, else the environment variable, else
/// /run/yado/<file>, else that of the only lab that runs. Error `unavailable` when there is none or more than one.
Result<std::string> find_socket(const std::string& given, const char* variable, const std::string& file);

class Client {
 public:
  /// Control's, found by find_socket.
  static Result<Client> control(const std::string& given);
  explicit Client(std::string socket);
  Client(Client&&) noexcept;
  Client& operator=(Client&&) noexcept;
  ~Client();

  const std::string& socket() const { return socket_; }
  /// Waits for as long as it takes: control gives every question up by itself. The answer's JSON, or its error.
  Result<nlohmann::json> call(const std::string& method, const std::string& target, const std::string& body = "");
  /// Calls `event` for every line of GET `target` until it returns false, or the other side ends.
  Status follow(const std::string& target, std::function<bool(const nlohmann::json&)> event);
  /// The same for any request; `quiet`: how long the other side may say nothing (none: for ever).
  Status follow(const std::string& method, const std::string& target, const std::string& body,
                std::optional<nanoseconds> quiet, std::function<bool(const nlohmann::json&)> event);
  /// The same while call() is under way; ends with the next call's end.
  void watch(const std::string& target, std::function<void(const nlohmann::json&)> event);
  /// Asks GET `target` again and again while call() or follow() is under way, first after `pause`, then after what `answered` returns; until that is nothing.
  void ask_meanwhile(const std::string& target, nanoseconds pause, std::function<std::optional<nanoseconds>(const Result<nlohmann::json>&)> answered);
  /// True when the last error was that nobody answers.
  bool unreachable() const { return unreachable_; }

 private:
  struct Impl;
  std::string socket_;
  bool unreachable_ = false;
  std::unique_ptr<Impl> impl_;
};

/// What a command does with an error of its client.
int complain(const Client& client, const Error& error);

/// "12:03:04.123  site       grant      h1  e3  evidence=silent".
std::string describe_event(const nlohmann::json& event);
/// The number of the newest event.
std::uint64_t newest_event(Client& client);

}  // namespace yado::cli
