#include "pager/changed_pages.hpp"

#include <cstring>
#include <nlohmann/json.hpp>

#include "os/file.hpp"

namespace yado::pager {
namespace fs = std::filesystem;
using nlohmann::json;
namespace {

fs::path file_in(const fs::path& part) { return part / "changed-pages"; }

}  // namespace

Status write_changed_pages(const fs::path& part, const ChangedPages& changed) {
  const auto words = std::as_bytes(changed.pages.words());
  std::vector<std::uint8_t> bits(words.size());
  std::memcpy(bits.data(), words.data(), words.size());
  std::string text;
  json::to_cbor(json{{"since", changed.since.hex()}, {"pages", changed.pages.size()}, {"bits", json::binary(std::move(bits))}}, text);
  return os::replace_text(file_in(part), text);
}

Result<ChangedPages> read_changed_pages(const fs::path& part, std::uint64_t guest_pages) {
  YADO_ASSIGN(const std::string text, os::read_text(file_in(part)), "changed pages");
  try {
    const json all = json::from_cbor(text);
    ChangedPages changed{image::CutId::from_hex(all.at("since").get<std::string>()), PageBits(guest_pages)};
    const auto& bits = all.at("bits").get_binary();
    if (changed.since.none() || all.at("pages") != guest_pages || bits.size() != changed.pages.words().size_bytes())
      return fail(Errc::corrupt, "{} is of another memory", file_in(part).native());
    std::memcpy(changed.pages.words().data(), bits.data(), bits.size());
    return changed;
  } catch (const json::exception& error) {
    return fail(Errc::corrupt, "{}: {}", file_in(part).native(), error.what());
  }
}

}  // namespace yado::pager
