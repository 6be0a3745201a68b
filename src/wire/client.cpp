#include "wire/client.hpp"

#include <array>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/local/stream_protocol.hpp>
#include <vector>

#include "wire/link.hpp"
#include "wire/message.hpp"

namespace yado::wire {
namespace asio = boost::asio;
namespace {

/// Connections kept for the next calls; a burst may use more at once.
constexpr std::size_t most_idle_links = 8;

/// One call as it was asked for.
struct Call {
  Request request;
  nanoseconds limit{};
  nanoseconds quiet_limit{};
  std::function<Status(std::string_view)> sink;  // stream()
  std::function<Result<std::string>()> source;   // upload()
  std::uint64_t source_bytes = 0;

  bool repeatable() const {
    return !source && (request.method == "GET" || !find(request.headers, "x-request-id").empty());
  }
};

bool sends_body(std::string_view method) { return method == "POST" || method == "PUT" || method == "PATCH"; }

}  // namespace

struct Client::Impl : std::enable_shared_from_this<Impl> {
  asio::io_context& io;
  std::shared_ptr<const Target> target;
  Status usable;  // why no call can succeed, for plain(), which cannot say it itself
  std::vector<std::unique_ptr<Link>> idle;

  Impl(asio::io_context& context, Target to, Status state)
      : io(context), target(std::make_shared<const Target>(std::move(to))), usable(std::move(state)) {}

  std::unique_ptr<Link> take_idle() {
    while (!idle.empty()) {
      auto link = std::move(idle.back());
      idle.pop_back();
      if (link->reusable()) return link;
    }
    return nullptr;
  }

  void keep(std::unique_ptr<Link> link) {
    if (idle.size() < most_idle_links && link->reusable()) idle.push_back(std::move(link));
  }

  static asio::awaitable<Result<Response>> perform(std::shared_ptr<Impl> self, Call call) {
    const std::string what = fmt::format("{} {} at {}", call.request.method, call.request.target, self->target->where);
    if (!self->usable) co_return context(self->usable.error(), what);
    Deadline deadline(self->io.get_executor());
    deadline.set(call.limit);
    // A kept connection may be closed by the peer at the very moment it is taken; a body from a source cannot be sent
    // again, so that one starts on a new connection.
    std::unique_ptr<Link> link = call.source ? nullptr : self->take_idle();
    for (;;) {
      if (!link) {
        auto opened = co_await Link::open(self->io.get_executor(), self->target, deadline);
        if (!opened) {
          deadline.guard(nullptr);
          co_return context(opened.error(), what);
        }
        link = std::move(*opened);
      }
      deadline.guard(&link->stream());
      link->begin_call(call.request.method);
      auto response = co_await exchange(*link, *self->target, call, deadline);
      deadline.guard(nullptr);
      if (response) {
        if (link->parser().head().keep_alive && !link->parser().head().upgrade && !deadline.passed())
          self->keep(std::move(link));
        co_return response;
      }
      const bool again =
          response.error().code == Errc::unavailable && link->used() && !link->answered() && call.repeatable();
      if (!again) co_return context(response.error(), what);
      link.reset();
    }
  }

  static asio::awaitable<Result<Response>> exchange(Link& link, const Target& target, Call& call, Deadline& deadline) {
    Status sent = co_await send(link, target, call, deadline);
    // A peer that refuses a long body answers and closes before it is sent: its answer says more than our failed write.
    if (!sent && sent.error().code != Errc::unavailable) co_return std::unexpected(sent.error());
    auto response = co_await receive(link, call, deadline);
    if (!sent) link.stream().close();  // never again: half a request has gone out on it
    if (!response && !sent) co_return std::unexpected(sent.error());
    co_return response;
  }

  static asio::awaitable<Status> send(Link& link, const Target& target, Call& call, Deadline& deadline) {
    Framing framing;
    if (call.source)
      framing.content_length = call.source_bytes;
    else if (!call.request.body.empty() || sends_body(call.request.method))
      framing.content_length = call.request.body.size();
    auto head = request_head(call.request, target.host, framing);
    if (!head) co_return std::unexpected(head.error());
    const std::array<asio::const_buffer, 2> parts{asio::buffer(*head), asio::buffer(call.request.body)};
    const auto used = std::span(parts).first(call.source ? 1 : 2);
    if (Status sent = co_await link.write(used, deadline); !sent || !call.source) co_return sent;

    for (std::uint64_t left = call.source_bytes;;) {
      Result<std::string> piece = call.source();
      if (!piece) co_return context(piece.error(), "the body to send");
      if (piece->size() > left || (piece->empty() && left > 0))
        co_return fail(Errc::invalid_argument, "the body to send is not the announced {} bytes long",
                       call.source_bytes);
      if (piece->empty()) co_return Status{};
      left -= piece->size();
      const std::array<asio::const_buffer, 1> part{asio::buffer(*piece)};
      if (Status sent = co_await link.write(part, deadline); !sent) co_return sent;
    }
  }

  static asio::awaitable<Result<Response>> receive(Link& link, const Call& call, Deadline& deadline) {
    Response response;
    bool interim = false, to_sink = false;
    for (;;) {
      auto step = co_await link.next(deadline);
      if (!step) co_return std::unexpected(step.error());
      switch (step->event) {
        case Parser::Event::head: {
          Head& head = link.parser().head();
          interim = head.status / 100 == 1 && head.status != 101;
          response.status = head.status;
          response.headers = std::move(head.headers);
          to_sink = call.sink && head.status / 100 == 2;
          if (!interim && call.sink) deadline.set(call.quiet_limit);
          break;
        }
        case Parser::Event::body:
          if (to_sink) {
            if (auto taken = call.sink(step->body); !taken) co_return context(taken.error(), "the answer's body");
          } else {
            if (response.body.size() + step->body.size() > longest_body_bytes)
              co_return fail(Errc::corrupt, "the answer is longer than {} bytes", longest_body_bytes);
            response.body.append(step->body);
          }
          if (call.sink) deadline.set(call.quiet_limit);
          break;
        case Parser::Event::end:
          if (!interim) co_return response;
          break;
        case Parser::Event::need_more:
          break;
      }
    }
  }
};

Client::Client(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;
Client::~Client() {
  if (impl_) impl_->idle.clear();
}

Client Client::unix_socket(asio::io_context& io, std::string path) {
  Target target;
  Status usable;
  target.where = path;
  target.host = "localhost";
  try {
    target.endpoint = asio::local::stream_protocol::endpoint(path);
  } catch (const boost::system::system_error&) {
    usable = fail(Errc::invalid_argument, "the path is too long for a unix socket");
  }
  return Client(std::make_shared<Impl>(io, std::move(target), std::move(usable)));
}

namespace {

Result<Target> ip_target(const std::string& address, std::uint16_t port) {
  boost::system::error_code error;
  const auto parsed = asio::ip::make_address(address, error);
  if (error) return fail(Errc::invalid_argument, "\"{}\" is not a numeric IPv4 or IPv6 address", address);
  Target target;
  target.endpoint = asio::ip::tcp::endpoint(parsed, port);
  target.host = target.where =
      parsed.is_v6() ? fmt::format("[{}]:{}", address, port) : fmt::format("{}:{}", address, port);
  return target;
}

}  // namespace

Result<Client> Client::tls(asio::io_context& io, std::string address, std::uint16_t port, const Identity& identity,
                           std::string expected_peer) {
  YADO_ASSIGN(Target target, ip_target(address, port), "client");
  YADO_ASSIGN(target.tls, client_context(identity), "client");
  target.expected_peer = std::move(expected_peer);
  return Client(std::make_shared<Impl>(io, std::move(target), Status{}));
}

Client Client::plain(asio::io_context& io, std::string address, std::uint16_t port) {
  Result<Target> target = ip_target(address, port);
  if (target) return Client(std::make_shared<Impl>(io, std::move(*target), Status{}));
  Target nowhere;
  nowhere.where = address;
  return Client(std::make_shared<Impl>(io, std::move(nowhere), std::unexpected(target.error())));
}

asio::awaitable<Result<Response>> Client::call(Request request, nanoseconds limit) {
  Call call;
  call.request = std::move(request);
  call.limit = limit;
  return Impl::perform(impl_, std::move(call));
}

asio::awaitable<Result<Response>> Client::stream(Request request, nanoseconds limit, nanoseconds quiet_limit,
                                                 std::function<Status(std::string_view)> sink) {
  Call call;
  call.request = std::move(request);
  call.limit = limit;
  call.quiet_limit = quiet_limit;
  call.sink = std::move(sink);
  return Impl::perform(impl_, std::move(call));
}

asio::awaitable<Result<Response>> Client::upload(Request request, std::uint64_t body_bytes, nanoseconds limit,
                                                 std::function<Result<std::string>()> source) {
  Call call;
  call.request = std::move(request);
  call.limit = limit;
  call.source = std::move(source);
  call.source_bytes = body_bytes;
  return Impl::perform(impl_, std::move(call));
}

}  // namespace yado::wire
