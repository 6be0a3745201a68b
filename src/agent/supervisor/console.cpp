// The instance's console: any number of people look on and type, each call for a bounded time.
#include <algorithm>

#include "agent/supervisor/impl.hpp"
#include "api/fields.hpp"
#include "base/base64.hpp"
#include "os/clock.hpp"

namespace yado::supervisor {

constexpr milliseconds longest_wait{5'000};
constexpr std::size_t most_waiting = 64;

Result<std::optional<json>> Supervisor::console(const json& message, Asked asked) {
  YADO_TRY(need_instance(), "console");
  YADO_TRY(instance_->type({}), "console");
  AtConsole one{.asked = asked};
  std::optional<std::string> input;
  milliseconds wait{0};
  Status status;
  api::Fields(message, "", status).optional("from", one.from).optional("input", input).optional("wait_ms", wait);
  YADO_TRY(status, "console");
  if (input) {
    one.types = true;
    YADO_ASSIGN(one.input, from_base64(*input), "console: input");
  }
  one.until = os::now() + std::clamp(wait, milliseconds(0), longest_wait);
  if (auto done = serve_console(one)) {
    YADO_ASSIGN(json answered, std::move(*done), "console");
    return answered;
  }
  if (at_console_.size() == most_waiting) return fail(Errc::unavailable, "console: {} others wait at it", most_waiting);
  at_console_.push_back(std::move(one));
  return std::optional<json>{};
}

std::optional<Result<json>> Supervisor::serve_console(AtConsole& one) {
  if (!instance_) return fail(Errc::application, "{} has ended", config_.instance);
  const bool over = os::now() >= one.until;
  if (one.types) {
    const auto taken = instance_->type(one.input);
    if (!taken) return std::unexpected(taken.error());
    one.input.erase(0, *taken);
    one.taken += *taken;
    if (!one.input.empty() && !over) return std::nullopt;
    return json{{"taken", one.taken}};
  }
  const ConsoleTail::Piece piece = console_.since(one.from);
  if (piece.text.empty() && !over) return std::nullopt;
  return json{{"output", to_base64(piece.text)}, {"next", piece.next}, {"lost", piece.lost}};
}

void Supervisor::look_at_console() {
  for (auto one = at_console_.begin(); one != at_console_.end();) {
    if (const auto done = serve_console(*one)) {
      answer(one->asked, *done);
      one = at_console_.erase(one);
    } else {
      ++one;
    }
  }
}

}  // namespace yado::supervisor
