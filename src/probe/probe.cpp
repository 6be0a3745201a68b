#include "probe/probe.hpp"

#include <memory>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "wire/client.hpp"

namespace yado::probe {
namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;
namespace {

constexpr std::size_t shown_bytes = 200;

/// The beginning of an answer, fit for one line of a log.
std::string beginning_of(std::string_view body) {
  if (body.empty()) return "the body is empty";
  std::string shown;
  for (unsigned char c : body.substr(0, shown_bytes))
    shown.push_back(c == '\n' || c == '\r' || c == '\t' ? ' ' : c < 0x20 || c == 0x7f ? '?' : static_cast<char>(c));
  return fmt::format("the answer begins with \"{}\"{}", shown, body.size() > shown_bytes ? " …" : "");
}

}  // namespace

asio::awaitable<Result<Heard>> reach(asio::io_context& io, Endpoint at, nanoseconds limit) {
  error_code error;
  const auto address = asio::ip::make_address(at.address, error);
  if (error || at.port == 0)
    co_return fail(Errc::invalid_argument, "\"{}\" port {} is no address to probe", at.address, at.port);

  struct Attempt {
    explicit Attempt(asio::io_context& context) : socket(context), timer(context) {}
    tcp::socket socket;
    asio::steady_timer timer;
    bool late = false;
  };
  auto attempt = std::make_shared<Attempt>(io);
  const tcp::endpoint endpoint(address, at.port);
  attempt->socket.open(endpoint.protocol(), error);
  if (error) co_return fail(Errc::io, "probe {}:{}: {}", at.address, at.port, error.message());
  // Closing sends a RST, never a FIN: the peer's server does not even see a connection that came and went.
  attempt->socket.set_option(asio::socket_base::linger(true, 0), error);
  attempt->timer.expires_after(limit);
  attempt->timer.async_wait([attempt](error_code canceled) {
    if (canceled) return;
    attempt->late = true;
    error_code ignored;
    attempt->socket.close(ignored);
  });
  auto [connected] = co_await attempt->socket.async_connect(endpoint, asio::as_tuple(asio::use_awaitable));
  const bool late = attempt->late;
  attempt->timer.cancel();
  error_code ignored;
  attempt->socket.close(ignored);
  if (!connected) co_return Heard::listening;
  if (connected == asio::error::connection_refused || connected == asio::error::connection_reset)
    co_return Heard::refused;
  if (late || connected == asio::error::timed_out)
    co_return fail(Errc::timed_out, "{}:{} did not answer within {:.0f} ms", at.address, at.port, to_ms(limit));
  if (connected == asio::error::operation_aborted) co_return fail(Errc::canceled, "the probe was cancelled");
  co_return fail(Errc::unavailable, "probe {}:{}: {}", at.address, at.port, connected.message());
}

asio::awaitable<Status> ready(asio::io_context& io, Endpoint at, std::string host_name, Readiness readiness,
                              nanoseconds limit) {
  wire::Client client = wire::Client::plain(io, at.address, at.port);
  wire::Request request;
  request.target = readiness.path;
  if (!host_name.empty()) request.headers.emplace_back("host", std::move(host_name));
  request.headers.emplace_back("connection", "close");
  request.headers.emplace_back("user-agent", "yado-readiness");
  Result<wire::Response> response = co_await client.call(std::move(request), limit);
  if (!response) co_return context(response.error(), "readiness");
  if (response->status != readiness.status)
    co_return fail(Errc::application, "readiness: GET {} answered {} instead of {}; {}", readiness.path,
                   response->status, readiness.status, beginning_of(response->body));
  if (response->body.find(readiness.contains) == std::string::npos)
    co_return fail(Errc::application, "readiness: GET {} answered {} without \"{}\"; {}", readiness.path,
                   response->status, readiness.contains, beginning_of(response->body));
  co_return Status{};
}

}  // namespace yado::probe
