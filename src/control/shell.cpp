#include "control/shell.hpp"

#include <nlohmann/json.hpp>

#include "api/answer.hpp"
#include "api/json.hpp"
#include "base/log.hpp"
#include "control/record_json.hpp"
#include "os/clock.hpp"
#include "state/sqlite/sqlite.hpp"

namespace yado::control {
namespace asio = boost::asio;
namespace fs = std::filesystem;

// ---- start and end -------------------------------------------------------------------------------------------------

namespace {

Status make_private(const fs::path& directory) {
  std::error_code error;
  fs::create_directories(directory, error);
  if (!error) fs::permissions(directory, fs::perms::owner_all, error);
  if (error) return fail_errno(error.value(), "directory " + directory.native());
  return {};
}

/// Control's own certificate, made by its authority once.
Result<wire::Identity> own_identity(const fs::path& state, const wire::Authority& authority) {
  const fs::path directory = state / "identity";
  std::error_code error;
  if (fs::exists(directory / "cert.pem", error)) return wire::Identity::load(directory);
  YADO_ASSIGN(wire::Identity made, authority.issue("control:c1"), "control's identity");
  YADO_TRY(make_private(directory), "control's identity");
  YADO_TRY(made.save(directory), "control's identity");
  return made;
}

}  // namespace

Status issue(const fs::path& state, const std::string& common_name, const fs::path& directory) {
  YADO_TRY(make_private(state), "control's state");
  YADO_ASSIGN(const wire::Authority authority, wire::Authority::open_or_create(state / "authority"), "authority");
  YADO_ASSIGN(const wire::Identity made, authority.issue(common_name), "issue");
  YADO_TRY(make_private(directory), "issue");
  return made.save(directory);
}

Result<Control> Control::start(asio::io_context& io, const ControlOptions& options) {
  YADO_TRY(make_private(options.state), "control's state");
  YADO_ASSIGN(auto store, state::open_sqlite(options.state / "control.db"), "control's state");
  return start(io, options, std::move(store));
}

Result<Control> Control::start(asio::io_context& io, const ControlOptions& options, std::unique_ptr<state::Store> store) {
  YADO_TRY(make_private(options.state), "control's state");
  YADO_ASSIGN(const wire::Authority authority, wire::Authority::open_or_create(options.state / "authority"), "authority");
  YADO_ASSIGN(wire::Identity identity, own_identity(options.state, authority), "start");
  auto shell = std::make_shared<Shell>(io, options, std::move(store), std::move(identity));
  Control control(shell);  // stops it if it cannot begin
  YADO_TRY(shell->begin(), "start control");
  return control;
}

Control::Control(std::shared_ptr<Shell> shell) : shell_(std::move(shell)) {}
Control::Control(Control&&) noexcept = default;
Control::~Control() {
  if (shell_) shell_->stop();
}
std::uint16_t Control::port() const { return shell_->port(); }
void Control::stop() { shell_->stop(); }

Shell::Shell(asio::io_context& io, const ControlOptions& options, std::unique_ptr<state::Store> store,
             wire::Identity identity)
    : io_(io),
      options_(options),
      store_(std::move(store)),
      identity_(std::move(identity)),
      run_(fmt::format("{:x}", os::wall_ms())),
      core_(options.settings),
      agents_(io, identity_),
      events_(io, options.events_kept),
      routes_changed_(io),
      timer_(io),
      retry_(io) {}

Status Shell::begin() {
  YADO_ASSIGN(const std::vector<std::string> texts, store_->workloads(), "read the store");
  std::vector<Record> records;
  for (const std::string& text : texts) {
    YADO_ASSIGN(Record record, parse_record(text), options_.state.native());
    records.push_back(std::move(record));
  }
  YADO_ASSIGN(auto kept, store_->events(options_.events_kept), "read the store");
  std::vector<EventLine> lines;
  for (auto& [sequence, text] : kept) lines.push_back(EventLine{sequence, std::move(text)});
  events_.restore(std::move(lines), 0);

  core_.recover(std::move(records), os::now());
  // A gate that saw an earlier run's table must see that this one is newer.
  routes_.version = static_cast<std::uint64_t>(os::wall_ms());
  routes_dirty_ = true;
  push_routes();

  auto handler = [self = shared_from_this()](const wire::Request& request, wire::Responder& responder) {
    return self->serve(request, responder);
  };
  people_ = std::make_unique<wire::Server>(io_, handler, wire::Server::Limits{});
  roles_ = std::make_unique<wire::Server>(io_, handler, wire::Server::Limits{});
  YADO_ASSIGN(port_, roles_->listen_tls(options_.address, options_.port, identity_), "for agents and gates");
  YADO_TRY(people_->listen_unix(options_.socket, 0600), "for people");
  record(Event{"control-started", {}, {}, {}, {}, {{"workloads", std::to_string(core_.workloads().size())}}}, os::now());
  settle();
  log::info("serving on {} and {}:{}", options_.socket, options_.address, port_);
  return {};
}

void Shell::stop() {
  if (std::exchange(stopped_, true)) return;
  timer_.cancel();
  retry_.cancel();
  if (people_) people_->stop();
  if (roles_) roles_->stop();
  questions_.clear();
  // Their handlers hold this object.
  people_.reset();
  roles_.reset();
}

// ---- requests ------------------------------------------------------------------------------------------------------

/// Who may call what (docs/api.md). The unix socket's file mode has let in whoever may do everything.
bool Shell::allowed(const wire::Request& request, const Target& target) {
  const auto& path = target.path;
  const std::string_view peer = request.peer;
  if (peer == "local") return true;
  if (request.method == "GET" && path[0] == "version") return true;
  const bool post = request.method == "POST";
  if (post && path[0] == "events" && path.size() == 1) return peer.starts_with("agent:") || peer.starts_with("gate:");
  if (peer.starts_with("agent:")) {
    if (path[0] == "agents") return post && path.size() == 3 && peer.substr(6) == path[1];
    return post && path[0] == "leases";
  }
  if (peer.starts_with("gate:")) {
    if (path[0] == "routes") return request.method == "GET";
    return post && path[0] == "workloads" && path.size() == 3 && (path[2] == "ask" || path[2] == "idle");
  }
  return false;
}

asio::awaitable<void> Shell::serve(const wire::Request& request, wire::Responder& responder) {
  const auto self = shared_from_this();  // stop() drops the servers' handlers while requests are under way
  auto target = parse_target(request.target);
  wire::Response response;
  if (!target) {
    response = api::answer(target.error());
  } else if (!allowed(request, *target)) {
    response = api::answer(Error{Errc::permission, fmt::format("{} may not {} {}", request.peer, request.method, request.target)});
  } else if (request.method == "GET" && target->path[0] == "events" && target->path.size() == 1) {
    co_return co_await follow_events(request, *target, responder);
  } else if (request.method == "GET" && target->path[0] == "routes" && target->flag("follow")) {
    co_return co_await follow_routes(request, responder);
  } else {
    auto body = co_await dispatch(request, *target, responder);
    response = body ? api::answer(*body) : api::answer(body.error());
  }
  // A peer that is gone needs no answer.
  auto sent = co_await responder.respond(std::move(response));
  (void)sent;
}

asio::awaitable<Result<nlohmann::json>> Shell::dispatch(const wire::Request& request, const Target& target,
                                                        wire::Responder& responder) {
  const auto& path = target.path;
  const bool get = request.method == "GET", post = request.method == "POST";
  if (path.size() == 1) {
    if (path[0] == "version" && get) {
      Json version{{"name", "yado"}, {"version", YADO_VERSION}, {"api", api::version}, {"role", "control"}};
      if (held_) version["trouble"] = held_->message;
      co_return version;
    }
    if (path[0] == "workloads" && get) co_return workloads();
    if (path[0] == "images" && get) co_return images();
    if (path[0] == "hosts" && get) co_return hosts();
    if (path[0] == "routes" && get) co_return Json(routes_);
    if (path[0] == "events" && post) co_return event(request);
    if (path[0] == "drills" && post) co_return drill(request);
  }
  if (path[0] == "images" && get && (path.size() == 2 || (path.size() == 3 && path[2] == "memory"))) {
    if (!valid_name(path[1])) co_return fail(Errc::not_found, "\"{}\" cannot be an image's name", path[1]);
    co_return co_await look_at_image(ImageId(path[1]), target);
  }
  if (path[0] == "workloads" && (path.size() == 2 || path.size() == 3)) {
    if (!valid_name(path[1])) co_return fail(Errc::not_found, "\"{}\" cannot be a workload's name", path[1]);
    co_return co_await on_workload(request, target, responder);
  }
  if (path[0] == "agents" && path.size() == 3 && post && valid_name(path[1])) {
    const HostId host(path[1]);
    if (path[2] == "heartbeat") co_return heartbeat(host, request);
    if (path[2] == "exited") co_return exited(host, request);
  }
  if (path[0] == "leases" && path.size() == 2 && path[1] == "renew" && post) co_return renew(request);
  co_return fail(Errc::not_found, "control has no {} {}", request.method, request.target);
}

}  // namespace yado::control
