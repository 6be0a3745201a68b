#include "cli/client.hpp"

#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <fmt/chrono.h>
#include <nlohmann/json.hpp>

#include "api/answer.hpp"
#include "api/json.hpp"
#include "cli/command.hpp"
#include "model/ids.hpp"
#include "wire/client.hpp"
#include "wire/run.hpp"

namespace yado::cli {
namespace asio = boost::asio;
namespace fs = std::filesystem;
using nlohmann::json;

namespace {

/// Longer than anything control waits for: raises have limits of their own there.
constexpr auto patience = std::chrono::hours(24);
/// Streams say something every half second (docs/api.md).
constexpr auto quiet_limit = std::chrono::seconds(10);

bool answers(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) return false;
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return false;
  const bool connected = ::connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0;
  ::close(fd);
  return connected;
}

}  // namespace

Result<std::string> find_socket(const std::string& given, const char* variable, const std::string& file) {
  const fs::path run = "/run/yado";
  const char* named = std::getenv(variable);
  if (const std::string path = !given.empty() ? given : named ? named : ""; !path.empty()) {
    if (fs::exists(path)) return path;
    return fail(Errc::unavailable, "there is no socket {}{}: that of a lab that runs is {}/NAME/{}", path, given.empty() ? fmt::format(" (${})", variable) : "", run.native(), file);
  }
  if (const fs::path usual = run / file; fs::exists(usual)) return usual.native();
  std::vector<std::string> found;
  std::error_code ignored;
  for (const auto& lab : fs::directory_iterator(run, ignored))
    if (const std::string path = (lab.path() / file).native(); answers(path)) found.push_back(path);
  if (found.size() == 1) return found.front();
  if (found.empty())
    return fail(Errc::unavailable, "nothing runs here: no {}/{} and no lab. Start one with `yado dev`, or name the socket",
                run.native(), file);
  std::ranges::sort(found);
  return fail(Errc::unavailable, "several labs run: choose one of {} by --control or ${}", fmt::join(found, ", "), variable);
}

struct Client::Impl {
  explicit Impl(const std::string& path) : client(wire::Client::unix_socket(io, path)) {}
  asio::io_context io;
  wire::Client client;
};

Client::Client(std::string socket) : socket_(std::move(socket)), impl_(std::make_unique<Impl>(socket_)) {}
Client::Client(Client&&) noexcept = default;
Client& Client::operator=(Client&&) noexcept = default;
Client::~Client() = default;

Result<Client> Client::control(const std::string& given) {
  YADO_ASSIGN(std::string socket, find_socket(given, "YADO_CONTROL", "control.sock"), "control");
  return Client(std::move(socket));
}

Result<json> Client::call(const std::string& method, const std::string& target, const std::string& body) {
  wire::Request request;
  request.method = method;
  request.target = target;
  request.body = body;
  if (!body.empty()) request.headers.emplace_back("content-type", "application/json");
  auto response = wire::run(impl_->io, impl_->client.call(std::move(request), patience));
  if (!response) {
    unreachable_ = true;
    return fail(response.error().code, "control does not answer at {}: {}", socket_, response.error().message);
  }
  return api::body_of(*response);
}

namespace {

/// Cuts a stream into its lines of JSON; keep-alives are empty ones.
class Lines {
 public:
  explicit Lines(std::function<bool(const json&)> event) : event_(std::move(event)) {}
  Status operator()(std::string_view piece) {
    text_ += piece;
    std::size_t begin = 0;
    for (std::size_t end; (end = text_.find('\n', begin)) != std::string::npos; begin = end + 1) {
      if (end == begin) continue;
      auto line = api::parse_json(std::string_view(text_).substr(begin, end - begin));
      if (!line) return context(line.error(), "event stream");
      if (!event_(*line)) return fail(Errc::canceled, "enough");
    }
    text_.erase(0, begin);
    return {};
  }

 private:
  std::function<bool(const json&)> event_;
  std::string text_;
};

}  // namespace

Status Client::follow(const std::string& target, std::function<bool(const json&)> event) {
  return follow("GET", target, "", quiet_limit, std::move(event));
}

Status Client::follow(const std::string& method, const std::string& target, const std::string& body,
                      std::optional<nanoseconds> quiet, std::function<bool(const json&)> event) {
  wire::Request request;
  request.method = method;
  request.target = target;
  request.body = body;
  auto enough = std::make_shared<bool>(false);
  auto lines = std::make_shared<Lines>([event = std::move(event), enough](const json& line) {
    const bool more = event(line);
    *enough = !more;
    return more;
  });
  auto sink = [lines](std::string_view piece) { return (*lines)(piece); };
  auto response = wire::run(impl_->io, impl_->client.stream(std::move(request), quiet_limit, quiet.value_or(patience), sink));
  if (*enough) return {};
  if (!response) {
    unreachable_ = true;
    return fail(response.error().code, "{}: {}", socket_, response.error().message);
  }
  if (response->status / 100 != 2) {
    auto answer = api::body_of(*response);
    if (!answer) return std::unexpected(answer.error());
  }
  return {};
}

void Client::watch(const std::string& target, std::function<void(const json&)> event) {
  wire::Request request;
  request.target = target;
  auto lines = std::make_shared<Lines>([event = std::move(event)](const json& line) {
    event(line);
    return true;
  });
  auto sink = [lines](std::string_view piece) { return (*lines)(piece); };
  asio::co_spawn(impl_->io, impl_->client.stream(std::move(request), quiet_limit, quiet_limit, sink), asio::detached);
}

void Client::ask_meanwhile(const std::string& target, nanoseconds pause, std::function<std::optional<nanoseconds>(const Result<json>&)> answered) {
  const auto ask = [](Impl& impl, std::string path, std::optional<nanoseconds> next, auto then) -> asio::awaitable<void> {
    asio::steady_timer timer(impl.io);
    while (next) {
      timer.expires_after(*next);
      co_await timer.async_wait(asio::use_awaitable);
      wire::Request request;
      request.target = path;
      const auto response = co_await impl.client.call(std::move(request), patience);
      next = then(response ? api::body_of(*response) : std::unexpected(response.error()));
    }
  };
  asio::co_spawn(impl_->io, ask(*impl_, target, pause, std::move(answered)), asio::detached);
}

int complain(const Client& client, const Error& error) {
  const int status = complain(error);
  return client.unreachable() ? int(Exit::no_control) : status;
}

std::string describe_event(const json& event) {
  const std::int64_t at_ms = event.value("at_ms", std::int64_t{0});
  std::time_t at = at_ms / 1000;
  std::string epoch;
  if (const auto number = event.value("epoch", std::uint64_t{0})) epoch = fmt::format("{}", Epoch(number));
  std::string line = fmt::format("{:%H:%M:%S}.{:03} {:<12} {:<18} {:<5} {:<5}", fmt::localtime(at), at_ms % 1000,
                                 event.value("workload", ""), event.value("kind", ""), event.value("host", ""), epoch);
  if (const auto fields = event.find("fields"); fields != event.end() && fields->is_object())
    for (const auto& [key, value] : fields->items())
      if (const std::string text = value.is_string() ? value.get<std::string>() : value.dump(); !text.empty())
        line += fmt::format(" {}={}", key, text);
  line.erase(line.find_last_not_of(' ') + 1);
  return line;
}

std::uint64_t newest_event(Client& client) {
  std::uint64_t newest = 0;
  auto seen = client.follow("/v1/events?limit=1", [&](const json& event) {
    newest = event.value("seq", std::uint64_t{0});
    return true;
  });
  return seen ? newest : 0;
}

}  // namespace yado::cli
