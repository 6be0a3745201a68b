// What control and other agents ask of an image that this host has (docs/api.md, "Agent").

#include <charconv>

#include <nlohmann/json.hpp>

#include "agent/http.hpp"
#include "agent/impl.hpp"
#include "base/base64.hpp"
#include "image/chain.hpp"
#include "image/describe.hpp"
#include "image/flat_memory.hpp"

namespace yado::agent {

namespace asio = boost::asio;
using nlohmann::json;

namespace {

constexpr std::size_t piece_pages = 1024;

Result<json> describe(const image::Store& store, const ImageId& id, bool verify) {
  YADO_ASSIGN(const image::Held held, store.find(id), "image");
  YADO_ASSIGN(json all, api::parse_json(image::describe(store, held)), "image");
  if (!verify) return all;
  if (const auto verified = image::verify_with_all(store, held)) all["verified"] = json{{"images", verified->images}, {"bytes", verified->bytes}};
  else all["error"] = verified.error();
  return all;
}

Result<json> memory_from(const image::Store& store, const ImageId& id, std::uint64_t from) {
  YADO_ASSIGN(const image::PageChain chain, image::load_chain(store, id), "image");
  YADO_ASSIGN(const image::FlatPiece piece, image::flat_piece(chain, image::PageNumber{from}, piece_pages), "image");
  json pages = json::array();
  for (const image::PageNumber page : piece.pages) pages.push_back(value_of(page));
  return json{{"guest_pages", chain.guest_pages()}, {"cut", chain.cut().hex()}, {"next", value_of(piece.next)}, {"pages", std::move(pages)}, {"contents", to_base64(piece.contents)}};
}

}  // namespace

asio::awaitable<wire::Response> Agent::Impl::answer_image(const wire::Request& request, ImageId id, bool of_memory) {
  if (!request.peer.starts_with("control:")) co_return refusal(Error{Errc::permission, fmt::format("{} may not look into images", request.peer)});
  const bool verify = request.target.ends_with("?verify=1");
  std::uint64_t from = 0;
  if (const std::size_t at = request.target.find("?from="); at != std::string::npos)
    std::from_chars(request.target.data() + at + 6, request.target.data() + request.target.size(), from);
  const image::Store& store = images->store();
  std::function<Result<json>()> look = [&store, id, verify, from, of_memory] { return of_memory ? memory_from(store, id, from) : describe(store, id, verify); };
  std::shared_ptr<void> use;
  if (const auto known = images->all().find(id); (verify || of_memory) && known != images->all().end()) {  // all of its chain is read
    const WorkloadId workload = known->second.workload;
    use = images->in_use(workload);
    co_await images->give_way(workload);
  }
  auto said = co_await workers.run(std::move(look));
  if (!said) co_return refusal(said.error());
  json answered = std::move(*said);
  answered["host"] = config.host.str();
  co_return reply(200, answered);
}

/// As secret as the image.
asio::awaitable<wire::Response> Agent::Impl::answer_use(const wire::Request& request, ImageId id) {
  if (!request.peer.starts_with("agent:")) co_return refusal(Error{Errc::permission, fmt::format("{} may not look into images", request.peer)});
  auto bytes = co_await sides->use_orders().get(std::move(id));
  if (!bytes) co_return refusal(bytes.error());
  co_return wire::Response{.status = 200, .headers = {{"content-type", "application/octet-stream"}}, .body = std::move(*bytes)};
}

}  // namespace yado::agent
