#include "agent/supervisor/spawn.hpp"

#include <cerrno>
#include <cstdio>
#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "agent/supervisor/supervisor.hpp"
#include "os/file.hpp"
#include "os/process.hpp"

namespace yado::supervisor {
namespace {

Status wait_until_ready(const os::Fd& ready) {
  std::string text;
  char buffer[1024];
  for (;;) {
    const ssize_t n = ::read(ready.get(), buffer, sizeof buffer);
    if (n > 0) text.append(buffer, static_cast<std::size_t>(n));
    else if (n == 0 || errno != EINTR) break;
  }
  if (text == "ok") return {};
  const std::size_t colon = text.find(':');
  if (colon == std::string::npos) return fail(Errc::internal, "the supervisor ended before it was ready");
  return fail(static_cast<Errc>(std::atoi(text.c_str())), "{}", text.substr(colon + 1));
}

/// Forks twice, so that the second child's parent is gone when it starts: it belongs to init, or to the next subreaper.
Status launch(const Config& config, int network_namespace, const std::function<void(os::Fd network, os::Fd ready)>& body) {
  YADO_TRY(os::replace_text(config_of(config.directory), to_text(config)), "supervisor");
  YADO_ASSIGN(os::Pipe ready, os::make_pipe(), "supervisor");
  const pid_t between = ::fork();
  if (between < 0) return fail_errno("fork for a supervisor");
  if (between == 0) {
    os::reset_signals();
    ::setsid();
    if (const pid_t child = ::fork(); child != 0) ::_exit(child < 0 ? 1 : 0);
    ready.read.reset();
    const os::Fd null(::open("/dev/null", O_RDWR | O_CLOEXEC));
    ::dup2(null.get(), 0);
    os::Fd network(network_namespace < 0 ? -1 : ::fcntl(network_namespace, F_DUPFD_CLOEXEC, 16));
    body(std::move(network), std::move(ready.write));
    ::_exit(1);
  }
  ready.write.reset();
  while (::waitpid(between, nullptr, 0) < 0 && errno == EINTR) {
  }
  YADO_TRY(wait_until_ready(ready.read), "supervisor of " + config.instance.str());
  return {};
}

}  // namespace

Status spawn_supervisor(const Config& config, int network_namespace, const std::vector<std::string>& program) {
  std::vector<std::string> words = program;
  words.push_back(config_of(config.directory));
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  return launch(config, network_namespace, [&](os::Fd network, os::Fd ready) {
    // Parked above both targets first.
    const os::Fd kept(::fcntl(ready.get(), F_DUPFD_CLOEXEC, 16));
    if (network.valid()) ::dup2(network.get(), network_descriptor);
    else ::close(network_descriptor);
    ::dup2(kept.get(), ready_descriptor);
    ::execv(arguments[0], arguments.data());
    const std::string text = fail_errno(fmt::format("exec {}", arguments[0])).error().message;
    (void)os::write_all(kept, fmt::format("{}:{}", static_cast<int>(Errc::not_found), text));
  });
}

Status spawn_supervisor(const Config& config, int network_namespace, const std::function<int(os::Fd, os::Fd)>& body) {
  return launch(config, network_namespace,
                [&](os::Fd network, os::Fd ready) { ::_exit(body(std::move(network), std::move(ready))); });
}

int run_spawned(const std::string& path) {
  os::Fd network(::fcntl(network_descriptor, F_GETFD) < 0 ? -1 : network_descriptor);
  os::Fd ready(ready_descriptor);
  for (const os::Fd* fd : {&network, &ready})
    if (fd->valid()) ::fcntl(fd->get(), F_SETFD, FD_CLOEXEC);
  const auto text = os::read_text(path);
  auto config = text ? config_from_text(*text) : Result<Config>(std::unexpected(text.error()));
  if (!config) {
    (void)os::write_all(ready, fmt::format("{}:{}", static_cast<int>(config.error().code), config.error().message));
    return 1;
  }
  return run(*config, std::move(network), std::move(ready));
}

}  // namespace yado::supervisor
