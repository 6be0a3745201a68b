// One image from near: control knows who has it, their agents look.

#include <algorithm>

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "control/shell.hpp"

namespace yado::control {
namespace asio = boost::asio;
using nlohmann::json;

namespace {

constexpr nanoseconds look_limit = 10s;
constexpr nanoseconds verify_limit = 30min;  // every byte is read

/// An image, or a share of it, on a host that answers.
struct Copy {
  ImageId id;
  HostId host;
  Endpoint agent;
};

/// Whole images first, then the shares of their memory that other hosts saved.
std::vector<Copy> copies_of(const ImageId& id, const std::vector<ControlCore::HostSummary>& hosts) {
  std::vector<Copy> whole, shares;
  for (const auto& host : hosts) {
    if (!host.alive) continue;
    for (const ImageReport& image : host.report.images) {
      if (image.id == id) whole.push_back({image.id, host.report.host, host.report.agent});
      if (image.member_of == id) shares.push_back({image.id, host.report.host, host.report.agent});
    }
  }
  whole.insert(whole.end(), shares.begin(), shares.end());
  return whole;
}

wire::Request get(std::string target) {
  wire::Request request;
  request.method = "GET";
  request.target = std::move(target);
  return request;
}

}  // namespace

asio::awaitable<Result<json>> Shell::look_at_image(ImageId id, const Target& target) {
  const auto views = core_.workloads();
  if (const WorkloadView* view = find(views, WorkloadId(id.str())); view && view->record.image) id = view->record.image->id;
  const std::vector<Copy> copies = copies_of(id, core_.hosts());
  if (copies.empty() || copies.front().id != id) co_return fail(Errc::not_found, "no host that answers has an image \"{}\"", id);
  if (target.path.size() == 3) {
    const auto from = target.number("from", 0);
    if (!from) co_return std::unexpected(from.error());
    Result<json> piece = fail(Errc::unavailable, "no host has all of the memory of {}", id);
    for (const Copy& copy : copies) {
      if (copy.id != id) break;
      wire::Request request = get(fmt::format("/v1/images/{}/memory?from={}", id, *from));
      piece = co_await agents_.ask(copy.host, copy.agent, std::move(request), look_limit);
      if (piece) break;
    }
    co_return piece;
  }

  const bool verify = target.flag("verify");
  json all, told = json::array();
  std::map<std::string, json> shares;  // by name: their parts
  for (const Copy& copy : copies) {
    wire::Request request = get(fmt::format("/v1/images/{}{}", copy.id, verify ? "?verify=1" : ""));
    const auto seen = co_await agents_.ask(copy.host, copy.agent, std::move(request), verify ? verify_limit : look_limit);
    json line{{"id", copy.id.str()}, {"host", copy.host.str()}};
    if (!seen) line["error"] = seen.error();
    for (const char* key : {"verified", "error"})
      if (seen && seen->contains(key)) line[key] = (*seen)[key];
    told.push_back(std::move(line));
    if (!seen) continue;
    if (copy.id == id && all.is_null()) all = *seen;
    if (copy.id != id) shares[copy.id.str()] = seen->value("parts", json::array());
  }
  if (all.is_null()) co_return fail(Errc::unavailable, "nobody who has image {} answers: {}", id, told.dump());
  for (json& member : all["members"]) {
    const auto share = shares.find(member.value("id", ""));
    if (share == shares.end() || member.value("here", "") == "image") continue;
    member["here"] = "image";
    member["parts"] = share->second;
  }
  all.erase("verified");
  all.erase("error");
  all["copies"] = std::move(told);
  co_return all;
}

}  // namespace yado::control
