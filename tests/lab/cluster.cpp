#include "cluster.hpp"

#include <fcntl.h>
#include <fmt/ranges.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <fstream>
#include <map>
#include <set>

#include "api/answer.hpp"
#include "api/calls.hpp"
#include "api/json.hpp"
#include "base/units.hpp"
#include "cli/client.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "spec/spec.hpp"
#include "wire/client.hpp"
#include "wire/run.hpp"

namespace yado::labtest {
namespace fs = std::filesystem;
namespace asio = boost::asio;
namespace {

std::string variable(const char* name, const std::string& otherwise) {
  const char* value = std::getenv(name);
  return value && *value ? value : otherwise;
}
std::string program() { return variable("YADO_PROGRAM", "yado"); }
fs::path source() { return variable("YADO_SOURCE", "."); }

std::vector<std::string> clean_environment() {
  return {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"};
}

/// Lines of `from` until one that `last` accepts; what came until then. The rest stays in the pipe.
Result<std::string> read_until(const os::Fd& from, const std::function<bool(const std::string&)>& last,
                               nanoseconds limit) {
  const Instant deadline = os::now() + limit;
  std::string text, line;
  for (;;) {
    const auto left = std::chrono::duration_cast<milliseconds>(deadline - os::now()).count();
    pollfd waiting{from.get(), POLLIN, 0};
    if (left <= 0 || ::poll(&waiting, 1, static_cast<int>(left)) == 0)
      return fail(Errc::timed_out, "no answer; it said:\n{}", text);
    char byte = 0;
    if (::read(from.get(), &byte, 1) <= 0) return fail(Errc::unavailable, "it ended; it said:\n{}", text);
    text += byte;
    if (byte != '\n') {
      line += byte;
      continue;
    }
    if (last(line)) return text;
    line.clear();
  }
}

/// It goes on to print: somebody has to read on, or it would wait for us.
std::thread drain(const os::Fd& from) {
  return std::thread([fd = from.get()] {
    char buffer[4096];
    while (::read(fd, buffer, sizeof buffer) > 0) continue;
  });
}

}  // namespace

Result<Ended> run_program(std::vector<std::string> arguments) {
  YADO_ASSIGN(auto pipe, os::make_pipe(), "pipe");
  os::Spawn wanted;
  wanted.arguments = std::move(arguments);
  wanted.environment = clean_environment();
  for (const char* kept : {"YADO_ROOTS", "YADO_GUESTS", "YADO_DATABASE_HOST"})
    if (const std::string value = variable(kept, ""); !value.empty())
      wanted.environment.push_back(fmt::format("{}={}", kept, value));
  wanted.standard_output = wanted.standard_error = pipe.write.get();
  wanted.death_signal = SIGKILL;
  YADO_ASSIGN(os::Process process, os::spawn(wanted), "spawn");
  pipe.write.reset();
  Ended ended;
  char buffer[4096];
  for (ssize_t bytes; (bytes = ::read(pipe.read.get(), buffer, sizeof buffer)) > 0;)
    ended.output.append(buffer, static_cast<std::size_t>(bytes));
  YADO_ASSIGN(const auto status, process.wait(std::nullopt), "wait");
  ended.status = status->signal != 0 ? 128 + status->signal : status->code;
  return ended;
}

// ---- start and end -------------------------------------------------------------------------------------------------

Result<std::unique_ptr<Cluster>> Cluster::start(ClusterOptions options) {
  std::unique_ptr<Cluster> made(new Cluster);
  static int number = 0;
  made->name_ = options.name.empty() ? fmt::format("t{}-{}", ::getpid(), ++number) : options.name;
  // In memory where there is enough of it: making and removing a database is mostly waiting for a disk.
  std::error_code unknown;
  const bool in_memory = fs::space("/dev/shm", unknown).available > 512_MiB && !unknown;
  std::string scratch = in_memory ? "/dev/shm/yado-lab-XXXXXX" : "/tmp/yado-lab-XXXXXX";
  if (!::mkdtemp(scratch.data())) return fail_errno("mkdtemp");
  made->scratch_ = scratch;
  ::chmod(scratch.c_str(), 0755);  // PostgreSQL's user goes through it
  YADO_TRY(made->start_lab(options), "yado dev");
  made->follower_ = std::thread([mine = made.get()] { mine->follow(); });
  if (options.database) YADO_TRY(made->start_database(), "database");
  return made;
}

Status Cluster::start_lab(const ClusterOptions& options) {
  YADO_ASSIGN(auto pipe, os::make_pipe(), "pipe");
  os::Spawn wanted;
  wanted.arguments = {program(),  "dev",
                      "--name",   name_,
                      "--hosts",  std::to_string(options.hosts),
                      "--listen", "127.0.0.1:0",
                      "--criu",   options.criu ? variable("YADO_CRIU", "none") : "none"};
  if (!options.disk.empty()) wanted.arguments.insert(wanted.arguments.end(), {"--disk", options.disk});
  wanted.arguments.insert(wanted.arguments.end(), {"--link", options.link});
  wanted.environment = clean_environment();
  wanted.standard_output = wanted.standard_error = pipe.write.get();
  wanted.death_signal = SIGKILL;
  YADO_ASSIGN(dev_, os::spawn(wanted), "spawn");
  pipe.write.reset();
  dev_output_ = std::move(pipe.read);
  YADO_TRY(read_until(
               dev_output_, [](const std::string& line) { return line.starts_with("Ctrl-C"); }, generous),
           "start");
  dev_drain_ = drain(dev_output_);
  YADO_ASSIGN(const json described, lab("GET", "/v1/lab"), "lab");
  front_ = described.value("front", "");
  const std::string gate = described.value("gate", "");
  gate_ = Endpoint{gate.substr(0, gate.rfind(':')),
                   static_cast<std::uint16_t>(std::atoi(gate.substr(gate.rfind(':') + 1).c_str()))};
  return {};
}

Status Cluster::start_database() {
  YADO_ASSIGN(auto pipe, os::make_pipe(), "pipe");
  os::Spawn wanted;
  wanted.arguments = {
      program(), "dev", "exec", "--name", name_, "front", "--", source() / "tools/database", scratch_ / "database",
      front_};
  wanted.environment = clean_environment();
  wanted.standard_output = wanted.standard_error = pipe.write.get();
  wanted.death_signal = SIGKILL;
  YADO_ASSIGN(database_, os::spawn(wanted), "spawn");
  pipe.write.reset();
  database_output_ = std::move(pipe.read);
  YADO_TRY(read_until(
               database_output_, [](const std::string& line) { return line.starts_with("ready "); }, generous),
           "start");
  database_drain_ = drain(database_output_);
  return {};
}

pid_t Cluster::pid() const { return dev_.pidfd().pid(); }

bool Cluster::end() {
  if (!dev_.running()) return true;
  (void)dev_.pidfd().send(SIGINT);
  const auto ended = dev_.wait(60s);
  const bool well = ended && *ended && (*ended)->success();
  kill_all_roles();
  return well;
}

void Cluster::kill_all_roles() {
  dev_.kill();
  database_.kill();
}

Cluster::~Cluster() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    news_.notify_all();
  }
  end();
  kill_all_roles();
  for (std::thread* thread : {&follower_, &dev_drain_, &database_drain_})
    if (thread->joinable()) thread->join();
  std::error_code ignored;
  fs::remove_all(scratch_, ignored);
}

// ---- asking --------------------------------------------------------------------------------------------------------

Result<json> Cluster::control(const std::string& method, const std::string& target, const json& body) const {
  cli::Client client(control_socket());
  return client.call(method, target, body.is_null() ? "" : api::dump(body));
}

Result<json> Cluster::lab(const std::string& method, const std::string& target, const json& body) const {
  cli::Client client(lab_socket());
  return client.call(method, target, body.is_null() ? "" : api::dump(body));
}

Ended Cluster::yado(std::vector<std::string> arguments) const {
  arguments.insert(arguments.begin(), program());
  if (arguments.size() > 1 && arguments[1] != "dev") arguments.insert(arguments.end(), {"--control", control_socket()});
  auto ended = run_program(std::move(arguments));
  return ended ? *ended : Ended{-1, ended.error().text()};
}

Result<Ended> Cluster::exec(const std::string& host, const std::vector<std::string>& command) const {
  cli::Client client(lab_socket());
  Ended ended;
  const json body{{"host", host}, {"command", command}};
  YADO_TRY(client.follow("POST", "/v1/exec", api::dump(body), std::nullopt,
                         [&](const json& line) {
                           ended.output += line.value("output", "");
                           ended.status = line.value("status", ended.status);
                           return true;
                         }),
           "exec");
  return ended;
}

Result<std::vector<std::string>> Cluster::sql(const std::string& statement) const {
  static const std::string psql = [] {
    std::string newest = "/usr/bin/psql";
    std::error_code ignored;
    for (const auto& version : fs::directory_iterator("/usr/lib/postgresql", ignored))
      newest = version.path() / "bin/psql";
    return newest;
  }();
  YADO_ASSIGN(const Ended ended,
              exec("front", {psql, "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-h", front_, "-U", "yado", "-d",
                             "yado", "-c", statement}),
              "psql");
  if (ended.status != 0) return fail(Errc::application, "psql: {}: {}", ended.status, ended.output);
  std::vector<std::string> rows;
  std::string line;
  for (const char c : ended.output) {
    if (c != '\n')
      line += c;
    else
      rows.push_back(std::exchange(line, {}));
  }
  return rows;
}

// ---- faults --------------------------------------------------------------------------------------------------------

Result<Instant> Cluster::fault(const std::string& kind, const std::string& host, const std::string& of) const {
  json body{{"kind", kind}, {"host", host}};
  if (!of.empty()) body["workload"] = of;
  YADO_ASSIGN(const json answer, lab("POST", "/v1/faults", body), kind);
  return Instant(nanoseconds(answer.value("at_ns", std::int64_t{0})));
}

Status Cluster::heal(const std::string& host) const {
  YADO_TRY(lab("POST", "/v1/heal", json{{"host", host}}), "heal");
  return {};
}

// ---- workloads -----------------------------------------------------------------------------------------------------

Result<json> Cluster::spec(const std::string& example, const std::string& name, const std::string& standby,
                           const std::string& consistency) const {
  const fs::path file = source() / "examples" / example / (example + ".toml");
  YADO_ASSIGN(const std::string text, os::read_text(file.native()), "spec");
  const spec::Environment environment{{"YADO_ROOTS", variable("YADO_ROOTS", "")},
                                      {"YADO_GUESTS", variable("YADO_GUESTS", "")},
                                      {"YADO_DATABASE_HOST", front_}};
  YADO_ASSIGN(const WorkloadSpec parsed, spec::parse(text, file.native(), environment), "spec");
  json made = parsed;
  made["name"] = name;
  if (name != parsed.name.str()) made["service"]["hosts"] = {name + ".test"};
  if (!standby.empty()) made["policy"]["standby"] = standby;
  if (!consistency.empty()) made["policy"]["consistency"] = consistency;
  made["policy"]["relocations"] = 1000;  // tests do what nobody's week has
  return made;
}

Result<json> Cluster::deploy(const json& spec) const {
  YADO_ASSIGN(json answer, control("PUT", "/v1/workloads/" + spec.value("name", ""), spec), "deploy");
  return answer["route"];
}

json Cluster::workload(const std::string& name) const {
  auto answer = control("GET", "/v1/workloads/" + name);
  return answer ? *answer : json::object();
}

namespace {
std::string text_of(const json& object, const char* part, const char* field) {
  const auto found = object.find(part);
  return found != object.end() && found->is_object() ? found->value(field, "") : "";
}
}  // namespace

std::string Cluster::owner_host(const std::string& name) const { return text_of(workload(name), "owner", "host"); }
std::string Cluster::owner_instance(const std::string& name) const {
  return text_of(workload(name), "owner", "instance");
}
std::uint64_t Cluster::epoch(const std::string& name) const { return workload(name).value("epoch", std::uint64_t{0}); }

std::string Cluster::why_not_redundant(const std::string& name) const {
  const json view = workload(name);
  if (view.value("state", "") != "up") return fmt::format("{} is {}", name, view.value("state", "unknown"));
  auto hosts = control("GET", "/v1/hosts");
  if (!hosts) return hosts.error().text();
  for (const json& host : (*hosts)["hosts"])
    if (!host.value("alive", false)) return host.value("host", "") + " is silent";
  const std::string standby = view["spec"]["policy"].value("standby", "");
  if (standby == "cold") return "";
  const bool images =
      std::ranges::any_of((*hosts)["hosts"], [](const json& host) { return host.value("checkpoint_works", false); });
  if (images) {
    if (!view["image"].is_object() || !view["image"].value("current", false)) return "no image";
    const std::size_t wanted = std::min<std::size_t>(2, (*hosts)["hosts"].size());
    if (view["image"]["holders"].size() < wanted) return fmt::format("{} copies", view["image"]["holders"].size());
    if (wanted > 1 && !view["image"].value("redundant", false)) return "a share of the image is on one host only";
  }
  if (standby == "image") return "";
  if (text_of(view, "standby", "state") != "frozen") return "no standby";
  if (text_of(view, "standby", "host") == text_of(view, "owner", "host")) return "the standby is on the owner's host";
  return "";
}

bool Cluster::redundant(const std::string& name) const { return why_not_redundant(name).empty(); }

bool Cluster::wait_redundant(const std::string& name, nanoseconds limit) const {
  return until([&] { return redundant(name); }, limit);
}

// ---- events --------------------------------------------------------------------------------------------------------

void Cluster::follow() {
  std::uint64_t since = 0;
  std::string text;
  const auto take = [&](std::string_view piece) -> Status {
    const std::lock_guard lock(mutex_);
    if (stopping_) return fail(Errc::canceled, "enough");
    ++pieces_;
    text += piece;
    for (std::size_t end; (end = text.find('\n')) != std::string::npos; text.erase(0, end + 1)) {
      if (end == 0) continue;
      auto event = api::parse_json(std::string_view(text).substr(0, end));
      if (!event) return std::unexpected(event.error());
      since = event->value("seq", since);
      events_.push_back(std::move(*event));
    }
    news_.notify_all();
    return {};
  };
  for (;;) {
    asio::io_context io(1);
    wire::Client client = wire::Client::unix_socket(io, control_socket());
    wire::Request request;
    request.target = fmt::format("/v1/events?follow=1&since={}", since);
    text.clear();
    (void)wire::run(io, client.stream(std::move(request), 5s, 5s, take));
    std::unique_lock lock(mutex_);
    // Control is away: its socket tells nobody when it is back.
    if (news_.wait_for(lock, 200ms, [&] { return stopping_; })) return;
  }
}

bool Cluster::until(const std::function<bool()>& condition, nanoseconds limit) const {
  const Instant deadline = os::now() + limit;
  for (;;) {
    std::uint64_t seen = 0;
    {
      const std::lock_guard lock(mutex_);
      seen = pieces_;
    }
    if (condition()) return true;
    if (os::now() >= deadline) return false;
    std::unique_lock lock(mutex_);
    news_.wait_for(lock, 500ms, [&] { return pieces_ != seen; });  // without control nothing would wake us
  }
}

std::uint64_t Cluster::newest_event() const {
  cli::Client client(control_socket());
  return cli::newest_event(client);
}

std::vector<json> Cluster::events(std::uint64_t since) const {
  const std::lock_guard lock(mutex_);
  std::vector<json> found;
  for (const json& event : events_)
    if (event.value("seq", std::uint64_t{0}) > since) found.push_back(event);
  return found;
}

std::optional<json> Cluster::event(std::uint64_t since, const std::function<bool(const json&)>& wanted,
                                   nanoseconds limit) const {
  std::optional<json> found;
  until(
      [&] {
        for (json& event : events(since))
          if (wanted(event)) {
            found = std::move(event);
            return true;
          }
        return false;
      },
      limit);
  return found;
}

std::optional<json> Cluster::event(std::uint64_t since, const std::string& kind, const std::string& of,
                                   nanoseconds limit) const {
  return event(
      since, [&](const json& event) { return event.value("kind", "") == kind && event.value("workload", "") == of; },
      limit);
}

// ---- what is left --------------------------------------------------------------------------------------------------

std::string Cluster::last_words() const {
  std::string all;
  std::error_code ignored;
  for (const auto& file : fs::directory_iterator(directory() / "log", ignored)) {
    const std::string text = os::read_text(file.path().native()).value_or("");
    std::size_t begin = text.size();
    for (int lines = 0; lines < 40 && begin != std::string::npos && begin > 0; ++lines)
      begin = text.rfind('\n', begin - 1);
    all += fmt::format("--- {}\n{}\n", file.path().filename().native(),
                       text.substr(begin == std::string::npos ? 0 : begin + 1));
  }
  all += "--- events\n";
  std::vector<json> seen = events();
  if (seen.size() > 60) seen.erase(seen.begin(), seen.end() - 60);
  for (const json& event : seen) all += cli::describe_event(event) + "\n";
  return all;
}

std::string Cluster::cgroup(const std::string& host, const std::string& instance) const {
  return fmt::format("yado-{}/{}/{}", name_, host, instance);
}

namespace {

std::map<pid_t, pid_t> parents() {
  std::map<pid_t, pid_t> all;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator("/proc", ignored)) {
    const pid_t pid = std::atoi(entry.path().filename().c_str());
    if (pid <= 0) continue;
    const std::string stat = os::read_text((entry.path() / "stat").native()).value_or("");
    const auto end = stat.rfind(')');
    if (end != std::string::npos) all[pid] = std::atoi(stat.c_str() + end + 4);
  }
  return all;
}

std::set<std::string> namespaces_of(pid_t pid) {
  std::set<std::string> found;
  std::error_code ignored;
  for (const char* directory : {"ns", "fd"})
    for (const auto& entry : fs::directory_iterator(fmt::format("/proc/{}/{}", pid, directory), ignored)) {
      const std::string target = fs::read_symlink(entry.path(), ignored).native();
      for (const char* kind : {"cgroup:[", "ipc:[", "mnt:[", "net:[", "pid:[", "time:[", "user:[", "uts:["})
        if (target.starts_with(kind)) found.insert(target);
    }
  return found;
}

/// Since the boot.
nanoseconds started(pid_t pid) {
  const std::string stat = os::read_text(fmt::format("/proc/{}/stat", pid)).value_or("");
  std::size_t at = stat.rfind(')');
  for (int field = 2; field < 22 && at != std::string::npos; ++field) at = stat.find(' ', at + 1);
  if (at == std::string::npos) return nanoseconds(0);
  return nanoseconds(1'000'000'000 / ::sysconf(_SC_CLK_TCK) * std::atoll(stat.c_str() + at));
}

/// True when somebody above it, but not above us, was there before the lab: it is somebody else's, such as another
/// lab's.
bool is_of_others(pid_t pid, const std::map<pid_t, pid_t>& of, nanoseconds lab_started) {
  std::set<pid_t> ours{0, 1};
  for (pid_t up = ::getpid(); up > 1; up = of.contains(up) ? of.at(up) : 0) ours.insert(up);
  for (; !ours.contains(pid); pid = of.contains(pid) ? of.at(pid) : 0)
    if (started(pid) < lab_started) return true;
  return false;
}

}  // namespace

Traces traces_of(pid_t dev) {
  const auto of = parents();
  const std::set<std::string> ours = namespaces_of(::getpid());
  std::set<std::string> found;
  for (const auto& [pid, parent] : of) {
    pid_t up = pid;
    while (up > 1 && up != dev) up = of.contains(up) ? of.at(up) : 0;
    if (up == dev) found.merge(namespaces_of(pid));
  }
  Traces traces{.namespaces = {}, .lab_started = started(dev)};
  std::ranges::set_difference(found, ours, std::back_inserter(traces.namespaces));
  return traces;
}

std::vector<std::string> running_leftovers(const std::string& lab, const Traces& traces, Instant ended) {
  std::vector<std::string> found;
  const std::set<std::string> theirs(traces.namespaces.begin(), traces.namespaces.end());
  const auto of = parents();
  for (const auto& [pid, parent] : of) {
    // The kernel gives numbers of namespaces again: to whoever was started later, and to others.
    if (started(pid) > ended.time_since_epoch() || is_of_others(pid, of, traces.lab_started)) continue;
    const std::string command = os::read_text(fmt::format("/proc/{}/cmdline", pid)).value_or("");
    if (command.find(lab) != std::string::npos) found.push_back(fmt::format("process {}: {}", pid, command));
    for (const std::string& one : namespaces_of(pid))
      if (theirs.contains(one)) found.push_back(fmt::format("{} of process {}", one, pid));
  }
  return found;
}

std::vector<std::string> files_left(const std::string& lab) {
  std::vector<std::string> found;
  std::error_code ignored;
  if (fs::exists(fs::path("/run/yado") / lab)) found.push_back("/run/yado/" + lab);
  std::vector<fs::path> tops{"/sys/fs/cgroup"};
  for (const auto& entry : fs::directory_iterator("/sys/fs/cgroup", ignored)) tops.push_back(entry.path());
  for (const fs::path& top : tops)
    if (fs::exists(top / ("yado-" + lab))) found.push_back(top / ("yado-" + lab));
  const std::string mounts = os::read_text("/proc/self/mountinfo").value_or("");
  if (mounts.find("/" + lab + "/") != std::string::npos) found.push_back("a mount");
  return found;
}

}  // namespace yado::labtest
