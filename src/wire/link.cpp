#include "wire/link.hpp"

#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/use_awaitable.hpp>

#include "base/units.hpp"
#include "os/fd.hpp"

namespace yado::wire {
namespace asio = boost::asio;
using boost::system::error_code;
namespace {

constexpr std::size_t input_bytes = 64 * 1024;

Errc code_of(const error_code& error) {
  // A unix socket whose file is gone has nobody listening either.
  if (error == asio::error::connection_refused || error == boost::system::errc::no_such_file_or_directory)
    return Errc::refused;
  if (error == asio::error::timed_out) return Errc::timed_out;
  if (error == asio::error::operation_aborted) return Errc::canceled;
  if (error == asio::error::access_denied) return Errc::permission;
  return Errc::unavailable;
}

/// Asio's own open() leaves descriptors open in every program that the process starts.
Result<Stream::Socket> make_socket(const asio::any_io_executor& executor,
                                   const asio::generic::stream_protocol& protocol) {
  os::Fd fd(::socket(protocol.family(), SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, protocol.protocol()));
  if (!fd.valid()) return fail_errno("socket");
  Stream::Socket socket(executor);
  error_code error;
  socket.assign(protocol, fd.get(), error);
  if (error) return fail(Errc::io, "watch a socket: {}", error.message());
  (void)fd.release();
  return socket;
}

std::unexpected<Error> late() { return fail(Errc::timed_out, "no answer within the time limit"); }

/// "agent:h2" means that name; "agent:" means any agent.
bool is_expected(std::string_view name, std::string_view expected) {
  return expected.ends_with(':') ? name.starts_with(expected) && name.size() > expected.size() : name == expected;
}

}  // namespace

struct Deadline::State {
  Stream* stream = nullptr;
  bool passed = false;
  std::uint64_t round = 0;  // an expiry of an earlier round may be queued already when a new one is set
};

Deadline::Deadline(const asio::any_io_executor& executor) : timer_(executor), state_(std::make_shared<State>()) {}

Deadline::~Deadline() {
  state_->stream = nullptr;
  ++state_->round;
}

void Deadline::set(nanoseconds limit) {
  // Far beyond any clock's range means "no limit" to a caller; the sum must not overflow into the past.
  timer_.expires_after(std::min<nanoseconds>(limit, std::chrono::hours(24 * 365)));
  timer_.async_wait([state = state_, round = ++state_->round](const error_code&) {
    if (state->round != round) return;
    state->passed = true;
    if (state->stream != nullptr) state->stream->close();
  });
}

void Deadline::guard(Stream* stream) { state_->stream = stream; }
bool Deadline::passed() const { return state_->passed; }

Link::Link(Stream stream)
    : stream_(std::move(stream)),
      parser_(Parser::Kind::response, 64_KiB),
      input_(std::make_unique_for_overwrite<char[]>(input_bytes)) {}

asio::awaitable<Result<std::unique_ptr<Link>>> Link::open(asio::any_io_executor executor,
                                                          std::shared_ptr<const Target> target, Deadline& deadline) {
  auto socket = make_socket(executor, target->endpoint.protocol());
  if (!socket) co_return std::unexpected(socket.error());
  auto link = std::make_unique<Link>(Stream(std::move(*socket), target->tls));
  Stream& stream = link->stream_;
  deadline.guard(&stream);
  if (deadline.passed()) co_return late();

  auto [error] = co_await stream.socket().async_connect(target->endpoint, asio::as_tuple(asio::use_awaitable));
  if (deadline.passed()) co_return late();
  if (error) co_return fail(code_of(error), "connect: {}", error.message());
  const bool is_tcp = target->endpoint.protocol().family() != AF_UNIX;
  // connect(2) on a unix socket with a full backlog says EAGAIN, which Asio takes for "under way".
  error_code unconnected;
  stream.socket().remote_endpoint(unconnected);
  if (unconnected) co_return fail(Errc::unavailable, "connect: the peer's queue of connections is full");
  if (is_tcp) tune_tcp(stream.socket());

  if (target->tls) {
    const error_code failed = co_await stream.handshake(asio::ssl::stream_base::client);
    if (deadline.passed()) co_return late();
    if (failed)
      co_return fail(failed.category() == asio::error::get_ssl_category() ? Errc::permission : code_of(failed),
                     "TLS handshake: {}", stream.explain(failed));
    const std::string name = stream.peer_name();
    if (!is_expected(name, target->expected_peer))
      co_return fail(Errc::permission, "the peer's certificate says \"{}\", expected \"{}\"", name,
                     target->expected_peer);
  }
  co_return link;
}

void Link::begin_call(std::string_view method) {
  parser_.expect_answer_to(method);
  answered_ = false;
  ++calls_;
}

Error Link::broken(const error_code& error, const Deadline& deadline) const {
  if (deadline.passed()) return late().error();
  if (error == asio::error::operation_aborted) return Error{Errc::canceled, "the call was canceled"};
  // With TLS 1.3 the server judges our certificate after our side of the handshake is over (RFC 8446 4.4.2).
  if (Stream::is_alert(error)) return Error{Errc::permission, "TLS: " + stream_.explain(error)};
  return Error{Errc::unavailable, stream_.explain(error)};
}

asio::awaitable<Status> Link::write(std::span<const asio::const_buffer> parts, const Deadline& deadline) {
  const error_code error = co_await stream_.write(parts);
  if (error) co_return std::unexpected(broken(error, deadline));
  co_return Status{};
}

asio::awaitable<Result<Parser::Step>> Link::next(const Deadline& deadline) {
  for (;;) {
    if (deadline.passed()) co_return late();
    auto step = parser_.next({input_.get() + begin_, end_ - begin_});
    if (!step) co_return step;
    begin_ += step->consumed;
    if (step->event != Parser::Event::need_more) co_return step;

    begin_ = end_ = 0;  // need_more has consumed everything
    const IoResult got = co_await stream_.read_some(asio::buffer(input_.get(), input_bytes));
    end_ = got.bytes;
    answered_ = answered_ || got.bytes > 0;
    if (!got.error || got.bytes > 0) continue;
    if (got.error != asio::error::eof || deadline.passed()) co_return std::unexpected(broken(got.error, deadline));
    if (auto ended = parser_.finish(); !ended || !answered_)
      co_return fail(Errc::unavailable, "the peer closed the connection {}",
                     answered_ ? "in the middle of its answer" : "without an answer");
    co_return Parser::Step{Parser::Event::end, 0, {}};
  }
}

}  // namespace yado::wire
