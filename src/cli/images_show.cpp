// yado images show: one image, with what it is a delta of and what it has on other hosts; of the cluster, or of a store of this machine.

#include <algorithm>

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/images.hpp"
#include "cli/table.hpp"
#include "image/describe.hpp"
#include "os/clock.hpp"

namespace yado::cli {
namespace {

using nlohmann::json;

std::string count_or_dash(const json& pages, const char* key) {
  return pages.contains(key) ? fmt::format("{}", pages[key].get<std::uint64_t>()) : "";
}

void add_rows(std::vector<std::vector<std::string>>& rows, const json& parts, const std::string& id,
              const std::string& host) {
  for (const json& part : parts) {
    const json pages = part.value("pages", json::object());
    std::string kind = part.value("type", "");
    if (pages.contains("error"))
      kind += ", damaged";
    else if (!pages.empty())
      kind += pages.contains("base_cut") ? ", delta" : ", whole";
    rows.push_back({host, id, part.value("name", ""), kind, format_bytes(part.value("bytes", 0ull)),
                    format_bytes(part.value("disk_bytes", 0ull)), count_or_dash(pages, "owned_pages"),
                    count_or_dash(pages, "records"), count_or_dash(pages, "zeros"),
                    pages.empty()                   ? ""
                    : pages.contains("working_set") ? "yes"
                                                    : "no"});
  }
}

void print(const json& all) {
  std::vector<std::string> chain;
  for (const json& one : all["chain"])
    chain.push_back(one.value("id", "") + (one.value("here", false) ? "" : " (not here)"));
  fmt::print("image     {}{}\n", all.value("id", ""),
             all.value("here", "") == "indices" ? " (only its indices are here)" : "");
  fmt::print("workload  {}\n", all.value("workload", ""));
  fmt::print("age       {}\n",
             format_age(std::max<std::int64_t>(0, os::wall_ms() - all.value("created_wall_ms", std::int64_t{0}))));
  fmt::print("chain     {}{}\n", fmt::join(chain, " <- "), all.value("merged", false) ? " (merged)" : "");
  if (all.contains("member_of")) fmt::print("member of {}\n", all.value("member_of", ""));
  if (all.contains("used_pages")) fmt::print("used      {} in the first seconds after it: fetched first, in that order\n", format_bytes(all["used_pages"].get<std::uint64_t>() * 4096));
  if (all.contains("verified"))
    fmt::print("verified  every checksum of {} in {} image(s)\n", format_bytes(all["verified"].value("bytes", 0ull)),
               all["verified"].value("images", 0));
  for (const json& copy : all.value("copies", json::array())) {
    const std::string state = copy.contains("error")      ? "DAMAGED: " + copy["error"].value("message", "")
                              : copy.contains("verified") ? fmt::format("every checksum of {} in {} image(s)", format_bytes(copy["verified"].value("bytes", 0ull)), copy["verified"].value("images", 0))
                                                          : "";
    fmt::print("copy      {} on {}{}{}\n", copy.value("id", ""), copy.value("host", ""), state.empty() ? "" : ": ", state);
  }
  fmt::print("\n");
  std::vector<std::vector<std::string>> rows{
      {"HOST", "IMAGE", "PART", "TYPE", "LENGTH", "ON DISK", "PAGES", "RECORDS", "ZEROS", "WORKING SET"}};
  add_rows(rows, all["parts"], all.value("id", ""), all.value("host", "here"));
  for (const json& member : all["members"]) {
    const std::string here = member.value("here", "");
    const std::string host = member.value("host", "") + (all.contains("copies") && here == "image" ? ""
                                                         : here == "image"   ? " (here)"
                                                         : here == "indices" ? " (indices)"
                                                                             : "");
    if (here == "no")
      rows.push_back({host, member.value("id", ""), "", "", "", "", "", "", "", ""});
    else
      add_rows(rows, member["parts"], member.value("id", ""), host);
  }
  fmt::print("{}", format_table(rows));
}

Result<json> look_into_store(const ImageOptions& options) {
  YADO_ASSIGN(const image::Store store, image::Store::look_into(options.store), "show");
  YADO_ASSIGN(const image::Held held, store.find(ImageId(options.id)), "show");
  YADO_ASSIGN(json all, api::parse_json(image::describe(store, held)), "show");
  if (!options.verify) return all;
  std::optional<Progress> progress;
  std::uint64_t before = 0;
  YADO_ASSIGN(const image::Verified verified, image::verify_with_all(store, held, [&](std::uint64_t done, std::uint64_t of) {
    if (!progress) progress.emplace("verifying", of);
    progress->add(done - std::exchange(before, done));
  }), "show");
  all["verified"] = json{{"images", verified.images}, {"bytes", verified.bytes}};
  return all;
}

}  // namespace

int show_image(const ImageOptions& options) {
  std::optional<Client> client;
  Result<json> all;
  if (options.store.empty()) {
    auto control = Client::control(options.control);
    if (!control) return complain(control.error()), Exit::no_control;
    client.emplace(std::move(*control));
    all = client->call("GET", fmt::format("/v1/images/{}{}", options.id, options.verify ? "?verify=1" : ""));
  } else {
    all = look_into_store(options);
  }
  if (!all) return client ? complain(*client, all.error()) : complain(all.error());
  if (options.json)
    fmt::print("{}\n", api::dump_pretty(*all));
  else
    print(*all);
  const auto damaged = [](const json& copy) { return copy.contains("error"); };
  const json copies = all->value("copies", json::array());
  return std::ranges::any_of(copies, damaged) ? Exit::failed : Exit::ok;
}

}  // namespace yado::cli
