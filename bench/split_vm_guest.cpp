#include "split_vm_guest.hpp"

#include <nlohmann/json.hpp>

#include "base/units.hpp"
#include "os/clock.hpp"

namespace yado::bench {
namespace {

using json = nlohmann::json;

constexpr auto guest_limit = 60s;                     // keeps a broken run from hanging
// What the guest keeps for its kernel, and free: page tables, page descriptors (64 bytes a page) and free watermarks grow with the memory.
constexpr std::uint64_t kernel_bytes(std::uint64_t memory_bytes) { return 128_MiB + (memory_bytes - std::min(memory_bytes, 256_MiB)) / 16; }
constexpr double us_per_ms = 1000;

Result<json> parsed(const std::string& text) {
  json value = json::parse(text, nullptr, false);
  if (!value.is_object()) return fail(Errc::corrupt, "guest: \"{}\" is no answer", text);
  return value;
}

}  // namespace

vm::VmSpec writer_spec(const std::filesystem::path& directory, std::uint64_t memory_bytes) {
  vm::VmSpec spec;
  spec.name = "writer";
  spec.kernel = directory / "kernel";
  spec.initramfs = directory / "initramfs";
  // no_timer_check: on busy cores a TCG guest's kernel finds its emulated timer too slow, and panics (seen once, of the guest `database`).
  spec.kernel_command_line = fmt::format("console=ttyS0 quiet no_timer_check writer.mib={}", (memory_bytes - kernel_bytes(memory_bytes)) >> 20);
  spec.memory_bytes = memory_bytes;
  return spec;
}

Result<std::string> WriterGuest::answer(const std::string& key) {
  std::string said;
  const auto line_or_error = console_.wait_for(fmt::format("{{\"{}\": ", key), guest_limit, [&](std::string_view text) { said += text; });
  if (!line_or_error) return fail(line_or_error.error().code, "guest: {}. It said:\n{}", line_or_error.error().message, said.substr(0, 6000));
  const std::string& line = *line_or_error;
  YADO_ASSIGN(const json value, parsed(line.substr(line.find('{'))), "guest");
  return value.at(key).dump();
}

Status WriterGuest::wait_up() {
  YADO_TRY(answer("up"), "boot");
  return {};
}

Status WriterGuest::fill() {
  YADO_TRY(console_.send("fill\n"), "fill");
  YADO_TRY(answer("filled"), "fill");
  return {};
}

Status WriterGuest::rewrite(unsigned share_percent) {
  YADO_TRY(console_.send(share_percent == 0 ? "stop\n" : fmt::format("start {}\n", share_percent)), "rewrite");
  YADO_ASSIGN(const std::string begun, answer(share_percent == 0 ? "stopped" : "started"), "rewrite");
  if (share_percent == 0) return {};
  YADO_ASSIGN(const json started, parsed(begun), "rewrite");
  const auto count = [this]() -> Result<std::uint64_t> {
    YADO_ASSIGN(const std::string text, answer("second"), "rewrite");
    YADO_ASSIGN(const json second, parsed(text), "rewrite");
    return second.value("writes", std::uint64_t{0});
  };
  YADO_ASSIGN(const std::uint64_t first, count(), "rewrite");
  for (std::uint64_t now = first; now < first + started.value("pages", std::uint64_t{0});) {
    YADO_ASSIGN(now, count(), "rewrite");
  }
  return {};
}

Result<double> WriterGuest::rate() {
  YADO_ASSIGN(const std::string text, answer("second"), "rate");
  YADO_ASSIGN(const json second, parsed(text), "rate");
  return second.value("mib_per_s", 0.0);
}

Result<Standstill> WriterGuest::standstill() {
  YADO_TRY(console_.send("gaps\n"), "standstill");
  YADO_ASSIGN(const std::string text, answer("gaps"), "standstill");
  YADO_ASSIGN(const json gaps, parsed(text), "standstill");
  // A look at the CMOS clock can be held up as well, this one and the one before it (seen on busy cores: -6 ms beside a gap of 11 ms, -23 beside 21).
  if (gaps.value("away_us", -1.0) < -us_per_ms - 2 * gaps.value("longest_us", 0.0)) return fail(Errc::corrupt, "standstill: the guest's clocks contradict each other: {}", text);
  return Standstill{.longest_ms = gaps.value("longest_us", 0.0) / us_per_ms, .p99_ms = gaps.value("p99_us", 0.0) / us_per_ms,
                    .away_ms = std::max(0.0, gaps.value("away_us", 0.0) / us_per_ms)};
}

Status WriterGuest::ping(const std::string& word) { return console_.send(fmt::format("ping {}\n", word)); }

Result<Instant> WriterGuest::wait_pong(const std::string& word) {
  YADO_ASSIGN(const std::string text, answer("pong"), "ping");
  if (text != fmt::format("\"{}\"", word)) return fail(Errc::corrupt, "ping: {} answered by {}", word, text);
  return os::now();
}

Status WriterGuest::verify() {
  YADO_TRY(console_.send("verify\n"), "verify");
  YADO_ASSIGN(const std::string text, answer("verified"), "verify");
  YADO_ASSIGN(const json verdict, parsed(text), "verify");
  if (verdict.value("bad_words", 1u) != 0 || verdict.value("stale_pages", 1u) != 0)
    return fail(Errc::corrupt, "verify: the guest's memory is WRONG: {}", text);
  return {};
}

}  // namespace yado::bench
