#include "cli/virsh.hpp"

#include <algorithm>
#include <array>

#include <unistd.h>

#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/process.hpp"

extern char** environ;

namespace yado::cli {
namespace {

constexpr const char* program = "/usr/bin/virsh";
constexpr const char* no_such_domain = "failed to get domain";

/// virsh's words on one line, without its "error: ".
std::string words_of(std::string text) {
  constexpr std::string_view prefix = "error: ";
  for (std::size_t at; (at = text.find(prefix)) != std::string::npos;) text.erase(at, prefix.size());
  while (!text.empty() && text.back() == '\n') text.pop_back();
  std::ranges::replace(text, '\n', ' ');
  return text;
}

}  // namespace

Result<std::string> Virsh::run(std::vector<std::string> command) const {
  os::Spawn spawn{.arguments = {program, "--quiet"}};
  if (!uri_.empty()) spawn.arguments.insert(spawn.arguments.end(), {"--connect", uri_});
  spawn.arguments.push_back(command.front());
  spawn.arguments.insert(spawn.arguments.end(), {"--domain", domain_});
  spawn.arguments.insert(spawn.arguments.end(), command.begin() + 1, command.end());
  // Its own: where libvirt is may hang on it. In English: states are words.
  for (char** entry = environ; *entry; ++entry)
    if (const std::string_view variable = *entry; !variable.starts_with("LC_") && !variable.starts_with("LANG")) spawn.environment.emplace_back(variable);
  spawn.environment.emplace_back("LC_ALL=C");
  YADO_ASSIGN(os::Pipe output, os::make_pipe(), "virsh");
  YADO_ASSIGN(os::Pipe error, os::make_pipe(), "virsh");
  spawn.standard_output = output.write.get();
  spawn.standard_error = error.write.get();
  auto process = os::spawn(spawn);
  output.write.reset();
  error.write.reset();
  if (!process && process.error().code == Errc::not_found) return fail(Errc::unavailable, "libvirt is asked by {}, which is not here: install libvirt-clients", program);
  if (!process) return context(process.error(), "virsh");
  YADO_ASSIGN(std::string text, os::read_to_end(output.read), "virsh");
  YADO_ASSIGN(const std::string words, os::read_to_end(error.read), "virsh");
  YADO_ASSIGN(const auto ended, process->wait(std::nullopt), "virsh");
  if (ended->success()) return text;
  const std::string said = words_of(words);
  if (said.empty()) return fail(Errc::timed_out, "virsh {} {}: {}", command.front(), domain_, ended->text());  // of an event that did not come it says nothing
  return fail(said.starts_with(no_such_domain) ? Errc::not_found : Errc::application, "virsh {} {}: {}", command.front(), domain_, said);
}

/// The value behind "Persistent:".
Result<std::string> Virsh::info(std::string_view line) const {
  YADO_ASSIGN(const std::string text, run({"dominfo"}), "domain");
  const std::size_t at = text.find(fmt::format("{}:", line));
  if (at == std::string::npos) return fail(Errc::unsupported, "virsh dominfo {} does not say \"{}\"", domain_, line);
  const std::size_t begin = text.find_first_not_of(' ', at + line.size() + 1);
  return text.substr(begin, text.find('\n', begin) - begin);
}

Result<std::string> Virsh::xml() const { return run({"dumpxml", "--inactive"}); }

Result<bool> Virsh::active() const {
  const auto state = info("State");
  if (!state && state.error().code == Errc::not_found) return false;
  if (!state) return std::unexpected(state.error());
  return *state != "shut off" && *state != "crashed";
}

Result<bool> Virsh::has_saved_memory() const {
  YADO_ASSIGN(const std::string saved, info("Managed save"), "domain");
  return saved == "yes";
}

Status Virsh::shut_down(nanoseconds limit) const {
  const Instant deadline = os::now() + limit;
  for (nanoseconds pause = 2s;; pause *= 2) {
    // One that is still booting hears nothing, and none says that it has heard.
    const auto pressed = run({"shutdown"});
    const Instant again = std::min<Instant>(os::now() + pause, deadline);
    for (;;) {
      YADO_ASSIGN(const bool on, active(), "shut down");
      if (!on) return {};
      if (!pressed && pressed.error().code != Errc::not_found) return std::unexpected(pressed.error());
      if (os::now() >= again) break;
      // Until anything happens to it, or for a second: what happened before this looks is seen by active().
      if (const auto heard = run({"event", "--event", "lifecycle", "--timeout", "1"}); !heard && heard.error().code == Errc::application) return std::unexpected(heard.error());
    }
    if (os::now() >= deadline) return fail(Errc::timed_out, "the domain {} has not heard its power button within {:.0f} s, and runs", domain_, to_ms(limit) / 1000);
  }
}

Status Virsh::destroy() const {
  const auto done = run({"destroy"});
  YADO_ASSIGN(const bool on, active(), "destroy");
  if (!on) return {};
  if (!done) return std::unexpected(done.error());
  return fail(Errc::application, "the domain {} is active after virsh destroy", domain_);
}

Status Virsh::forget_autostart() const {
  const auto persistent = info("Persistent");
  if (!persistent && persistent.error().code == Errc::not_found) return {};
  if (!persistent) return std::unexpected(persistent.error());
  if (*persistent != "yes") return {};
  YADO_TRY(run({"autostart", "--disable"}), "autostart");
  return {};
}

}  // namespace yado::cli
