// ./run demo: a real Django site runs as one instance, clients ask it all the time, and hosts die. For every fault the three
// standby levels take turns (cold, image, frozen, cold, …), so that what else happens on this machine hits all alike.

#include <cstdlib>

#include "interruption.hpp"
#include "measure.hpp"
#include "model/names.hpp"
#include "options.hpp"
#include "os/clock.hpp"
#include "stage.hpp"

namespace yado::bench {
namespace {

namespace fs = std::filesystem;

struct Options {
  int repeat = 3;
  bool quick = false;
  double rate = 40;
  fs::path repository = fs::current_path(), results = "bench/results", yado;
};

constexpr auto asked_before = 1s;     ///< so long everything is as it should be before a fault
constexpr auto asked_after = 1s;   ///< and so long clients are watched after the first answer
constexpr auto answer_limit = 60s;    ///< a service that is not back by then is not coming back
const std::vector<std::string> faults{"host-silent", "process", "cut"};
const std::vector<StandbyLevel> levels{StandbyLevel::cold, StandbyLevel::image, StandbyLevel::frozen};
const std::string entry_prefix = "demo-";

drill::LoadOptions clients_of(const Stage& stage, double rate) {
  drill::LoadOptions load;
  load.address = stage.gate();
  load.host = stage.spec().service.hosts.at(0);
  load.rate = rate;
  load.path = "/";
  load.contains = "visits";
  load.post_path = "/add";
  load.post_body = "body=" + entry_prefix + "{n}";
  load.post_status = 201;
  // Without an idempotency key: so a POST whose outcome is unknown is reported as such instead of being repeated.
  return load;
}

/// One fault at one standby level: from everything as it should be, back to everything as it should be.
Result<Measured> measure(Stage& stage, const drill::Load& load, const std::string& fault, StandbyLevel level) {
  Measured one{.fault = fault, .variant = std::string(name_of(level))};
  YADO_TRY(stage.deploy(level), "standby level");
  YADO_TRY(stage.wait_complete(level), "before the fault");
  one.begin = os::now();
  const auto warm = load.wait_for([&](const drill::Sample& s) { return s.correct && s.due >= one.begin + asked_before; }, answer_limit);
  if (!warm) return fail(Errc::unavailable, "the site does not answer as it should before the fault");
  const std::uint64_t since = stage.newest_event();
  YADO_ASSIGN(const Owner before, stage.owner(), "before the fault");
  YADO_ASSIGN(one.injected, stage.inject(fault, before.host), "fault");
  const auto back = load.wait_for(
      [&](const drill::Sample& s) { return s.correct && s.epoch > before.epoch && s.ended >= one.injected; }, answer_limit);
  if (!back)
    return fail(Errc::timed_out, "no new owner answers {} s after {} on {}. Events:\n{}", answer_limit.count(), fault, before.host,
                stage.last_events());
  (void)load.wait_for([&](const drill::Sample& s) { return s.due >= back->ended + asked_after; }, answer_limit);
  YADO_ASSIGN(const auto moments, stage.moments_since(since), "events");
  one.run.timeline = drill::timeline_of(moments, load.samples(), stage.spec().name.str(), before.host, before.epoch, one.injected);
  YADO_TRY(stage.heal(before.host), "heal");
  YADO_TRY(stage.wait_complete(level), "after the fault");
  one.end = os::now();
  return one;
}

/// What clients were told against what the database counted. True when nothing acknowledged is missing, nothing was
/// counted twice, and nothing that was refused took effect.
Result<bool> compare_with_database(Stage& stage, const std::vector<drill::Sample>& samples) {
  YADO_ASSIGN(const auto counted, stage.entries(entry_prefix), "database");
  std::size_t acknowledged = 0, missing = 0, unknown = 0, unknown_done = 0, refused = 0, refused_done = 0, twice = 0;
  for (const auto& [entry, times] : counted) twice += times > 1;
  for (const drill::Sample& sample : samples) {
    if (!sample.post) continue;
    const bool done = counted.contains(entry_prefix + std::to_string(sample.number));
    if (sample.correct)
      ++acknowledged, missing += !done;
    else if (sample.unknown)
      ++unknown, unknown_done += done;
    else
      ++refused, refused_done += done;
  }
  fmt::print("The database: {} POSTs were acknowledged, {} of them are missing; {} entries stand there twice;\n"
             "of {} unknown outcomes {} took effect; of {} refused POSTs {} did.\n",
             acknowledged, missing, twice, unknown, unknown_done, refused, refused_done);
  return missing == 0 && twice == 0 && refused_done == 0;
}

void assign_samples(Report& report, const std::vector<drill::Sample>& samples) {
  for (Measured& one : report.runs) {
    for (const drill::Sample& sample : samples)
      if (sample.due >= one.begin && sample.due < one.end) one.samples.push_back(sample);
    one.run.seen = drill::seen_by_clients(one.samples);
  }
}

Result<bool> demonstrate(const Options& options, Interruption& interruption) {
  const Progress say;
  Report report{.application = "django", .machine = describe_machine(), .faults = faults};
  for (StandbyLevel level : levels) report.variants.emplace_back(name_of(level));
  fmt::print("A Django site behind gunicorn on three hosts; {:g} requests per second, a fifth of them POSTs; hosts die.\n{}\n\n",
             options.rate, report.machine);

  std::unique_ptr<drill::Load> load;  // outlives the stage: with the lab gone no request can be waited for in vain
  YADO_ASSIGN(auto stage,
              Stage::start({options.yado, options.repository}, say, [&](const Program& lab) { interruption.set_lab(lab); }), "stage");
  YADO_TRY(stage->deploy(StandbyLevel::cold), "site");
  YADO_ASSIGN(const Owner first, stage->owner(), "site");
  say(fmt::format("the site answers on {}: curl -H 'Host: {}' http://{}:{}/", first.host, stage->spec().service.hosts.at(0),
                  stage->gate().address, stage->gate().port));
  YADO_ASSIGN(load, drill::Load::start(clients_of(*stage, options.rate)), "clients");

  const int rounds = options.quick ? 1 : options.repeat;
  for (int round = 1; round <= rounds; ++round)
    for (const std::string& fault : faults)
      for (StandbyLevel level : levels) {
        auto one = measure(*stage, *load, fault, level);
        if (!one) return context(one.error(), fmt::format("{}, {}, round {}", fault, name_of(level), round));
        one->round = round;
        const auto& line = one->run.timeline;
        say(fmt::format("{:<11} {:<6} {}/{}: {}", fault, name_of(level), round, rounds,
                        line ? fmt::format("{} answers after {:.0f} ms", line->host, to_ms(line->recovery)) : "no failover"));
        report.runs.push_back(std::move(*one));
      }

  const std::vector<drill::Sample> samples = load->finish();
  assign_samples(report, samples);
  report.print();
  const drill::Seen seen = drill::seen_by_clients(samples);
  fmt::print("\nFrom the first to the last request: {} requests, {} correct, {} GET errors, {} POST errors, {} unknown outcomes.\n",
             seen.requests, seen.correct, seen.get_errors, seen.post_errors, seen.unknown);
  for (const std::string& error : seen.errors) fmt::print("  {}\n", error);
  YADO_ASSIGN(const bool honest, compare_with_database(*stage, samples), "comparison");
  const std::vector<std::string> wrong = report.wrong();
  for (const std::string& what : wrong) fmt::print("WRONG: {}\n", what);
  for (const std::string& what : report.detours()) fmt::print("Another way: {}\n", what);

  YADO_TRY(report.write_json(options.results / "demo.json"), "results");
  YADO_TRY(report.draw(options.repository / "bench/demo.gp", options.results / "demo.svg"), "picture");
  fmt::print("\nNumbers: {}\nPicture: {}\n", (options.results / "demo.json").native(), (options.results / "demo.svg").native());
  stage.reset();
  say("the lab is gone");
  return honest && wrong.empty() && seen.get_errors == 0;
}

int run(int argc, char** argv) {
  Options options;
  std::error_code error;
  options.yado = fs::read_symlink("/proc/self/exe", error).parent_path().parent_path() / "yado";
  CLI::App app{"Hosts die under a real web site, and clients get answers: the main job, shown and measured.", "./run demo"};
  app.add_option("--repeat", options.repeat, "How often each fault meets each standby level")->check(CLI::Range(1, 100))->capture_default_str();
  app.add_flag("--quick", options.quick, "Once is enough");
  app.add_option("--rate", options.rate, "Requests per second, sent on time whatever became of the others")->check(CLI::Range(1.0, 1000.0))->capture_default_str();
  app.add_option("--results", options.results, "Where demo.json and demo.svg go")->type_name("DIR")->capture_default_str();
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
