#include "workload/container/container.hpp"

#include <cerrno>
#include <charconv>
#include <csignal>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/sched.h>
#include <poll.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/log.hpp"
#include "os/clock.hpp"
#include "os/file.hpp"
#include "os/process.hpp"
#include "os/user_namespace.hpp"
#include "workload/container/disk_archive.hpp"
#include "workload/container/first_process.hpp"
#include "workload/container/listeners.hpp"
#include "workload/container/root_fs.hpp"
#include "workload/container/system_calls.hpp"
#include "workload/container/thaw_order.hpp"

namespace yado::container {
namespace {

namespace fs = std::filesystem;

constexpr std::uint32_t default_pids = 1024;
constexpr nanoseconds freeze_limit = 10s;  // a task in an uninterruptible sleep (a disk that hangs) holds it up
constexpr nanoseconds settle_limit = 200ms;  // children that are busy do not hold their parents for longer
constexpr unsigned long long new_time_namespace = 0x80;  // CLONE_NEWTIME
constexpr const char* default_path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
constexpr const char* device_names[] = {"null", "zero", "full", "random", "urandom", "tty"};

std::map<std::string, std::string> environment_of(const ContainerSpec& spec) {
  std::map<std::string, std::string> all = {{"PATH", default_path}, {"HOME", spec.uid == 0 ? "/root" : "/"}};
  for (const auto& [key, value] : spec.environment) all[key] = value;
  return all;
}

/// argv, envp and what else must be ready before the clone, because nothing is allocated after it.
struct Prepared {
  FirstProcess plan;
  std::vector<char*> arguments, environment;

  static Result<std::unique_ptr<Prepared>> make(const ContainerSpec& spec, const std::vector<std::string>& command) {
    if (command.empty() || command[0].empty()) return fail(Errc::invalid_argument, "the command is empty");
    auto made = std::make_unique<Prepared>();
    FirstProcess& plan = made->plan;
    plan.command = command;
    plan.working_directory = spec.working_directory.empty() ? "/" : spec.working_directory;
    plan.uid = spec.uid;
    plan.gid = spec.gid;
    const auto environment = environment_of(spec);
    for (const auto& [key, value] : environment) plan.environment.push_back(key + "=" + value);
    if (command[0].find('/') != std::string::npos) {
      plan.search.push_back(command[0]);
    } else {
      std::string_view path = environment.at("PATH");
      while (!path.empty()) {
        const std::size_t end = std::min(path.find(':'), path.size());
        if (end > 0) plan.search.push_back(std::string(path.substr(0, end)) + "/" + command[0]);
        path.remove_prefix(std::min(end + 1, path.size()));
      }
    }
    YADO_ASSIGN(plan.system_calls, default_system_calls(), "container");
    for (std::string& text : plan.command) made->arguments.push_back(text.data());
    for (std::string& text : plan.environment) made->environment.push_back(text.data());
    made->arguments.push_back(nullptr);
    made->environment.push_back(nullptr);
    return made;
  }
};

Status read_report(const os::Fd& report, std::string_view doing) {
  std::string text;
  char buffer[1024];
  for (;;) {
    const ssize_t n = ::read(report.get(), buffer, sizeof buffer);
    if (n > 0) text.append(buffer, static_cast<std::size_t>(n));
    else if (n == 0 || errno != EINTR) break;
  }
  if (text.empty()) return {};
  const std::size_t colon = std::min(text.find(':'), text.size() - 1);
  return fail(static_cast<Errc>(std::atoi(text.c_str())), "{}: {}", doing, text.substr(colon + 1));
}

/// clone3 as a fork into new namespaces. Raw: the child uses nothing of libc that a lock could guard.
Result<pid_t> clone_into(unsigned long long flags) {
  clone_args arguments{};
  arguments.flags = flags;
  arguments.exit_signal = SIGCHLD;
  const long pid = ::syscall(SYS_clone3, &arguments, sizeof arguments);
  if (pid < 0) return fail_errno("clone3 with new namespaces");
  return static_cast<pid_t>(pid);
}

/// The calling thread in another network namespace for a while.
class InNetwork {
 public:
  static Result<InNetwork> enter(int wanted) {
    InNetwork here;
    if (wanted < 0) return here;
    YADO_ASSIGN(here.home_, os::open_path("/proc/thread-self/ns/net", O_RDONLY), "network namespace");
    if (::setns(wanted, CLONE_NEWNET) != 0) return fail_errno("enter the network namespace");
    return here;
  }
  InNetwork(InNetwork&&) noexcept = default;
  ~InNetwork() {
    if (home_.valid() && ::setns(home_.get(), CLONE_NEWNET) != 0)
      log::error("could not go back to the own network namespace: {}", std::strerror(errno));
  }

 private:
  InNetwork() = default;
  os::Fd home_;
};

Result<std::string> pipe_id(const os::Fd& pipe) {
  struct stat status {};
  if (::fstat(pipe.get(), &status) != 0) return fail_errno("fstat of the log pipe");
  return fmt::format("pipe:[{}]", status.st_ino);
}

/// True when the process has a handler for the signal.
bool listens_to(pid_t process, int signal) {
  const auto text = os::read_text(fmt::format("/proc/{}/status", process));
  if (!text) return false;
  const std::size_t at = text->find("SigCgt:");
  return at != std::string::npos && ((std::strtoull(text->c_str() + at + 7, nullptr, 16) >> (signal - 1)) & 1) != 0;
}

/// Asks the kernel to have the files in the page cache by the time CRIU reads them.
void read_ahead(const fs::path& directory) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored)) {
    const auto file = os::open_path(entry.path(), O_RDONLY);
    if (file) (void)::posix_fadvise(file->get(), 0, 0, POSIX_FADV_WILLNEED);
  }
}

}  // namespace

struct Container::State {
  // Destroyed from the last to the first: processes (by the cgroup) before the mounts they use.
  ContainerSpec spec;
  Place place;
  std::uint32_t id_base = 0;
  os::Fd network;
  RootFs root;
  os::Fd output_read;
  std::string output_id;  ///< what the pipe is called in an image
  os::Cgroup cgroup;
  os::Pidfd first;
  std::optional<os::ExitStatus> ended;

  ~State() {
    (void)cgroup.remove();
    if (first.valid() && !ended) (void)first.reap();
  }

  static Result<std::unique_ptr<State>> make(const ContainerSpec& spec, const Place& place, std::uint32_t id_base,
                                             const std::optional<fs::path>& disk) {
    auto state = std::make_unique<State>();
    state->spec = spec;
    state->place = place;
    state->id_base = id_base;
    if (place.network_namespace >= 0) {
      state->network = os::Fd(::fcntl(place.network_namespace, F_DUPFD_CLOEXEC, 3));
      if (!state->network.valid()) return fail_errno("network namespace");
    }
    std::error_code error;
    fs::create_directories(place.directory / "work", error);
    if (error) return fail(Errc::io, "make {}: {}", (place.directory / "work").native(), error.message());
    YADO_ASSIGN(state->root, RootFs::make(place.directory, place.root, spec.mounts, id_base, disk), "container");
    YADO_ASSIGN(state->cgroup, os::Cgroup::create(place.cgroup), "container");
    os::CgroupLimits limits{.memory_bytes = spec.memory_bytes, .pids = spec.pids != 0 ? spec.pids : default_pids};
    YADO_TRY(state->cgroup.limit(limits), "container");
    return state;
  }

  /// The pipe of standard output; the write end goes to the child.
  Result<os::Fd> make_output() {
    YADO_ASSIGN(os::Pipe pipe, os::make_pipe(), "log pipe");
    // So that opening /dev/stdout inside works: the pipe belongs to who writes into it.
    if (::fchown(pipe.write.get(), id_base + spec.uid, id_base + spec.gid) != 0) return fail_errno("fchown of the log pipe");
    YADO_TRY(os::set_nonblocking(pipe.read), "log pipe");
    YADO_ASSIGN(output_id, pipe_id(pipe.read), "log pipe");
    output_read = std::move(pipe.read);
    return std::move(pipe.write);
  }

  Externals externals() const {
    Externals all;
    for (const char* name : device_names) {
      all.mounts.emplace_back(fmt::format("/dev/{}", name), fmt::format("dev-{}", name));
      all.sources.emplace(fmt::format("dev-{}", name), fmt::format("/dev/{}", name));
    }
    for (std::size_t i = 0; i < spec.mounts.size(); ++i) {
      all.mounts.emplace_back(spec.mounts[i].target, fmt::format("mount-{}", i));
      all.sources.emplace(fmt::format("mount-{}", i), root.mount_source(i));
    }
    return all;
  }

  /// From when the program itself runs: CRIU's work before that is not counted against its share.
  Status limit_cpu() const { return cgroup.limit({.cpus = spec.cpus}); }

  void kill() {
    (void)cgroup.kill_all();
    (void)first.ended_within(std::nullopt);
  }
};

Container::Container(std::unique_ptr<State> state) : state_(std::move(state)) {}
Container::Container(Container&&) noexcept = default;
Container& Container::operator=(Container&&) noexcept = default;
Container::~Container() = default;

Result<Container> Container::start(const ContainerSpec& spec, const Place& place) {
  YADO_ASSIGN(std::unique_ptr<Prepared> prepared, Prepared::make(spec, spec.command), "start");
  YADO_ASSIGN(std::unique_ptr<State> state, State::make(spec, place, place.id_base, std::nullopt), "start");
  YADO_ASSIGN(os::Fd output, state->make_output(), "start");
  YADO_ASSIGN(os::Pipe report, os::make_pipe(), "start");
  YADO_ASSIGN(os::Pipe go, os::make_pipe(), "start");

  FirstProcess& plan = prepared->plan;
  plan.root = state->root.root();
  plan.host_name = place.host_name;
  plan.output = output.get();
  plan.report = report.write.get();
  plan.go = go.read.get();
  for (std::size_t i = 0; i < spec.mounts.size(); ++i) {
    const fs::path source = state->root.mount_source(i);
    std::error_code ignored;
    plan.binds.push_back({source, spec.mounts[i].target, fs::is_directory(source, ignored)});
  }

  pid_t pid = -1;
  {
    YADO_ASSIGN(const InNetwork there, InNetwork::enter(place.network_namespace), "start");
    YADO_ASSIGN(pid, clone_into(CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | new_time_namespace), "start");
    if (pid == 0) {
      ::close(go.write.get());
      become_first_process(plan, prepared->arguments.data(), prepared->environment.data());
    }
  }
  output.reset();
  report.write.reset();
  go.read.reset();
  auto first = os::Pidfd::open(pid);
  if (!first) {
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    return context(first.error(), "start");
  }
  state->first = std::move(*first);
  const auto begin = [&]() -> Status {
    YADO_TRY(state->limit_cpu(), "start");
    YADO_TRY(state->cgroup.add(pid), "start");
    YADO_TRY(os::write_id_maps(pid, {{0, place.id_base, 65536}}), "start");
    YADO_TRY(os::write_all(go.write, "g"), "start");
    return read_report(report.read, "start");
  };
  if (Status begun = begin(); !begun) {
    (void)state->first.send(SIGKILL);
    state->kill();
    return std::unexpected(begun.error());
  }
  // The program sees the end of `go` only before its exec; from here PR_SET_PDEATHSIG watches.
  return Container(std::move(state));
}

Result<Container> Container::restore(const ContainerSpec& spec, const Place& place, const ImageParts& image,
                                     const Criu& criu, bool frozen) {
  YADO_TRY(require(criu), "restore");
  const auto property = [&](const char* name) -> Result<std::string> {
    const auto found = image.properties.find(name);
    if (found == image.properties.end()) return fail(Errc::corrupt, "restore: the image's manifest lacks the property {}", name);
    return found->second;
  };
  YADO_ASSIGN(const std::string saved_pipe, property("log_pipe"), "restore");
  YADO_ASSIGN(const std::string saved_base, property("id_base"), "restore");
  read_ahead(image.criu);
  // CRIU makes the user namespace as it was: same ids outside.
  const auto id_base = static_cast<std::uint32_t>(std::strtoul(saved_base.c_str(), nullptr, 10));
  YADO_ASSIGN(std::unique_ptr<State> state, State::make(spec, place, id_base, image.disk), "restore");
  YADO_ASSIGN(const os::Fd output, state->make_output(), "restore");

  RestoreCall call;
  call.images = image.criu;
  call.work = place.directory / "work";
  call.root = state->root.root();
  call.externals = state->externals();
  call.pipe_id = saved_pipe;
  call.pipe = output.get();
  call.cgroup = &state->cgroup;
  call.network_namespace = place.network_namespace;
  // Always stopped first: then nothing runs before the caller allows it, and parents can be woken after their
  // children even when the image is an hour old.
  call.stopped = true;
  auto first = container::restore(criu, call);
  if (!first) return context(first.error(), "restore");
  state->first = std::move(*first);
  YADO_TRY(state->limit_cpu(), "restore");
  Container container(std::move(state));
  if (!frozen) {
    YADO_TRY(continue_children_first(container.cgroup(), settle_limit), "restore");
    return container;
  }
  YADO_TRY(container.freeze(), "restore");
  YADO_ASSIGN(const std::vector<pid_t> all, container.cgroup().processes(), "restore");
  for (const pid_t process : all) ::kill(process, SIGCONT);
  return container;
}

Result<std::map<std::string, std::string>> Container::checkpoint(const fs::path& criu_part, const fs::path& disk_part,
                                                                 const Criu& criu) const {
  YADO_TRY(require(criu), "checkpoint");
  YADO_TRY(freeze(), "checkpoint");
  DumpCall call;
  call.root_task = state_->first.pid();
  call.images = criu_part;
  call.work = state_->place.directory / "work";
  call.root = state_->root.root();
  call.freezer = state_->cgroup.freezer_directory();
  call.externals = state_->externals();
  call.network_namespace = state_->network.get();
  Status dumped = dump(criu, call);
  // CRIU puts the group back into the state it found; after a failure nobody can be sure of that.
  YADO_TRY(state_->cgroup.freeze(freeze_limit), "checkpoint");
  YADO_TRY(dumped, "checkpoint");
  YADO_TRY(pack_disk(state_->root.upper(), disk_part), "checkpoint");
  return std::map<std::string, std::string>{{"driver", "container-1"},
                                            {"log_pipe", state_->output_id},
                                            {"id_base", fmt::format("{}", state_->id_base)},
                                            {"host_name", state_->place.host_name}};
}

Status Container::freeze() const {
  YADO_TRY(state_->cgroup.freeze(freeze_limit), "freeze");
  return set_parents_apart(state_->cgroup);
}

Status Container::thaw(const std::function<void()>& running) const {
  const auto tell = [&] {
    if (running) running();
  };
  YADO_ASSIGN(const bool stands, frozen(), "thaw");
  if (!stands) {
    YADO_TRY(state_->cgroup.thaw(), "thaw");
    tell();
    return {};
  }
  std::vector<Door> all;
  std::size_t next = 0;
  bool made = false;
  const auto nudge = [&] {
    if (state_->place.port == 0) return;
    if (!std::exchange(made, true)) {
      // Only now, when the children run: changing the network namespace takes the kernel some 6 ms each way.
      const auto processes = state_->cgroup.processes();
      const std::size_t count = processes ? processes->size() : 0;
      auto doors_made = doors(state_->first.pid(), state_->place.port, count, state_->network.get());
      if (doors_made) all = std::move(*doors_made);
      else log::warn("thaw: {}", doors_made.error().text());
    }
    if (next < all.size()) knock(all[next++]);
  };
  return thaw_children_first(state_->cgroup, {.limit = settle_limit, .running = tell, .nudge = nudge});
}
Result<bool> Container::frozen() const { return state_->cgroup.frozen(); }

Result<os::ExitStatus> Container::exec(const std::vector<std::string>& command, const ExecIo& io) const {
  YADO_ASSIGN(std::unique_ptr<Prepared> prepared, Prepared::make(state_->spec, command), "exec");
  YADO_ASSIGN(const bool stands, frozen(), "exec");
  if (stands) return fail(Errc::conflict, "exec: the container is frozen");
  YADO_ASSIGN(os::Pipe report, os::make_pipe(), "exec");
  prepared->plan.report = report.write.get();
  const int report_number = report.write.get();

  // A child that enters the namespaces and forks once more: a pid namespace is entered by one's children only.
  const auto enter = [&]() -> int {
    const auto say = [&](std::string_view doing) {
      const std::string text = fmt::format("{}:{}: {}", static_cast<int>(Errc::io), doing, std::strerror(errno));
      (void)!::write(report_number, text.data(), text.size());
      return 127;
    };
    const int null = ::open("/dev/null", O_RDWR | O_CLOEXEC);
    const int wanted[3] = {io.input, io.output, io.error};
    for (int i = 0; i < 3; ++i)
      if (::dup2(wanted[i] < 0 ? null : wanted[i], i) < 0) return say("standard input and output");
    if (auto added = state_->cgroup.add(::getpid()); !added) return say(added.error().message);
    constexpr int kinds = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET;
    if (::setns(state_->first.fd(), kinds | static_cast<int>(new_time_namespace)) != 0) return say("enter the container");
    const pid_t inside = ::fork();
    if (inside < 0) return say("fork");
    if (inside == 0) {
      ::setsid();
      if (::setgroups(0, nullptr) != 0 || ::setresgid(0, 0, 0) != 0 || ::setresuid(0, 0, 0) != 0) ::_exit(say("become root inside"));
      become_program(prepared->plan, prepared->arguments.data(), prepared->environment.data());
    }
    ::close(report_number);
    int status = 0;
    while (::waitpid(inside, &status, 0) < 0)
      if (errno != EINTR) return 127;
    if (!WIFSIGNALED(status)) return WEXITSTATUS(status);
    // Passed on as it was: this process ends in the same way.
    ::signal(WTERMSIG(status), SIG_DFL);
    ::kill(::getpid(), WTERMSIG(status));
    return 128 + WTERMSIG(status);
  };
  YADO_ASSIGN(os::Process child, os::fork_child(enter, SIGKILL), "exec");
  report.write.reset();
  YADO_TRY(read_report(report.read, "exec"), "container");
  YADO_ASSIGN(const std::optional<os::ExitStatus> ended, child.wait(std::nullopt), "exec");
  return *ended;
}

Status Container::signal(int number) const { return state_->first.send(number); }

Result<os::ExitStatus> Container::stop(nanoseconds grace) {
  if (state_->ended) return *state_->ended;
  YADO_ASSIGN(const bool stands, frozen(), "stop");
  bool gone = false;
  // The first process of a pid namespace does not get a signal it has no handler for: no use in waiting.
  if (!stands && listens_to(state_->first.pid(), SIGTERM) && signal(SIGTERM)) {
    YADO_ASSIGN(gone, state_->first.ended_within(grace), "stop");
  }
  if (!gone) state_->kill();
  YADO_ASSIGN(const std::optional<os::ExitStatus> ended, reap(), "stop");
  if (!ended) return fail(Errc::internal, "stop: process {} was killed and is still there", state_->first.pid());
  // What was started by exec is not a child of the first process.
  YADO_TRY(state_->cgroup.kill_all(), "stop");
  return *ended;
}

Result<os::CgroupUse> Container::stats() const { return state_->cgroup.use(); }
const os::Pidfd& Container::process() const { return state_->first; }
const os::Fd& Container::output() const { return state_->output_read; }
const os::Cgroup& Container::cgroup() const { return state_->cgroup; }

Result<std::optional<os::ExitStatus>> Container::reap() {
  if (!state_->ended) {
    YADO_ASSIGN(state_->ended, state_->first.reap(), "reap");
  }
  return state_->ended;
}

}  // namespace yado::container
