#include "agent/use_orders.hpp"

#include <boost/asio/steady_timer.hpp>
#include <nlohmann/json.hpp>

#include "base/log.hpp"
#include "image/working_set.hpp"
#include "os/file.hpp"
#include "pager/use_order.hpp"

namespace yado::agent {
namespace asio = boost::asio;
using nlohmann::json;

namespace {

/// At most 8 MiB, over a link of 1 Mbit/s 70 s, and the first seconds of the image.
constexpr nanoseconds answer_limit = seconds(100) + pager::use_window;

}  // namespace

void UseOrders::expect(ImageId image, InstanceId of) {
  expected_.insert_or_assign(image, Promise<bool>(around_.io.get_executor()));
  around_.spawn(record(std::move(image), std::move(of)));
}

asio::awaitable<void> UseOrders::record(ImageId image, InstanceId of) {
  asio::steady_timer over(around_.io, std::chrono::duration_cast<asio::steady_timer::duration>(pager::use_window));
  boost::system::error_code ended;
  co_await over.async_wait(asio::redirect_error(asio::use_awaitable, ended));
  Status kept = fail(Errc::canceled, "the agent ends");
  if (!ended) {
    const auto manifest = around_.images.all().find(image);
    const auto link = around_.instances.link(of);
    kept = fail(Errc::not_found, "the image, or what it was taken of, is gone");
    if (manifest != around_.images.all().end() && link) {
      json fields{{"cut", manifest->second.properties.at("cut")}, {"into", around_.images.store().use_file(image).native()}};
      const auto answer = co_await link->call("used", std::move(fields));
      kept = answer ? Status() : Status(std::unexpected(answer.error()));
      if (!around_.images.all().contains(image)) around_.images.store().forget_use(image);  // removed meanwhile
    }
  }
  if (!kept) log::info("image {}: in which order its pages were used is not known: {}", image, kept.error().text());
  if (const auto promise = expected_.extract(image)) promise.mapped().give(kept.has_value());
}

asio::awaitable<Result<std::string>> UseOrders::get(ImageId image) {
  if (const auto promise = expected_.find(image); promise != expected_.end()) {
    const Promise<bool> recorded = promise->second;
    (void)co_await recorded.get();
  }
  std::function<Result<std::string>()> read = [file = around_.images.store().use_file(image)] { return os::read_text(file); };
  co_return co_await around_.workers.run(std::move(read));
}

/// In the background: the copy counts without it, and whoever has it may die now.
void UseOrders::fetch(ImageId image, Endpoint from) {
  around_.spawn([](UseOrders& orders, ImageId wanted, Endpoint there) -> asio::awaitable<void> {
    const Status fetched = co_await orders.ask_for(wanted, std::move(there));
    if (!orders.around_.images.all().contains(wanted)) orders.around_.images.store().forget_use(wanted);  // removed meanwhile
    if (!fetched) log::info("image {}: in which order its pages were used is not known here: {}", wanted, fetched.error().text());
  }(*this, std::move(image), std::move(from)));
}

asio::awaitable<Status> UseOrders::ask_for(ImageId image, Endpoint from) {
  auto peer = wire::Client::tls(around_.io, from.address, from.port, around_.identity, "agent:");
  if (!peer) co_return std::unexpected(peer.error());
  wire::Request request;
  request.target = fmt::format("/v1/images/{}/use", image);
  auto answer = co_await peer->call(std::move(request), answer_limit);
  if (!answer) co_return std::unexpected(answer.error());
  if (answer->status != 200) co_return fail(Errc::not_found, "the other agent answered {}", answer->status);
  std::function<Status()> keep = [file = around_.images.store().use_file(image), bytes = std::move(answer->body)]() -> Status {
    YADO_TRY(image::working_set_from_bytes(bytes), "order of use");
    return os::replace_text(file, bytes, 0600);
  };
  co_return co_await around_.workers.run(std::move(keep));
}

}  // namespace yado::agent
