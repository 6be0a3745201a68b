#include "agent/supervisor/spawn.hpp"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/supervisor/drivers.hpp"
#include "agent/supervisor/supervisor.hpp"
#include "os/file.hpp"
#include "os/process.hpp"

namespace yado::supervisor {
namespace {

// Descriptors of the new program.
constexpr int network_descriptor = 3;  ///< may be closed
constexpr int ready_descriptor = 4;
constexpr int order_descriptor = 5;
constexpr std::string_view expect_order = "expect ";  ///< and a path; any other line is a path

void say(const os::Fd& ready, const Error& error) {
  (void)os::write_all(ready, fmt::format("{}:{}", static_cast<int>(error.code), error.message));
}

/// Without the end of the line; also what came before the end of all.
std::string read_line(const os::Fd& from) {
  std::string text;
  char one;
  for (;;) {
    const ssize_t n = ::read(from.get(), &one, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0 || one == '\n') return text;
    text += one;
  }
}

/// "ok", or an error's number and message.
Status understood(const std::string& text, std::string_view what) {
  if (text == "ok") return {};
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) return fail(Errc::internal, "{}: the supervisor ended before it was ready", what);
  return fail(static_cast<Errc>(std::atoi(text.c_str())), "{}", text.substr(colon + 1));
}

Status wait_until_ready(const os::Fd& ready) {
  YADO_ASSIGN(const std::string said, os::read_to_end(ready), "start");
  return understood(said, "start");
}

Result<Config> read_config(const std::string& path) {
  YADO_ASSIGN(const std::string text, os::read_text(path), "supervisor");
  return config_from_text(text);
}

/// In the instance's network, and back: a driver's pager belongs into the host's.
Result<std::unique_ptr<workload::Driver>> expect_instance(const std::string& path, const os::Fd& network) {
  YADO_ASSIGN(const Config config, read_config(path), "expect");
  auto driver = driver_of(config);
  const os::Fd here(::open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC));
  ::signal(SIGPIPE, SIG_IGN);
  if (!here.valid() || (network.valid() && ::setns(network.get(), CLONE_NEWNET) != 0)) return fail_errno("enter the instance's network");
  const Status ready = driver->expect(config.disks_ahead);
  if (::setns(here.get(), CLONE_NEWNET) != 0) return fail_errno("leave the instance's network");
  YADO_TRY(ready, "expect");
  return driver;
}

/// Forks twice, so that the second child's parent is gone when it starts: it belongs to init, or to the next subreaper.
Status fork_away(const std::function<int()>& body) {
  const pid_t between = ::fork();
  if (between < 0) return fail_errno("fork for a supervisor");
  if (between == 0) {
    os::reset_signals();
    ::setsid();
    if (const pid_t child = ::fork(); child != 0) ::_exit(child < 0 ? 1 : 0);
    const os::Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    ::dup2(null.get(), 0);
    ::_exit(body());
  }
  int status = 0;
  while (::waitpid(between, &status, 0) < 0 && errno == EINTR) {
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) return fail(Errc::no_space, "fork for a supervisor: no process is left");
  return {};
}

bool is_pipe(int descriptor) {
  struct stat status {};
  return ::fstat(descriptor, &status) == 0 && S_ISFIFO(status.st_mode);
}

/// Raises no SIGPIPE, whoever calls this.
Status tell(const os::Fd& socket, std::string_view text) {
  if (::send(socket.get(), text.data(), text.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(text.size())) return {};
  return fail_errno("tell the supervisor");
}

}  // namespace

Result<Spare> Spare::make(int network, const std::vector<std::string>& program) {
  std::vector<std::string> words = program;
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  YADO_ASSIGN(os::Pipe ready, os::make_pipe(), "supervisor");
  int order[2];
  if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, order) != 0) return fail_errno("socket to a supervisor");
  os::Fd ours(order[0]), its(order[1]);
  YADO_TRY(fork_away([&] {
    // Parked above the targets first. dup2() leaves them open across the exec.
    const int sources[] = {network, ready.write.get(), its.get()};
    int parked[3];
    for (int i = 0; i < 3; ++i) parked[i] = sources[i] < 0 ? -1 : ::fcntl(sources[i], F_DUPFD_CLOEXEC, 16);
    for (int i = 0; i < 3; ++i)
      if (parked[i] >= 0) ::dup2(parked[i], network_descriptor + i);
      else ::close(network_descriptor + i);
    ::execv(arguments[0], arguments.data());
    say(os::Fd(parked[1]), Error{Errc::not_found, fmt::format("exec {}: {}", arguments[0], std::strerror(errno))});
    return 1;
  }), "supervisor");
  Spare spare;
  spare.order_ = std::move(ours);
  spare.ready_ = std::move(ready.read);
  return spare;
}

bool Spare::waits() const {
  pollfd ended{ready_.get(), POLLIN, 0};
  return ::poll(&ended, 1, 0) == 0;
}

Status Spare::expect(const Config& config) const {
  const std::string path = config_of(config.directory);
  YADO_TRY(os::replace_text(path, to_text(config)), "supervisor");
  YADO_TRY(tell(order_, std::string(expect_order) + path + "\n"), "supervisor");
  return understood(read_line(order_), "expect");
}

Status Spare::become(const Config& config) && {
  const std::string path = config_of(config.directory);
  YADO_TRY(os::replace_text(path, to_text(config)), "supervisor");
  const Status told = tell(order_, path);
  order_.reset();
  // A program that could not be executed does not listen, but has said why.
  YADO_TRY(wait_until_ready(ready_), "supervisor of " + config.instance.str());
  return told;
}

int run_spawned() {
  if (!is_pipe(ready_descriptor)) return 1;  // started by a person
  os::Fd network(::fcntl(network_descriptor, F_GETFD) < 0 ? -1 : network_descriptor);
  os::Fd ready(ready_descriptor), order(order_descriptor);
  for (const os::Fd* fd : {&network, &ready, &order})
    if (fd->valid()) ::fcntl(fd->get(), F_SETFD, FD_CLOEXEC);
  std::string path = read_line(order);
  std::unique_ptr<workload::Driver> expecting;
  while (path.starts_with(expect_order)) {
    auto driver = expect_instance(path.substr(expect_order.size()), network);
    (void)tell(order, driver ? "ok\n" : fmt::format("{}:{}\n", static_cast<int>(driver.error().code), driver.error().message));
    if (driver) expecting = std::move(*driver);
    path = read_line(order);
  }
  if (path.empty()) return 0;  // nobody needs it
  order.reset();
  const auto config = read_config(path);
  if (!config) {
    say(ready, config.error());
    return 1;
  }
  return run(*config, std::move(network), std::move(ready), std::move(expecting));
}

Status spawn_forked(const Config& config, int network, const std::function<int(os::Fd, os::Fd)>& body) {
  YADO_TRY(os::replace_text(config_of(config.directory), to_text(config)), "supervisor");
  YADO_ASSIGN(os::Pipe ready, os::make_pipe(), "supervisor");
  YADO_TRY(fork_away([&] {
    ready.read.reset();
    return body(os::Fd(network < 0 ? -1 : ::fcntl(network, F_DUPFD_CLOEXEC, 16)), std::move(ready.write));
  }), "supervisor");
  ready.write.reset();
  YADO_TRY(wait_until_ready(ready.read), "supervisor of " + config.instance.str());
  return {};
}

}  // namespace yado::supervisor
