// ./run demo split-vm: a virtual machine whose memory three hosts keep is looked at, moves to another main host while it runs, is
// checkpointed, loses its main host, goes on from the checkpoint elsewhere, and at last has all of its memory on one host. Everything is
// done by what a person has too: the yado binary, control's API and the lab's (docs/api.md).

#include <unistd.h>

#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <sstream>

#include "api/answer.hpp"
#include "api/json.hpp"
#include "cli/client.hpp"
#include "cli/table.hpp"
#include "drill/metrics.hpp"
#include "image/store.hpp"
#include "interruption.hpp"
#include "measure.hpp"
#include "memory_trace.hpp"
#include "options.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "spec/spec.hpp"
#include "wire/client.hpp"
#include "wire/run.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Options {
  double rate = 20;
  fs::path repository = fs::current_path(), results = "bench/results", yado;
};

constexpr auto watched = 10s;   ///< before the checkpoint, between it and the fault, and after the recovery
constexpr auto patience = 60s;  ///< a demo that hangs ends with a reason; nothing is decided by it
constexpr auto run_directory = "/run/yado";
const std::vector<std::string> hosts{"h1", "h2", "h3", "h4"};

/// A lab of its own with the VM in it.
class SplitLab {
 public:
  static Result<std::unique_ptr<SplitLab>> start(const Options& options, Interruption& interruption) {
    const std::string name = fmt::format("demo-split-{}", ::getpid());
    YADO_ASSIGN(auto program,
                Program::start({options.yado.native(), "dev", "--name", name, "--hosts", std::to_string(hosts.size()),
                                "--listen", "127.0.0.1:0", "--dir", run_directory, "--criu", "none"}),
                "lab");
    interruption.set_lab(*program);
    YADO_TRY(program->wait_for_line("lab " + name), "lab");  // greets when every host has joined
    std::unique_ptr<SplitLab> lab(new SplitLab(std::move(program), options.yado, fs::path(run_directory) / name));
    YADO_ASSIGN(const json seen, lab->lab_api_.call("GET", "/v1/lab"), "lab");
    const std::string gate = seen.value("gate", "");
    const auto colon = gate.rfind(':');
    if (colon == std::string::npos) return fail(Errc::corrupt, "the lab's gate \"{}\" is not ADDRESS:PORT", gate);
    lab->gate_ = {gate.substr(0, colon), static_cast<std::uint16_t>(std::atoi(gate.c_str() + colon + 1))};
    YADO_TRY(lab->read_spec(options.repository / "examples/memvm/memvm.toml"), "spec");
    return lab;
  }

  const Endpoint& gate() const { return gate_; }
  const WorkloadSpec& spec() const { return spec_; }
  cli::Client& control() { return control_; }
  std::string target() const { return fmt::format("/v1/workloads/{}", spec_.name); }

  /// Returns when the guest answers.
  Status deploy() {
    const json body = spec_;
    YADO_TRY(control_.call("PUT", target(), api::dump(body)), "deploy");
    return {};
  }

  /// `yado COMMAND… --control …`; what it printed.
  Result<std::string> yado(std::vector<std::string> words) const {
    words.insert(words.begin(), yado_.native());
    words.insert(words.end(), {"--control", control_.socket()});
    return run_program(std::move(words));
  }

  /// Looks again at every line of control's event stream, which has a keep-alive twice a second.
  Status wait_until(const std::string& what, const std::function<bool(const json& workload)>& reached) {
    const Instant give_up = os::now() + patience;
    boost::asio::io_context io;
    wire::Client events = wire::Client::unix_socket(io, control_.socket());
    wire::Request request;
    request.target = fmt::format("/v1/events?follow=1&since={}", cli::newest_event(control_));
    Status outcome = fail(Errc::unavailable, "{}: control's event stream ended", what);
    (void)wire::run(io, events.stream(std::move(request), 10s, 10s, [&](std::string_view) -> Status {
      auto seen = control_.call("GET", target());
      if (!seen)
        outcome = std::unexpected(seen.error());
      else if (reached(*seen))
        outcome = Status{};
      else if (os::now() > give_up)
        outcome = fail(Errc::timed_out, "{}: not within {} s: {}", what, patience.count(), seen->dump());
      else
        return {};
      return fail(Errc::canceled, "seen enough");
    }));
    return outcome;
  }

  Result<image::Manifest> manifest(const std::string& host, const std::string& image) const {
    YADO_ASSIGN(const image::Store store, image::Store::look_into(directory_ / host / "images"), "image");
    return store.read(ImageId(image));
  }

  Result<Instant> kill(const std::string& host) {
    YADO_ASSIGN(const json injected,
                lab_api_.call("POST", "/v1/faults", json{{"kind", "host-silent"}, {"host", host}}.dump()), "fault");
    return Instant(nanoseconds(injected.value("at_ns", std::int64_t{0})));
  }

  Result<std::vector<drill::Moment>> moments() {
    std::vector<drill::Moment> all;
    YADO_TRY(control_.follow("/v1/events?limit=10000",
                             [&](const json& line) {
                               if (auto moment = drill::moment_of(line)) all.push_back(std::move(*moment));
                               return true;
                             }),
             "events");
    return all;
  }

  /// What the guest says now.
  Result<std::string> page() {
    boost::asio::io_context io;
    wire::Client client = wire::Client::plain(io, gate_.address, gate_.port);
    wire::Request request;
    request.target = "/";
    request.headers.emplace_back("host", spec_.service.hosts.at(0));
    YADO_ASSIGN(const wire::Response answer, wire::run(io, client.call(std::move(request), patience)), "web page");
    return answer.body.substr(0, answer.body.find('\n'));
  }

 private:
  SplitLab(std::unique_ptr<Program> program, fs::path yado, fs::path directory)
      : program_(std::move(program)),
        yado_(std::move(yado)),
        directory_(std::move(directory)),
        control_((directory_ / "control.sock").native()),
        lab_api_((directory_ / "lab.sock").native()) {}

  Status read_spec(const fs::path& file) {
    YADO_ASSIGN(const std::string text, os::read_text(file), "read");
    spec::Environment environment;
    environment.emplace("YADO_GUESTS", std::getenv("YADO_GUESTS"));
    YADO_ASSIGN(spec_, spec::parse(text, file.native(), environment), "parse");
    spec_.policy.placement = {HostId("h1"), HostId("h2"), HostId("h3"), HostId("h4")};
    return {};
  }

  std::unique_ptr<Program> program_;
  fs::path yado_, directory_;
  cli::Client control_, lab_api_;
  Endpoint gate_;
  WorkloadSpec spec_;
};

Status check_machine() {
  if (::geteuid() != 0)
    return fail(Errc::permission, "a lab needs root: start it by ./run demo split-vm, which asks for it");
  const char* guests = std::getenv("YADO_GUESTS");
  std::error_code ignored;
  if (!guests || !fs::exists(fs::path(guests) / "memvm/kernel", ignored))
    return fail(Errc::not_found,
                "no guest memvm below YADO_GUESTS: ./run demo split-vm makes it (tools/make-guest memvm DIR/memvm)");
  return {};
}

struct Checkpoint {
  std::string image;
  double pause_ms = 0, took_ms = 0;
  std::vector<std::pair<std::string, std::uint64_t>> bytes;  ///< by host
};

/// What the driver says of it, from the manifest (src/workload/vm/driver.hpp).
Result<Checkpoint> read_checkpoint(const SplitLab& lab, const std::string& host, const std::string& image) {
  YADO_ASSIGN(const image::Manifest manifest, lab.manifest(host, image), "checkpoint");
  const auto property = [&](const char* key) {
    const auto found = manifest.properties.find(key);
    return found == manifest.properties.end() ? std::string() : found->second;
  };
  Checkpoint checkpoint{.image = image,
                        .pause_ms = std::atof(property("pause_us").c_str()) / 1000,
                        .took_ms = std::atof(property("took_ms").c_str()),
                        .bytes = {}};
  std::istringstream lines(property("shares"));
  std::string who, pages, sum;
  for (std::uint64_t bytes = 0; lines >> who >> pages >> bytes >> sum;)
    checkpoint.bytes.emplace_back(who == "-" ? host : who, bytes);
  if (checkpoint.bytes.empty())
    return fail(Errc::corrupt, "the manifest of {} does not say what each host saved", image);
  return checkpoint;
}

Result<Checkpoint> take_checkpoint(SplitLab& lab, const Progress& say) {
  const std::string name = lab.spec().name.str();
  YADO_ASSIGN(const std::string printed, lab.yado({"checkpoint", name}), "checkpoint");
  std::istringstream lines(printed);
  std::string last;
  for (std::string line; std::getline(lines, line);) last = line;
  say(fmt::format("$ yado checkpoint {}\n           {}", name, last));
  YADO_ASSIGN(const json seen, lab.control().call("GET", lab.target()), "checkpoint");
  YADO_ASSIGN(auto checkpoint, read_checkpoint(lab, seen["owner"].value("host", ""), seen["image"].value("id", "")),
              "checkpoint");
  YADO_TRY(lab.wait_until("the checkpoint's copies",
                          [&](const json& workload) {
                            const json& image = workload["image"];
                            return image.is_object() && image.value("id", "") == checkpoint.image &&
                                   image.value("current", false) && image["holders"].size() >= 2;
                          }),
           "checkpoint");
  say("all of it lies on two hosts now");
  return checkpoint;
}

void print_timeline(const drill::Timeline& line, const drill::Seen& seen, const Progress& say) {
  say(fmt::format("answers on {}, raised from the {}: {:.0f} ms without service", line.host, line.way,
                  to_ms(line.recovery)));
  fmt::print("           suspect {:.0f} ms, commit {:.0f} ms, raise {:.0f} ms, ready {:.0f} ms, switch {:.0f} ms\n",
             to_ms(line.suspect), to_ms(line.commit), to_ms(line.raise), to_ms(line.ready), to_ms(line.switched));
  fmt::print("           {} requests until then, {} correct\n", seen.requests, seen.correct);
}

/// What control says of the last things that happened: without it nobody could tell why it went otherwise than it should.
std::string last_events(const SplitLab& lab) {
  const auto printed = lab.yado({"events", "--workload", lab.spec().name.str(), "--limit", "200"});
  return printed ? *printed : printed.error().text();
}

/// It goes on on `to`, and nothing of it is taken back; the first answer from there.
Result<Instant> move_while_it_runs(SplitLab& lab, const drill::Load& load, const std::string& to, std::uint64_t epoch, const Progress& say) {
  const std::string name = lab.spec().name.str();
  const Instant begun = os::now();
  YADO_TRY(lab.yado({"move", name, to}), "move");
  const auto there = load.wait_for([&](const drill::Sample& s) { return s.correct && s.epoch > epoch; }, patience);
  if (!there) return fail(Errc::timed_out, "{} does not answer {} s after it was moved", name, patience.count());
  std::size_t requests = 0, correct = 0;
  nanoseconds slowest{0};
  for (const drill::Sample& sample : load.samples()) {
    if (sample.ended < begun || sample.due > there->ended) continue;
    ++requests;
    correct += sample.correct ? 1 : 0;
    slowest = std::max<nanoseconds>(slowest, sample.ended - sample.due);
  }
  say(fmt::format("$ yado move {} {}\n           it runs on there: {} requests meanwhile, {} correct, the slowest took {:.0f} ms", name, to, requests,
                  correct, to_ms(slowest)));
  return there->ended;
}

/// All of its memory on one host, from the same checkpoint; the first answer from there.
Result<Instant> restore_on_one_host(SplitLab& lab, const drill::Load& load, const std::string& dead,
                                    const Progress& say) {
  const std::string name = lab.spec().name.str();
  std::string there;
  std::uint64_t epoch = 0;
  YADO_TRY(lab.wait_until("a copy of the checkpoint on another host",
                          [&](const json& workload) {
                            epoch = workload.value("epoch", std::uint64_t{0});
                            if (!workload["image"].is_object() || !workload["owner"].is_object()) return false;
                            for (const json& holder : workload["image"]["holders"])
                              if (holder != dead && holder != workload["owner"]["host"])
                                there = holder.get<std::string>();
                            return !there.empty();
                          }),
           "restore");
  YADO_TRY(lab.yado({"restore", name, "--over", there}), "restore");
  const auto back = load.wait_for([&](const drill::Sample& s) { return s.correct && s.epoch > epoch; }, patience);
  if (!back) return fail(Errc::timed_out, "{} does not answer {} s after it was restored", name, patience.count());
  say(fmt::format("$ yado restore {} --over {}\n           the same checkpoint once more, and one host alone", name,
                  there));
  return back->ended;
}

std::vector<Mark> marks_of(const std::vector<drill::Moment>& moments, Instant first, Instant moved, Instant fault, Instant recovered,
                           Instant restored) {
  std::vector<Mark> marks{{moved, "moved"}};
  for (const drill::Moment& one : moments)
    if (one.kind == "image" && one.at >= first) marks.push_back({one.at, "checkpoint"});
  marks.push_back({fault, "fault"});
  marks.push_back({recovered, "recovered"});
  marks.push_back({restored, "restored"});
  return marks;
}

Status write_json(const fs::path& file, const std::string& machine, const Checkpoint& checkpoint, const drill::Run& run,
                  const std::vector<MemorySample>& samples, const std::vector<Mark>& marks) {
  std::vector<drill::Row> rows = drill::rows_of("bigvm host-silent", "image", {run});
  const auto add = [&](const std::string& metric, const char* unit, double value) {
    rows.push_back(drill::summarize("bigvm checkpoint", "live", metric, unit, {value}));
  };
  add("checkpoint_s", "s", checkpoint.took_ms / 1000);
  add("pause_ms", "ms", checkpoint.pause_ms);
  for (const auto& [host, bytes] : checkpoint.bytes) add("bytes_disk " + host, "B", static_cast<double>(bytes));
  json all = trace_json(samples, marks);
  all["machine"] = machine;
  for (const drill::Row& row : rows) {
    json one = row;
    for (const char* number : {"median", "p95", "min", "max"})
      one[number] = std::round(row.median * 1000) / 1000;  // n is 1
    all["rows"].push_back(std::move(one));
  }
  std::error_code error;
  fs::create_directories(file.parent_path(), error);
  return os::replace_text(file, all.dump(1) + "\n", 0644);
}

drill::LoadOptions client_of(const SplitLab& lab, double rate) {
  drill::LoadOptions load;
  load.address = lab.gate();
  load.host = lab.spec().service.hosts.at(0);
  load.rate = rate;
  load.contains = lab.spec().service.ready.contains;
  return load;
}

Result<bool> demonstrate(const Options& options, Interruption& interruption) {
  YADO_TRY(check_machine(), "this machine");
  const Progress say;
  const std::string machine = describe_machine();
  fmt::print(
      "A virtual machine uses more memory than its host gives it; two others keep the rest. Then its host "
      "dies.\n{}\n\n",
      machine);

  std::unique_ptr<drill::Load> load;  // outlives the lab: without it no request can be waited for in vain
  YADO_ASSIGN(auto lab, SplitLab::start(options, interruption), "lab");
  const WorkloadSpec& spec = lab->spec();
  const std::string name = spec.name.str();
  say(fmt::format("a lab of {} hosts; {} boots: Debian's kernel, nginx, and a program that reads 96 MiB over and over",
                  hosts.size(), name));
  YADO_TRY(lab->deploy(), name);
  MemoryTrace trace(lab->control().socket(), name);
  YADO_ASSIGN(load, drill::Load::start(client_of(*lab, options.rate)), "client");
  const auto watch = [&](Instant since) {
    (void)load->wait_for([&](const drill::Sample& s) { return s.due >= since + watched; }, patience + watched);
  };
  const auto tell = [&](const std::string& prefix) -> Result<MemorySample> {
    YADO_ASSIGN(auto sample, MemoryTrace::look(lab->control().socket(), name), name);
    YADO_ASSIGN(const std::string page, lab->page(), name);
    say(fmt::format("{}{}; {} faults so far, p50 {} us, p99 {} us\n           it says: \"{}\"", prefix,
                    describe(sample), sample.faults, sample.fault_p50_us, sample.fault_p99_us, page));
    return sample;
  };
  say(fmt::format(
      "it answers; {} of its {} may be on its main host. {:g} times a second a client asks, and every answer must say "
      "\"0 wrong\"",
      cli::format_bytes(spec.vm.split->local_bytes), cli::format_bytes(spec.vm.memory_bytes), options.rate));
  watch(os::now());
  YADO_ASSIGN(const MemorySample at_first, tell("its memory: "), "memory");
  YADO_ASSIGN(const Instant moved, move_while_it_runs(*lab, *load, "h4", at_first.epoch, say), "move");
  watch(os::now());
  YADO_TRY(tell("its memory: "), "memory");

  YADO_ASSIGN(const Checkpoint checkpoint, take_checkpoint(*lab, say), "checkpoint");
  watch(os::now());
  YADO_ASSIGN(const MemorySample before, tell("before the fault: "), "memory");
  YADO_ASSIGN(const Instant fault, lab->kill(before.main_host), "fault");
  say(before.main_host + " is dead: its link first, then everything in it; with it goes a part of the memory");
  const auto back =
      load->wait_for([&](const drill::Sample& s) { return s.correct && s.epoch > before.epoch; }, patience);
  if (!back) return fail(Errc::timed_out, "{} does not answer {} s after its host died; control says:\n{}", name, patience.count(), last_events(*lab));
  YADO_ASSIGN(const auto moments, lab->moments(), "events");
  drill::Run run;
  run.timeline = drill::timeline_of(moments, load->samples(), name, before.main_host, before.epoch, fault);
  if (!run.timeline) return fail(Errc::internal, "the events do not say how {} was recovered", name);
  print_timeline(*run.timeline, drill::seen_by_clients(load->samples()), say);
  if (run.timeline->way != "image") fmt::print("WRONG: it was raised {}, not from its checkpoint; control says:\n{}", run.timeline->way, last_events(*lab));
  YADO_TRY(tell("back at the checkpoint's instant, what is not here yet lies in its image: "), "memory");
  watch(back->ended);
  YADO_ASSIGN(const Instant restored, restore_on_one_host(*lab, *load, before.main_host, say), "restore");
  watch(restored);
  YADO_TRY(tell("its memory: "), "memory");

  run.seen = drill::seen_by_clients(load->finish());
  const auto samples = trace.finish();
  if (samples.empty()) return fail(Errc::internal, "the pager was never heard");
  const auto marks = marks_of(moments, samples.front().at, moved, fault, back->ended, restored);
  say(fmt::format("{} requests, {} correct, {} lost; the slowest took {:.0f} ms", run.seen.requests, run.seen.correct,
                  run.seen.get_errors, to_ms(run.seen.slowest)));
  for (const std::string& error : run.seen.errors) fmt::print("  {}\n", error);

  YADO_TRY(write_json(options.results / "split-demo.json", machine, checkpoint, run, samples, marks), "results");
  YADO_TRY(draw_trace(options.repository / "bench/split_demo.gp", options.results / "split-demo.svg", samples, marks,
                      hosts, machine),
           "picture");
  lab.reset();
  say("the lab is gone");
  fmt::print("\nNumbers: {}\nPicture: {}\nMeasured against the conventional way: ./run bench split-vm\n",
             (options.results / "split-demo.json").native(), (options.results / "split-demo.svg").native());
  return run.seen.get_errors == 0 && run.timeline->way == "image";
}

int run(int argc, char** argv) {
  Options options;
  std::error_code error;
  options.yado = fs::read_symlink("/proc/self/exe", error).parent_path().parent_path() / "yado";
  CLI::App app{"A virtual machine whose memory several hosts keep, checkpointed and recovered: shown and measured.",
               "./run demo split-vm"};
  app.add_option("--rate", options.rate, "Requests per second, sent on time whatever became of the others")
      ->check(CLI::Range(1.0, 200.0))
      ->capture_default_str();
  app.add_option("--results", options.results, "Where split-demo.json and split-demo.svg go")
      ->type_name("DIR")
      ->capture_default_str();
  if (const auto ended = read_options(app, argc, argv, "demo")) return *ended;
  Interruption interruption;
  auto good = demonstrate(options, interruption);
  interruption.let_through();
  if (!good) {
    fmt::print(stderr, "demo: {}\n", good.error().message);
    return 1;
  }
  if (!*good) fmt::print(stderr, "demo: something is wrong (above)\n");
  return *good ? 0 : 1;
}

}  // namespace
}  // namespace yado::bench

int main(int argc, char** argv) { return yado::bench::run(argc, argv); }
