#include "agent/supervisor/client.hpp"

#include <optional>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <nlohmann/json.hpp>

#include "agent/supervisor/socket.hpp"
#include "api/fields.hpp"
#include "base/log.hpp"
#include "model/names.hpp"

namespace yado::supervisor {

namespace asio = boost::asio;
using nlohmann::json;

struct Client::Connection : std::enable_shared_from_this<Client::Connection> {
  /// A call that waits. The timer never expires: cancelling it is how the waiting coroutine is woken.
  struct Pending {
    explicit Pending(asio::io_context& io) : woken(io, asio::steady_timer::time_point::max()) {}
    asio::steady_timer woken;
    std::optional<Result<json>> answer;
  };

  Connection(asio::io_context& context, os::Fd fd, Events wanted)
      : io(context), socket(std::move(fd)), readable(context), events(std::move(wanted)) {}

  // The descriptor belongs to `socket`; Asio only watches it.
  ~Connection() { (void)readable.release(); }

  void listen() {
    readable.async_wait(asio::posix::stream_descriptor::wait_read,
                        [self = shared_from_this()](const boost::system::error_code& error) {
                          if (!self->open) return;
                          if (error) return self->close("lost");
                          for (;;) {
                            auto packet = receive_packet(self->socket);
                            if (!packet) return self->close(packet.error().message);
                            if (!*packet) break;
                            self->take(**packet);
                            if (!self->open) return;
                          }
                          self->listen();
                        });
  }

  void take(const std::string& packet) {
    const auto message = api::parse_json(packet);
    if (!message || !message->is_object()) return log::warn("a supervisor sent no JSON object");
    if (message->contains("event")) return take_event(*message);
    std::uint64_t id = 0;
    Status status;
    api::Fields(*message, "", status).required("id", id);
    const auto found = status ? pending.find(id) : pending.end();
    if (found == pending.end()) return;
    if (const auto error = message->find("error"); error != message->end()) {
      auto parsed = api::from_json_value<Error>(*error);
      found->second->answer = std::unexpected(parsed ? *parsed : parsed.error());
    } else {
      found->second->answer = *message;
    }
    found->second->woken.cancel();
  }

  void take_event(const json& message) {
    std::string event;
    InstanceState state{};
    std::uint64_t ticket = 0;
    Epoch epoch;
    os::ExitStatus ended;
    std::string why, last_log;
    Status status;
    api::Fields(message, "", status)
        .required("event", event)
        .optional("state", state)
        .optional("ticket", ticket)
        .optional("epoch", epoch)
        .optional("code", ended.code)
        .optional("signal", ended.signal)
        .optional("why", why)
        .optional("log", last_log);
    if (!status) return log::warn("an event of a supervisor: {}", status.error().text());
    // Copies: a handler may destroy the client, and with it the functions.
    const Events on = events;
    if (event == "state" && on.state) on.state(state);
    if (event == "renew" && on.renew) on.renew(ticket, epoch);
    if (event == "lease-over" && on.lease_over) on.lease_over(epoch);
    if (event == "stands" && on.stands) on.stands(why);
    if (event == "exited" && on.exited) on.exited(why.empty() ? ended.text() : why, std::move(last_log));
  }

  Result<std::uint64_t> send(const std::string& what, json fields) {
    if (!open) return fail(Errc::canceled, "{}: the connection to the supervisor is closed", what);
    const std::uint64_t id = ++last_id;
    fields["id"] = id;
    fields["do"] = what;
    YADO_TRY(send_packet(socket, api::dump(fields)), what);
    return id;
  }

  void close(const std::string& why) {
    if (!std::exchange(open, false)) return;
    for (auto& [id, call] : pending) {
      if (call->answer) continue;  // answered, and not yet resumed
      call->answer = fail(Errc::canceled, "the connection to the supervisor ended: {}", why);
      call->woken.cancel();
    }
    const auto closed = std::exchange(events, {}).closed;
    boost::system::error_code ignored;
    readable.cancel(ignored);
    if (closed) closed();
  }

  asio::io_context& io;
  os::Fd socket;
  asio::posix::stream_descriptor readable;
  Events events;
  std::map<std::uint64_t, std::shared_ptr<Pending>> pending;
  std::uint64_t last_id = 0;
  bool open = true;
};

Client::Client(std::shared_ptr<Connection> connection) : connection_(std::move(connection)) {}
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&& other) noexcept {
  if (this != &other) {
    if (connection_) {
      connection_->events = {};
      connection_->close("closed here");
    }
    connection_ = std::move(other.connection_);
  }
  return *this;
}
Client::~Client() {
  if (!connection_) return;
  connection_->events = {};
  connection_->close("closed here");
}

Result<Client> Client::connect(asio::io_context& io, const std::filesystem::path& directory, Events events) {
  YADO_ASSIGN(os::Fd socket, connect_to(socket_of(directory)), "supervisor");
  auto connection = std::make_shared<Connection>(io, std::move(socket), std::move(events));
  boost::system::error_code error;
  connection->readable.assign(connection->socket.get(), error);
  if (error) return fail(Errc::io, "watch the supervisor's socket: {}", error.message());
  connection->listen();
  return Client(std::move(connection));
}

asio::awaitable<Result<json>> Client::call(std::string what, json fields) {
  const std::shared_ptr<Connection> connection = connection_;  // it may be destroyed while this waits
  const auto id = connection->send(what, std::move(fields));
  if (!id) co_return std::unexpected(id.error());
  const auto pending = std::make_shared<Connection::Pending>(connection->io);
  connection->pending.emplace(*id, pending);
  constexpr auto token = asio::as_tuple(asio::use_awaitable);
  while (!pending->answer) (void)co_await pending->woken.async_wait(token);
  connection->pending.erase(*id);
  co_return std::move(*pending->answer);
}

namespace {

Status as_status(const Result<json>& answer) {
  if (!answer) return std::unexpected(answer.error());
  return {};
}

json object(Epoch epoch, std::initializer_list<std::pair<const char*, json>> fields) {
  json made = json::object();
  for (const auto& [key, value] : fields) made[key] = value;
  made["epoch"] = epoch.value();
  return made;
}

Result<os::ExitStatus> exit_of(const Result<json>& answer) {
  if (!answer) return std::unexpected(answer.error());
  os::ExitStatus ended;
  Status status;
  api::Fields(*answer, "", status).required("code", ended.code).required("signal", ended.signal);
  if (!status) return std::unexpected(status.error());
  return ended;
}

}  // namespace

asio::awaitable<Result<Description>> Client::describe() {
  json fields = json::object();
  const Result<json> answer = co_await call("describe", std::move(fields));
  if (!answer) co_return std::unexpected(answer.error());
  co_return api::from_json_value<Description>(*answer);
}

#define YADO_SIMPLE_CALL(what, fields)                            \
  json message = fields;                                          \
  const Result<json> answer = co_await call(what, std::move(message)); \
  co_return as_status(answer)

asio::awaitable<Status> Client::start(Epoch epoch) { YADO_SIMPLE_CALL("start", object(epoch, {})); }
asio::awaitable<Status> Client::freeze(Epoch epoch) { YADO_SIMPLE_CALL("freeze", object(epoch, {})); }
asio::awaitable<Status> Client::thaw(Epoch epoch) { YADO_SIMPLE_CALL("thaw", object(epoch, {})); }
asio::awaitable<Status> Client::signal(Epoch epoch, int number) {
  YADO_SIMPLE_CALL("signal", object(epoch, {{"number", number}}));
}
asio::awaitable<Status> Client::set_lease(Epoch epoch, milliseconds lease) {
  YADO_SIMPLE_CALL("set_lease", object(epoch, {{"lease_ms", lease.count()}}));
}
asio::awaitable<Status> Client::promote(Epoch epoch, milliseconds lease, bool thaw) {
  YADO_SIMPLE_CALL("promote", object(epoch, {{"lease_ms", lease.count()}, {"thaw", thaw}}));
}
asio::awaitable<Status> Client::restore(Epoch epoch, workload::ImageParts image, bool frozen) {
  YADO_SIMPLE_CALL("restore", object(epoch, {{"parts", image.directories},
                                             {"properties", image.properties},
                                             {"frozen", frozen}}));
}

#undef YADO_SIMPLE_CALL

asio::awaitable<Result<Startup>> Client::wait_startup(milliseconds limit) {
  json fields = {{"limit_ms", limit.count()}};
  const Result<json> answer = co_await call("wait_startup", std::move(fields));
  if (!answer) co_return std::unexpected(answer.error());
  Startup times;
  Status status;
  api::Fields(*answer, "", status).required("listening_us", times.listening).required("settled_us", times.settled);
  if (!status) co_return std::unexpected(status.error());
  co_return times;
}

namespace {

Result<workload::Properties> properties_of(const Result<json>& answer) {
  if (!answer) return std::unexpected(answer.error());
  workload::Properties properties;
  Status status;
  api::Fields(*answer, "", status).required("properties", properties);
  if (!status) return std::unexpected(status.error());
  return properties;
}

}  // namespace

asio::awaitable<Result<workload::Properties>> Client::checkpoint(Epoch epoch, workload::PartDirectories parts,
                                                                 workload::NewImage image, bool leave_running) {
  json fields = object(epoch, {{"parts", parts}, {"image", image.name}, {"base", image.base}, {"base_cut", image.base_cut},
                               {"bytes_per_second", image.bytes_per_second}, {"leave_running", leave_running}});
  const Result<json> answer = co_await call("checkpoint", std::move(fields));
  co_return properties_of(answer);
}

asio::awaitable<Result<workload::Properties>> Client::hand_over(Epoch epoch, workload::PartDirectories parts, workload::Handover how) {
  json fields = object(epoch, {{"parts", parts}, {"to", how.to}, {"disks_only", how.disks_only}, {"ahead", how.ahead}, {"most_disk_bytes", how.most_disk_bytes}});
  const Result<json> answer = co_await call("hand_over", std::move(fields));
  co_return properties_of(answer);
}

asio::awaitable<Result<std::string>> Client::resplit(Epoch epoch, Split split) {
  json fields = object(epoch, {{"split", split}});
  const Result<json> answer = co_await call("resplit", std::move(fields));
  if (!answer) co_return std::unexpected(answer.error());
  co_return answer->value("detail", "");
}

asio::awaitable<Result<Exec>> Client::exec(Epoch epoch, std::vector<std::string> command) {
  json fields = object(epoch, {{"command", std::move(command)}});
  const Result<json> answer = co_await call("exec", std::move(fields));
  Exec done;
  const auto ended = exit_of(answer);
  if (!ended) co_return std::unexpected(ended.error());
  done.status = *ended;
  Status status;
  api::Fields(*answer, "", status).optional("output", done.output).optional("truncated", done.truncated);
  if (!status) co_return std::unexpected(status.error());
  co_return done;
}

asio::awaitable<Result<os::CgroupUse>> Client::stats() {
  json fields = json::object();
  const Result<json> answer = co_await call("stats", std::move(fields));
  if (!answer) co_return std::unexpected(answer.error());
  os::CgroupUse use;
  Status status;
  api::Fields(*answer, "", status)
      .required("cpu_us", use.cpu)
      .required("memory_bytes", use.memory_bytes)
      .optional("memory_limit_kills", use.memory_limit_kills);
  if (!status) co_return std::unexpected(status.error());
  co_return use;
}

asio::awaitable<Result<std::string>> Client::log() {
  json fields = json::object();
  const Result<json> answer = co_await call("log", std::move(fields));
  if (!answer) co_return std::unexpected(answer.error());
  std::string text;
  Status status;
  api::Fields(*answer, "", status).required("log", text);
  if (!status) co_return std::unexpected(status.error());
  co_return text;
}

asio::awaitable<Result<os::ExitStatus>> Client::stop(Epoch epoch, milliseconds grace) {
  json fields = object(epoch, {{"grace_ms", grace.count()}});
  const Result<json> answer = co_await call("stop", std::move(fields));
  co_return exit_of(answer);
}

Status Client::renewed(std::uint64_t ticket, milliseconds ttl) {
  const auto sent = connection_->send("renewed", {{"ticket", ticket}, {"ttl_ms", ttl.count()}});
  if (!sent) return std::unexpected(sent.error());
  return {};
}

Status Client::refused() {
  const auto sent = connection_->send("refused", json::object());
  if (!sent) return std::unexpected(sent.error());
  return {};
}

}  // namespace yado::supervisor
