#include "cli/console.hpp"

#include <csignal>
#include <poll.h>
#include <termios.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "base/base64.hpp"
#include "cli/client.hpp"
#include "os/file.hpp"
#include "os/process.hpp"

namespace yado::cli {
namespace {

using nlohmann::json;

constexpr char leave_key = 0x1d;              // Ctrl-]
constexpr milliseconds longest_wait{5'000};       // of one question; the console's longest
constexpr std::size_t piece_bytes = 16 << 10;

/// Every key goes to the guest, and nothing is shown but what it says.
class RawTerminal {
 public:
  RawTerminal() : raw_(::isatty(STDIN_FILENO) == 1 && ::tcgetattr(STDIN_FILENO, &before_) == 0) {
    if (!raw_) return;
    termios raw = before_;
    ::cfmakeraw(&raw);
    ::tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
  }
  ~RawTerminal() {
    if (raw_) ::tcsetattr(STDIN_FILENO, TCSADRAIN, &before_);
  }
  RawTerminal(const RawTerminal&) = delete;
  bool raw() const { return raw_; }

 private:
  termios before_{};
  bool raw_;
};

std::string target_of(const ConsoleOptions& options) { return fmt::format("/v1/workloads/{}/console", options.workload); }

Result<json> ask(Client& client, const ConsoleOptions& options, const json& question) {
  return client.call("POST", target_of(options), api::dump(question));
}

Status print_output(const json& answer) {
  YADO_ASSIGN(const std::string text, from_base64(answer.value("output", "")), "console");
  if (const auto lost = answer.value("lost", std::uint64_t{0})) fmt::print(stderr, "\r\nyado: {} bytes were not kept\r\n", lost);
  std::fwrite(text.data(), 1, text.size(), stdout);
  return std::fflush(stdout) == 0 ? Status() : fail_errno("standard output");
}

/// Shows what the guest says after `seen`. `typed_all`: readable once nothing more will be typed. Returns the exit status.
int show(const ConsoleOptions& options, json seen, int typed_all) {
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  for (;;) {
    const bool last = os::readable_within(typed_all, 0ns).value_or(true);
    auto answer = ask(*client, options, {{"from", seen["next"]}, {"wait_ms", last ? options.linger / 1ms : longest_wait / 1ms}});
    if (!answer) return complain(*client, answer.error());
    if (answer->value("instance", "") != seen.value("instance", "")) {
      fmt::print(stderr, "\r\nyado: the VM is {} on {} now\r\n", answer->value("instance", ""), answer->value("host", ""));
      answer = ask(*client, options, {{"from", 0}});
      if (!answer) return complain(*client, answer.error());
    }
    if (const Status printed = print_output(*answer); !printed) return complain(printed.error());
    if (last && (*answer)["next"] == seen["next"]) return Exit::ok;
    seen = std::move(*answer);
  }
}

/// All of it, for as long as the guest takes some.
Status type(Client& client, const ConsoleOptions& options, std::string_view text) {
  while (!text.empty()) {
    const json input{{"input", to_base64(text)}, {"wait_ms", longest_wait / 1ms}};
    YADO_ASSIGN(const json answer, ask(client, options, input), "console");
    const auto taken = std::min<std::size_t>(answer.value("taken", std::size_t{0}), text.size());
    if (taken == 0) return fail(Errc::unavailable, "the guest does not read its console: {} bytes were not taken", text.size());
    text.remove_prefix(taken);
  }
  return {};
}

}  // namespace

int attach_console(const ConsoleOptions& options) {
  auto client = Client::control(options.common.control);
  if (!client) return complain(client.error()), Exit::no_control;
  auto typed_all = os::make_pipe();
  if (!typed_all) return complain(typed_all.error());
  // Before anything is typed, so that all of what comes of it is shown.
  auto begun = ask(*client, options, json::object());
  if (!begun) return complain(*client, begun.error());
  if (::isatty(STDIN_FILENO) == 1) fmt::print(stderr, "yado: at the console of {}; Ctrl-] leaves it\n", options.workload);
  const RawTerminal terminal;
  if (const Status printed = print_output(*begun); !printed) return complain(printed.error());
  // A process of its own: what it waits for need not be interrupted when this one is done.
  auto shown = os::fork_child([&] {
    typed_all->write.reset();
    return show(options, std::move(*begun), typed_all->read.get());
  }, SIGKILL);
  if (!shown) return complain(shown.error());
  typed_all->read.reset();

  for (char text[piece_bytes]; typed_all->write.valid();) {
    pollfd wanted[] = {{STDIN_FILENO, POLLIN, 0}, {shown->pidfd().fd(), POLLIN, 0}};
    if (::poll(wanted, 2, -1) < 0 && errno != EINTR) break;
    if (wanted[1].revents != 0) break;
    if (wanted[0].revents == 0) continue;
    const ssize_t n = ::read(STDIN_FILENO, text, sizeof text);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      typed_all->write.reset();
      break;
    }
    std::string_view typed(text, static_cast<std::size_t>(n));
    const std::size_t leave = terminal.raw() ? typed.find(leave_key) : std::string_view::npos;
    if (const Status done = type(*client, options, typed.substr(0, leave)); !done) return complain(*client, done.error());
    if (leave != std::string_view::npos) return Exit::ok;
  }
  const auto ended = shown->wait(std::nullopt);
  return ended && *ended ? (*ended)->code : int(Exit::failed);
}

}  // namespace yado::cli
