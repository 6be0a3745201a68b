// yado drill: a rehearsed failure, measured by clients that go on asking.

#include <algorithm>

#include <nlohmann/json.hpp>

#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/command.hpp"
#include "cli/role.hpp"
#include "drill/load.hpp"
#include "drill/metrics.hpp"
#include "os/clock.hpp"

namespace yado::cli {
namespace {

using nlohmann::json;

struct DrillOptions {
  Common common;
  std::string lab, fault, host, workload, url, path, contains, post, body, key_header;
  double rate = 50, seconds = 10, limit_s = 60, post_share = 0.2;
};

constexpr auto before_fault = 1s;  ///< the service is asked for so long first, so that connections are warm

struct Subject {
  std::string workload, host, instance;
  std::uint64_t epoch = 0;
  json service, standby, image;
};

/// Which workload is meant: the one that is named, or the only one on the host.
Result<Subject> subject_of(Client& control, const DrillOptions& options) {
  YADO_ASSIGN(const json all, control.call("GET", "/v1/workloads"), "drill");
  std::vector<json> meant;
  for (const json& one : all["workloads"]) {
    const bool up = one["owner"].is_object();
    if (!options.workload.empty() ? one.value("name", "") == options.workload
                                  : up && (options.host.empty() || one["owner"].value("host", "") == options.host))
      meant.push_back(one);
  }
  if (meant.empty() && !options.workload.empty()) return fail(Errc::not_found, "no workload is named \"{}\"", options.workload);
  if (meant.size() != 1)
    return fail(Errc::invalid_argument, "{} workloads run on {}: choose one by --workload", meant.size(),
                options.host.empty() ? "this cluster" : options.host);
  const json& one = meant.front();
  if (!one["owner"].is_object()) return fail(Errc::conflict, "{} is {}: nothing to drill", one.value("name", ""), one.value("state", ""));
  return Subject{one.value("name", ""), one["owner"].value("host", ""), one["owner"].value("instance", ""),
                 one.value("epoch", std::uint64_t{0}), one["spec"]["service"], one["standby"], one["image"]};
}

Result<drill::LoadOptions> load_options(const DrillOptions& options, const Subject& subject, const json& lab) {
  const json& ready = subject.service["ready"];
  drill::LoadOptions load;
  const std::string url = options.url.empty() ? lab.value("gate", "") : options.url;
  YADO_ASSIGN(load.address, parse_endpoint(url.starts_with("http://") ? url.substr(7) : url, 80), "--url");
  if (!subject.service["hosts"].empty()) load.host = subject.service["hosts"][0];
  load.rate = options.rate;
  load.path = options.path.empty() ? ready.value("path", "/") : options.path;
  load.status = options.path.empty() ? ready.value("status", 200) : 200;
  load.contains = options.path.empty() ? ready.value("contains", "") : options.contains;
  load.post_path = options.post;
  load.post_body = options.body;
  load.post_share = options.post_share;
  load.key_header = options.key_header.empty() ? subject.service.value("idempotency_header", "") : options.key_header;
  load.limit = std::chrono::duration_cast<nanoseconds>(std::chrono::duration<double>(options.limit_s));
  return load;
}

void print(const DrillOptions& options, const Subject& subject, const std::string& host, const drill::Run& run) {
  fmt::print("{} on {} ({} of {}, {})\n", options.fault, host, host == subject.host ? "owner" : "not the owner",
             subject.workload, Epoch(subject.epoch));
  if (run.timeline) {
    const drill::Timeline& line = *run.timeline;
    fmt::print("  {} answers on {} under {}{}\n", subject.workload, line.host, Epoch(line.epoch),
               line.way.empty() ? "" : ", raised: " + line.way);
    const auto phase = [](const char* name, nanoseconds time) { fmt::print("  {:<14} {:>9.1f} ms\n", name, to_ms(time)); };
    phase("suspect", line.suspect);
    phase("commit", line.commit);
    phase("raise", line.raise);
    phase("ready", line.ready);
    phase("switch", line.switched);
    phase("recovery time", line.recovery);
  } else {
    fmt::print("  no failover: the same owner answers\n");
  }
  const drill::Seen& seen = run.seen;
  fmt::print("  {} requests, {} correct, {} GET errors, {} POST errors, {} unknown outcomes\n", seen.requests, seen.correct,
             seen.get_errors, seen.post_errors, seen.unknown);
  fmt::print("  slowest request {:.1f} ms, longest gap without a correct answer {:.1f} ms\n", to_ms(seen.slowest), to_ms(seen.gap));
  for (const std::string& error : seen.errors) fmt::print("  {}\n", error);
}

int run_drill(const DrillOptions& options) {
  auto control = Client::control(options.common.control);
  if (!control) return complain(control.error()), Exit::no_control;
  auto lab_socket = find_socket(options.lab, "YADO_LAB", "lab.sock");
  if (!lab_socket) return complain(lab_socket.error()), Exit::no_control;
  Client lab_client(*lab_socket);
  auto lab = lab_client.call("GET", "/v1/lab");
  if (!lab) return complain(lab_client, lab.error());
  auto subject = subject_of(*control, options);
  if (!subject) return complain(*control, subject.error());
  auto wanted = load_options(options, *subject, *lab);
  if (!wanted) return complain(wanted.error());
  const std::string host = options.host.empty() ? subject->host : options.host;
  const bool moves = host == subject->host && options.fault != "control" && options.fault != "agent" && options.fault != "disk-full";

  auto load = drill::Load::start(std::move(*wanted));
  if (!load) return complain(load.error());
  const Instant begun = os::now();
  auto warm = (*load)->wait_for([&](const drill::Sample& s) { return s.correct && s.due >= begun + before_fault; }, 30s);
  if (!warm) {
    const auto samples = (*load)->finish();
    return complain(Error{Errc::unavailable, fmt::format("{} does not answer as it should before the drill: {}", subject->workload,
                                                         samples.empty() ? "no answer" : samples.back().error)});
  }
  const std::uint64_t since = newest_event(*control);
  json note{{"fault", options.fault}, {"host", host}, {"workload", subject->workload}, {"phase", "begin"}};
  if (auto noted = control->call("POST", "/v1/drills", note.dump()); !noted) return complain(*control, noted.error());

  json fault{{"kind", options.fault}, {"host", options.fault == "control" ? "" : host}};
  if (options.fault == "process") fault["workload"] = subject->workload;
  auto injected = lab_client.call("POST", "/v1/faults", fault.dump());
  if (!injected) return complain(lab_client, injected.error());
  const Instant at{nanoseconds((*injected).value("at_ns", std::int64_t{0}))};
  if (!options.common.json) fmt::print(stderr, "{} is in force on {}\n", options.fault, host);

  // What a client sees decides how long: the first answer from the new owner, and --for at least.
  const auto least = std::chrono::duration_cast<nanoseconds>(std::chrono::duration<double>(options.seconds));
  if (moves)
    (void)(*load)->wait_for([&](const drill::Sample& s) { return s.correct && s.epoch > subject->epoch; },
                            std::max<nanoseconds>(least, 60s));
  (void)(*load)->wait_for([&](const drill::Sample& s) { return s.due >= at + least; }, std::max<nanoseconds>(least, 0ns) + 60s);

  const json healing{{"host", options.fault == "control" ? "front" : host}};
  auto healed = lab_client.call("POST", "/v1/heal", healing.dump());
  if (!healed) return complain(lab_client, healed.error());
  const std::vector<drill::Sample> samples = (*load)->finish();

  std::vector<drill::Moment> moments;
  auto read = control->follow(fmt::format("/v1/events?limit=100000&since={}", since), [&](const json& event) {
    if (auto moment = drill::moment_of(event)) moments.push_back(std::move(*moment));
    return true;
  });
  if (!read) return complain(*control, read.error());
  note["phase"] = "end";
  (void)control->call("POST", "/v1/drills", note.dump());

  drill::Run run;
  run.seen = drill::seen_by_clients(samples);
  run.timeline = drill::timeline_of(moments, samples, subject->workload, host, subject->epoch, at);
  if (options.common.json) {
    const std::string variant = run.timeline ? run.timeline->way : "none";
    const json rows = drill::rows_of(subject->workload + " " + options.fault, variant, {run});
    fmt::print("{}\n", api::dump_pretty(rows));
  } else {
    print(options, *subject, host, run);
  }
  return moves && !run.timeline ? Exit::failed : Exit::ok;
}

}  // namespace

void add_drill(CLI::App& app, Outcome& outcome) {
  auto options = std::make_shared<DrillOptions>();
  CLI::App* command = app.add_subcommand(
      "drill", "Rehearse a failure in the lab while clients go on asking, then heal it; prints where the time went");
  command
      ->add_option("fault", options->fault,
                   "host-silent: link dropped, then everything killed. process: the instance's processes killed. cut: link "
                   "dropped. one-way-in, one-way-out: one direction dropped. lossy: every tenth packet "
                   "dropped. freeze: nothing on the host runs. control, agent: "
                   "killed. disk-full: the host's disk (`yado dev --disk`)")
      ->required()
      ->check(CLI::IsMember({"host-silent", "process", "cut", "one-way-in", "one-way-out", "lossy", "freeze", "control", "agent", "disk-full"}))
      ->type_name("FAULT");
  command->add_option("host", options->host, "Where; without it, the host of the workload's owner")->type_name("HOST");
  command->add_option("--workload", options->workload, "Whom the clients ask; may be left out when it is clear")->type_name("NAME");
  command->add_option("--for", options->seconds, "Seconds to go on asking with the fault in force")
      ->transform(CLI::AsNumberWithUnit(std::map<std::string, double>{{"ms", 0.001}, {"s", 1}, {"min", 60}}, CLI::AsNumberWithUnit::CASE_SENSITIVE))
      ->capture_default_str();
  command->add_option("--rate", options->rate, "Requests per second, sent on time whatever became of the others")->capture_default_str();
  command->add_option("--url", options->url, "Where to ask; without it, the lab's gate")->type_name("ADDRESS:PORT");
  command->add_option("--path", options->path, "GET this instead of the service's readiness request")->type_name("PATH");
  command->add_option("--contains", options->contains, "With --path: what a correct answer contains")->type_name("TEXT");
  command->add_option("--post", options->post, "POST here too; {n} stands for the request's number. What a POST does to the application is yours to know")->type_name("PATH");
  command->add_option("--body", options->body, "Body of a POST; {n} stands for the request's number")->type_name("TEXT");
  command->add_option("--post-share", options->post_share, "Share of POSTs among the requests")->check(CLI::Range(0.0, 1.0))->capture_default_str();
  command->add_option("--key-header", options->key_header, "Header that carries a key of its own in every POST; without it, the "
                                                           "service's idempotency_header")
      ->type_name("NAME");
  command->add_option("--lab", options->lab, "The lab's socket; without it $YADO_LAB, or the only lab that runs")->type_name("PATH");
  add_common(*command, options->common);
  on_chosen(*command, outcome, [options] { return run_drill(*options); });
}

}  // namespace yado::cli
