// What people and the CLI ask of control (docs/api.md).

#include <algorithm>

#include <nlohmann/json.hpp>

#include "api/answer.hpp"
#include "api/calls.hpp"
#include "api/fields.hpp"
#include "control/shell.hpp"
#include "model/names.hpp"
#include "os/clock.hpp"
#include "spec/check.hpp"

namespace yado::control {
namespace asio = boost::asio;
using api::Fields;
using nlohmann::json;

namespace {

json view_json(const WorkloadView& view, const std::vector<ControlCore::HostSummary>& hosts) {
  const Record& record = view.record;
  json owner = nullptr, standby = nullptr, image = nullptr;
  if (record.phase == OwnerPhase::up)
    owner = json{{"host", record.host.str()},
                 {"instance", record.instance.str()},
                 {"endpoint", record.endpoint}};
  if (view.standby)
    standby = json{{"host", view.standby_host.str()},
                   {"instance", view.standby->id.str()},
                   {"state", name_of(view.standby->state)},
                   {"age_ms", view.standby->age.count()}};
  json raised_from = nullptr;
  if (record.raised_from) raised_from = record.raised_from->str();
  if (record.image) {
    std::vector<std::string> holders;
    for (const HostId& host : view.image_holders) holders.push_back(host.str());
    image = json{{"id", record.image->id.str()}, {"holders", holders}, {"current", record.image_current()}, {"redundant", view.image_redundant}, {"bases", json::array()}};
    for (const ImageId& base : record.image->bases) image["bases"].push_back(base.str());
    if (record.image->origin) image["origin"] = record.image->origin->str();
    if (record.acknowledged) image["acknowledged"] = record.acknowledged->id.str();
    for (const auto& host : hosts)
      for (const ImageReport& held : host.report.images)
        if (held.id == record.image->id) image["bytes"] = held.bytes, image["age_ms"] = held.age.count();
  }
  return json{{"name", record.spec.name.str()},
              {"state", name_of(view.state)},
              {"epoch", record.epoch.value()},
              {"revision", record.revision},
              {"owner", owner},
              {"standby", standby},
              {"image", image},
              {"raised_from", raised_from},
              {"note", view.note},
              {"spec", record.spec}};
}

/// "big.test" -> "twin.test": in the domain of the host name that led to its origin.
std::string host_name_of_clone(const WorkloadId& name, const std::string& of_origin) {
  const std::size_t dot = of_origin.find('.');
  return name.str() + (dot == std::string::npos ? "" : of_origin.substr(dot));
}

/// An optional JSON body: {} when there is none.
Result<json> body_of(const wire::Request& request) {
  if (request.body.empty()) return json::object();
  auto body = api::parse_json(request.body);
  if (body && !body->is_object()) return fail(Errc::invalid_argument, "the body is not a JSON object");
  return body;
}

}  // namespace

// ---- looking -------------------------------------------------------------------------------------------------------

json Shell::workloads() const {
  json all = json::array();
  const auto now_hosts = core_.hosts();
  for (const WorkloadView& view : core_.workloads()) all.push_back(view_json(view, now_hosts));
  return json{{"workloads", all}};
}

json Shell::images() const {
  struct Found {
    ImageReport report;
    std::vector<std::string> holders;
  };
  std::map<ImageId, Found> found;
  for (const auto& host : core_.hosts()) {
    if (!host.alive) continue;
    for (const ImageReport& image : host.report.images) {
      Found& one = found[image.id];
      one.report = image;
      one.holders.push_back(host.report.host.str());
    }
  }
  const auto views = core_.workloads();
  json all = json::array();
  for (const auto& [id, image] : found) {
    const WorkloadView* view = find(views, image.report.workload);
    json one{{"id", id.str()},
             {"workload", image.report.workload.str()},
             {"holders", image.holders},
             {"bytes", image.report.bytes},
             {"age_ms", image.report.age.count()},
             {"current", view && view->record.has_image(id) && view->record.image_current()}};
    if (image.report.base) one["base"] = image.report.base->str();
    if (image.report.member_of) one["member_of"] = image.report.member_of->str();
    all.push_back(std::move(one));
  }
  return json{{"images", all}};
}

json Shell::hosts() const {
  json all = json::array();
  const Instant now = os::now();
  for (const auto& host : core_.hosts()) {
    json one = host.report;
    one["alive"] = host.alive;
    one["heard_ms"] = std::chrono::duration_cast<milliseconds>(now - host.last_heard).count();
    all.push_back(std::move(one));
  }
  return json{{"hosts", all}};
}

asio::awaitable<void> Shell::follow_events(const wire::Request& request, const Target& target,
                                           wire::Responder& responder) {
  constexpr auto keep_alive = 500ms;
  constexpr std::size_t batch = 500;
  (void)request;
  const auto limit = target.number("limit", 1000);
  const auto asked_since = target.number("since", 0);
  if (!limit || !asked_since) {
    wire::Response wrong = api::answer(limit ? asked_since.error() : limit.error());
    auto sent = co_await responder.respond(std::move(wrong));
    co_return (void)sent;
  }
  const bool follow = target.flag("follow");
  // Without `since`, the newest `limit`; with it, the `limit` that come after it. Following knows no limit.
  std::uint64_t since = target.query.contains("since") ? *asked_since : events_.before_newest(*limit);
  std::uint64_t left = follow ? ~std::uint64_t{0} : *limit;
  wire::Headers headers;
  headers.emplace_back("content-type", "application/x-ndjson");
  Status sent = co_await responder.start(200, std::move(headers));
  while (sent && !stopped_ && !responder.closed()) {
    std::string text;
    for (const EventLine& line : events_.after(since, std::min<std::uint64_t>(batch, left))) {
      text += line.text + "\n";
      since = line.sequence;
      --left;
    }
    if (text.empty() && !follow) break;
    if (text.empty()) text = "\n";
    sent = co_await responder.write(text);
    if (!follow && left == 0) break;
    if (follow && since >= events_.last()) co_await events_.changed().wait(keep_alive);
  }
}

// ---- one workload --------------------------------------------------------------------------------------------------

asio::awaitable<Result<json>> Shell::on_workload(const wire::Request& request, const Target& target,
                                                 wire::Responder& responder) {
  const WorkloadId id(target.path[1]);
  const std::string action = target.path.size() == 3 ? target.path[2] : "";
  const bool post = request.method == "POST";
  if (action.empty() && request.method == "GET") {
    const auto views = core_.workloads();
    if (const WorkloadView* view = find(views, id)) co_return view_json(*view, core_.hosts());
    co_return fail(Errc::not_found, "no workload is named \"{}\"", id);
  }
  if (action.empty() && request.method == "PUT") co_return co_await deploy(id, request, target, responder);
  if (((action == "exec" || action == "console") && post) || ((action == "logs" || action == "memory") && request.method == "GET"))
    co_return co_await forward(id, request, target);
  if (action == "move" && post) co_return co_await move(id, request, responder);
  if (action == "clone" && post) co_return co_await clone(id, request, responder);
  if (action == "ask" && post) co_return co_await ask(id, request, responder);
  if (action == "idle" && post) co_return idle(id, request);

  const bool removal = action.empty() && request.method == "DELETE";
  if (removal || (post && (action == "stop" || action == "checkpoint"))) {
    auto body = body_of(request);
    if (!body) co_return std::unexpected(body.error());
    bool incremental = false;
    Status status;
    std::uint64_t bytes_per_second = 0;
    if (action == "checkpoint") Fields(*body, "", status).optional("incremental", incremental).optional("bytes_per_second", bytes_per_second);
    if (!status) co_return std::unexpected(status.error());
    const auto extent = incremental ? ControlCore::Extent::changes : ControlCore::Extent::all;
    if (Status can = writable(); !can) co_return std::unexpected(can.error());
    const Instant now = os::now();
    Status done = removal ? core_.remove(id, now) : action == "stop" ? core_.stop(id, now) : core_.renew_image(id, extent, now, bytes_per_second);
    settle();
    if (done) done = writable();  // decided, but not yet so that it survives control
    if (!done) co_return std::unexpected(done.error());
    co_return json::object();
  }
  co_return fail(Errc::not_found, "control has no {} {}", request.method, request.target);
}

asio::awaitable<Result<json>> Shell::deploy(const WorkloadId& id, const wire::Request& request, const Target& target,
                                            wire::Responder& responder) {
  auto spec = api::parse<WorkloadSpec>(request.body);
  if (!spec) co_return std::unexpected(spec.error());
  if (spec->name != id) co_return fail(Errc::invalid_argument, "name: \"{}\" is put as \"{}\"", spec->name, id);
  if (Status good = spec::check(*spec); !good) co_return std::unexpected(good.error());
  if (target.flag("dry_run")) co_return plan(*spec);
  if (Status can = writable(); !can) co_return std::unexpected(can.error());
  auto [number, question] = new_question();
  core_.deploy(number, std::move(*spec), os::now());
  settle();
  auto answer = co_await answer_to(number, question, responder);
  if (!answer) co_return std::unexpected(answer.error());
  if (!answer->route) co_return std::unexpected(answer->route.error());
  co_return json{{"route", *answer->route}};
}

asio::awaitable<Result<json>> Shell::move(const WorkloadId& id, const wire::Request& request,
                                          wire::Responder& responder) {
  auto body = body_of(request);
  if (!body) co_return std::unexpected(body.error());
  std::optional<HostId> host;
  std::optional<Split> split;
  bool from_image = false;
  Status status;
  Fields(*body, "", status).optional("host", host).optional("split", split).optional("from_image", from_image);
  if (!status) co_return std::unexpected(status.error());
  if (host && host->empty()) host.reset();
  if (Status can = writable(); !can) co_return std::unexpected(can.error());
  const auto views = core_.workloads();
  const WorkloadView* view = find(views, id);
  const bool stateful = view && view->record.spec.kind == Kind::vm && view->record.spec.vm.split;
  if (stateful && split && !host && !from_image) co_return co_await resplit(view->record.spec, *split, responder);
  // Otherwise it would go back to its last checkpoint, or to its beginning: only for who says so.
  const bool live = stateful && !from_image;
  if (split && view && !stateful) co_return fail(Errc::conflict, "{} is no VM with split memory", id);
  if (split) {
    WorkloadSpec changed = view ? view->record.spec : WorkloadSpec();
    changed.vm.split = *split;
    if (view)
      if (Status good = spec::check(changed); !good) co_return std::unexpected(good.error());
  }
  auto [number, question] = new_question();
  if (live) core_.move_live(number, id, host, std::move(split), os::now());
  else if (from_image) core_.restore(number, id, std::move(host), std::move(split), os::now());
  else core_.move(number, id, std::move(host), os::now());
  settle();
  auto answer = co_await answer_to(number, question, responder);
  if (!answer) co_return std::unexpected(answer.error());
  if (!answer->route) co_return std::unexpected(answer->route.error());
  co_return json{{"route", *answer->route}};
}

/// A second VM, from its image.
asio::awaitable<Result<json>> Shell::clone(const WorkloadId& origin, const wire::Request& request, wire::Responder& responder) {
  auto body = body_of(request);
  if (!body) co_return std::unexpected(body.error());
  WorkloadId name;
  std::optional<HostId> host;
  std::optional<Split> split;
  std::vector<std::string> service_hosts;
  Status status;
  Fields(*body, "", status).required("as", name).optional("host", host).optional("split", split).optional("service_hosts", service_hosts);
  if (!status) co_return std::unexpected(status.error());
  if (host && host->empty()) host.reset();
  const auto views = core_.workloads();
  const WorkloadView* view = find(views, origin);
  if (!view) co_return fail(Errc::not_found, "no workload is named \"{}\"", origin);
  WorkloadSpec spec = view->record.spec;
  spec.name = name;
  if (split) spec.vm.split = std::move(split);
  if (service_hosts.empty()) service_hosts.push_back(host_name_of_clone(name, spec.service.hosts.front()));
  spec.service.hosts = std::move(service_hosts);
  if (Status good = spec::check(spec); !good) co_return std::unexpected(good.error());
  if (Status can = writable(); !can) co_return std::unexpected(can.error());
  auto [number, question] = new_question();
  core_.clone(number, origin, std::move(spec), std::move(host), os::now());
  settle();
  auto answer = co_await answer_to(number, question, responder);
  if (!answer) co_return std::unexpected(answer.error());
  if (!answer->route) co_return std::unexpected(answer->route.error());
  co_return json{{"route", *answer->route}};
}

/// Where it runs: other hosts keep its memory, or it keeps more or less itself.
asio::awaitable<Result<json>> Shell::resplit(WorkloadSpec spec, const Split& split, wire::Responder& responder) {
  const WorkloadId id = spec.name;
  spec.vm.split = split;
  if (Status good = spec::check(spec); !good) co_return std::unexpected(good.error());
  auto [number, question] = new_question();
  core_.resplit(number, id, split, os::now());
  settle();
  auto answer = co_await answer_to(number, question, responder);
  if (!answer) co_return std::unexpected(answer.error());
  if (!answer->route) co_return std::unexpected(answer->route.error());
  co_return json{{"route", *answer->route}};
}

/// exec, console, logs and memory: what the owner's agent says.
asio::awaitable<Result<json>> Shell::forward(const WorkloadId& id, const wire::Request& request, const Target& target) {
  constexpr auto agent_limit = 10s;  // for its own part; a command has the time that its caller gives it
  const auto views = core_.workloads();
  const WorkloadView* view = find(views, id);
  if (!view) co_return fail(Errc::not_found, "no workload is named \"{}\"", id);
  const Record& record = view->record;
  if (record.phase == OwnerPhase::absent || record.host.empty())
    co_return fail(Errc::conflict, "{} is {}: nothing of it runs", id, name_of(view->state));
  const auto all = core_.hosts();
  auto host = std::ranges::find_if(all, [&](const auto& one) { return one.report.host == record.host; });
  if (host == all.end()) co_return fail(Errc::unavailable, "host {} has not joined", record.host);
  if (!host->alive) co_return fail(Errc::unavailable, "host {}, where it was, does not answer", record.host);

  wire::Request out;
  out.method = request.method;
  out.body = request.body;
  nanoseconds limit = agent_limit;
  if (target.path[2] == "exec") {
    auto body = body_of(request);
    if (!body) co_return std::unexpected(body.error());
    std::vector<std::string> command;
    milliseconds timeout = 60s;
    Status status;
    Fields(*body, "", status).required("command", command).optional("timeout_ms", timeout);
    if (status && command.empty()) status = fail(Errc::invalid_argument, "command: is empty");
    if (!status) co_return std::unexpected(status.error());
    out.headers.emplace_back("content-type", "application/json");
    out.target = fmt::format("/v1/instances/{}/exec", record.instance);
    limit += timeout;
  } else if (target.path[2] == "console") {
    out.headers.emplace_back("content-type", "application/json");
    out.target = fmt::format("/v1/instances/{}/console", record.instance);
  } else if (target.path[2] == "memory") {
    out.target = fmt::format("/v1/instances/{}/memory", record.instance);
  } else {
    const auto lines = target.number("lines", 100);
    if (!lines) co_return std::unexpected(lines.error());
    out.target = fmt::format("/v1/instances/{}/logs?lines={}", record.instance, *lines);
  }
  const HostId main = record.host;
  auto answer = co_await agents_.ask(main, host->report.agent, std::move(out), limit);
  if (answer && target.path[2] == "memory") (*answer)["host"] = main.str();
  co_return answer;
}

// ---- plans and drills ----------------------------------------------------------------------------------------------

/// What deploy() would do: nothing is done.
Result<json> Shell::plan(const WorkloadSpec& spec) const {
  const auto views = core_.workloads();
  const WorkloadView* view = find(views, spec.name);
  std::string change = "create";
  if (view) {
    const WorkloadSpec& old = view->record.spec;
    const bool same = same_instance(old, spec);
    if (view->state == RouteState::stopped)
      change = same ? "start" : "replace";
    else
      change = old == spec ? "nothing" : same ? "policy" : "replace";
  }
  const bool keeps_images = view && (change == "nothing" || change == "policy" || change == "start");

  std::vector<plan::HostView> seen;
  json left_out = json::array();
  for (const auto& host : core_.hosts()) {
    const HostReport& report = host.report;
    plan::HostView one{.host = report.host, .alive = host.alive, .memory_free_bytes = report.memory_free_bytes,
                       .load = report.load};
    for (const InstanceReport& instance : report.instances)
      if (instance.purpose == Purpose::owner && instance.workload != spec.name) ++one.owners;
    if (keeps_images) {
      one.holds_image = view->image_holders.contains(report.host) && view->record.image_current();
      one.holds_frozen = view->standby && view->standby_host == report.host;
    }
    seen.push_back(one);
  }
  json ranking = json::array();
  const std::vector<HostId> ranked = plan::rank(spec, seen, {});
  for (const HostId& host : ranked) {
    auto found = std::ranges::find(seen, host, &plan::HostView::host);
    const Way way = found->holds_frozen ? Way::frozen : found->holds_image ? Way::image : Way::cold;
    ranking.push_back(json{{"host", host.str()}, {"way", name_of(way)}, {"owners", found->owners}, {"load", found->load}});
  }
  for (const plan::HostView& host : seen) {
    if (std::ranges::find(ranked, host.host) != ranked.end()) continue;
    const bool allowed_here = spec.policy.placement.empty() || std::ranges::find(spec.policy.placement, host.host) != spec.policy.placement.end();
    const std::string why = !host.alive                                         ? "it does not answer"
                            : !allowed_here ? "policy.placement does not name it"
                                            : "it has not enough free memory";
    left_out.push_back(json{{"host", host.host.str()}, {"why", why}});
  }
  return json{{"dry_run", true}, {"change", change}, {"hosts", ranking}, {"left_out", left_out}};
}

Result<json> Shell::drill(const wire::Request& request) {
  YADO_ASSIGN(const json body, api::parse_json(request.body), "drill");
  Event note{.kind = "drill"};
  std::string fault, phase;
  Status status;
  Fields(body, "", status)
      .required("fault", fault)
      .optional("phase", phase)
      .optional("host", note.host)
      .optional("workload", note.workload);
  YADO_TRY(status, "drill");
  note.fields = {{"fault", fault}, {"phase", phase.empty() ? "note" : phase}};
  record(note, os::now());
  return json::object();
}

}  // namespace yado::control
