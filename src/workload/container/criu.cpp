#include "workload/container/criu.hpp"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <functional>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/log.hpp"
#include "os/file.hpp"
#include "os/mount.hpp"
#include "os/process.hpp"

namespace yado::container {
namespace {

namespace fs = std::filesystem;

/// The last lines of CRIU's log that say something: errors when there are any.
std::string end_of_log(const fs::path& file) {
  const auto text = os::read_text(file);
  if (!text) return "it left no log";
  std::vector<std::string> errors, all;
  for (std::size_t at = 0; at < text->size();) {
    const std::size_t end = std::min(text->find('\n', at), text->size());
    std::string line = text->substr(at, end - at);
    if (line.find("Error") != std::string::npos) errors.push_back(line);
    if (!line.empty()) all.push_back(std::move(line));
    at = end + 1;
  }
  const auto& lines = errors.empty() ? all : errors;
  std::string joined;
  for (std::size_t i = lines.size() > 6 ? lines.size() - 6 : 0; i < lines.size(); ++i)
    joined += (joined.empty() ? "" : " | ") + lines[i];
  return joined;
}

bool says_no_space(const std::string& log) { return log.find("No space left") != std::string::npos; }

/// What CRIU has as /run: a tmpfs of its own, in a mount namespace of its own. There it keeps what it learnt of the kernel
/// (criu.kdat; off a tmpfs it would probe anew each time, 46 ms measured). And there stand the mounts that it takes over
/// into the container: it opens them as the container's root, to whom the agents' directories are closed. What its
/// arguments name below the real /run stays in sight.
class RunDirectory {
 public:
  using Offered = std::map<std::string, fs::path>;  ///< name in /run -> what is mounted there
  static fs::path path_of(const std::string& name) { return fs::path("/run") / name; }

  static Result<RunDirectory> make(const fs::path& kept_in, const std::vector<std::string>& arguments, Offered offered) {
    RunDirectory made;
    made.offered_ = std::move(offered);
    YADO_ASSIGN(made.tmpfs_, os::make_tmpfs(), "CRIU's /run");
    for (const std::string& word : arguments) made.keep_in_sight(word);
    if (kept_in.empty()) return made;
    // What is true of one boot's kernel may be false of the next one's.
    auto boot = os::read_text("/proc/sys/kernel/random/boot_id").value_or("unknown");
    while (!boot.empty() && boot.back() == '\n') boot.pop_back();
    made.kept_ = kept_in / ("criu-" + boot + ".kdat");
    if (const auto kept = os::read_text(made.kept_)) {
      const os::Fd file(::openat(made.tmpfs_.get(), "criu.kdat", O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
      if (file.valid()) (void)os::write_all(file, *kept);
      made.had_ = true;
    }
    return made;
  }

  /// In the child that becomes CRIU.
  Status enter() const {
    YADO_TRY(os::enter_private_mounts(), "CRIU's mounts");
    std::vector<std::pair<os::Fd, fs::path>> trees;
    const auto take = [&](const fs::path& source, const fs::path& target) -> Status {
      YADO_ASSIGN(os::Fd tree, os::copy_mount(source, true), "CRIU's mounts");
      trees.emplace_back(std::move(tree), target);
      return {};
    };
    for (const fs::path& path : in_sight_) YADO_TRY(take(path, path), "in sight");
    for (const auto& [name, source] : offered_) YADO_TRY(take(source, path_of(name)), "offered");
    YADO_TRY(put(tmpfs_, "/run"), "CRIU's mounts");
    for (const auto& [tree, target] : trees) {
      struct stat status {};
      const bool directory = ::fstat(tree.get(), &status) == 0 && S_ISDIR(status.st_mode);
      if (directory ? ::mkdir(target.c_str(), 0755) != 0 : ::mknod(target.c_str(), S_IFREG | 0600, 0) != 0)
        return fail_errno("make " + target.native());
      YADO_TRY(put(tree, target), "CRIU's mounts");
    }
    return {};
  }

  bool known() const { return had_; }

  void keep() const {
    if (kept_.empty() || had_) return;
    const auto text = os::read_text(fmt::format("/proc/self/fd/{}/criu.kdat", tmpfs_.get()));
    if (!text || text->empty()) return;
    if (auto kept = os::replace_text(kept_, *text); !kept) log::warn("CRIU's kernel cache: {}", kept.error().text());
  }

 private:
  static Status put(const os::Fd& tree, const fs::path& target) {
    if (::syscall(SYS_move_mount, tree.get(), "", AT_FDCWD, target.c_str(), 4 /* MOVE_MOUNT_F_EMPTY_PATH */) != 0)
      return fail_errno("mount " + target.native());
    return {};
  }

  /// The directory in /run that a word such as "/run/yado/…" lies in.
  void keep_in_sight(const std::string& word) {
    const std::string run = "/run/";
    if (!word.starts_with(run)) return;
    const fs::path path = word.substr(0, word.find('/', run.size()));
    std::error_code ignored;
    if (fs::is_directory(path, ignored) && std::ranges::find(in_sight_, path) == in_sight_.end()) in_sight_.push_back(path);
  }

  os::Fd tmpfs_;
  std::vector<fs::path> in_sight_;
  Offered offered_;
  fs::path kept_;
  bool had_ = false;
};

struct Run {
  std::vector<std::string> arguments;
  fs::path log;
  int network_namespace = -1;
  const os::Cgroup* cgroup = nullptr;
  std::vector<std::pair<int, int>> descriptors;
  RunDirectory::Offered offered;
  std::function<void()> on_overrun;  ///< before CRIU is killed
};

Status run(const Criu& criu, const Run& wanted, std::string_view what) {
  YADO_ASSIGN(const RunDirectory own, RunDirectory::make(criu.kernel_cache, wanted.arguments, wanted.offered), what);
  os::Spawn options;
  options.arguments = wanted.arguments;
  options.environment = {"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"};
  options.descriptors = wanted.descriptors;
  options.death_signal = SIGKILL;
  options.in_child = [&]() -> Status {
    if (wanted.cgroup != nullptr) YADO_TRY(wanted.cgroup->add(::getpid()), "CRIU");
    if (wanted.network_namespace >= 0 && ::setns(wanted.network_namespace, CLONE_NEWNET) != 0)
      return fail_errno("enter the network namespace");
    return own.enter();
  };
  YADO_ASSIGN(os::Process process, os::spawn(options), what);
  YADO_ASSIGN(const std::optional<os::ExitStatus> ended, process.wait(criu.limit), what);
  if (!ended) {
    if (wanted.on_overrun) wanted.on_overrun();
    process.kill();
    return fail(Errc::timed_out, "{}: CRIU was stopped after {:.0f} ms; its log ends: {}", what, to_ms(criu.limit),
                end_of_log(wanted.log));
  }
  if (!ended->success()) {
    const std::string log = end_of_log(wanted.log);
    return fail(says_no_space(log) ? Errc::no_space : Errc::io, "{}: CRIU: {}; its log ends: {}", what, ended->text(), log);
  }
  own.keep();
  return {};
}

}  // namespace

Status require(const Criu& criu) {
  if (criu.binary.empty())
    return fail(Errc::unsupported,
                "no working CRIU on this host: run tools/install-criu (or install a criu package whose `criu check` "
                "passes) and restart the agent; cold starts and started-then-frozen standbys work without it");
  return {};
}

Status learn_kernel(const Criu& criu) {
  YADO_TRY(require(criu), "learn about the kernel");
  Run wanted;
  wanted.arguments = {criu.binary, "check"};
  YADO_ASSIGN(const RunDirectory own, RunDirectory::make(criu.kernel_cache, wanted.arguments, {}), "learn about the kernel");
  return own.known() ? Status{} : run(criu, wanted, "learn about the kernel");
}

Status dump(const Criu& criu, const DumpCall& call) {
  YADO_TRY(require(criu), "checkpoint");
  Run wanted;
  wanted.log = call.work / "dump.log";
  ::unlink(wanted.log.c_str());
  wanted.arguments = {criu.binary, "dump", "--tree", fmt::format("{}", call.root_task), "--images-dir", call.images,
                      "--work-dir", call.work, "--log-file", "dump.log", "--root", call.root, "--manage-cgroups=ignore",
                      "--freeze-cgroup", call.freezer, "--leave-running", "--tcp-close", "--skip-in-flight",
                      "--network-lock", "skip", "--file-locks", "--link-remap", "--ghost-limit", "64M"};
  for (const auto& [inside, key] : call.externals.mounts) {
    wanted.arguments.push_back("--external");
    wanted.arguments.push_back(fmt::format("mnt[{}]:{}", inside, key));
  }
  wanted.network_namespace = call.network_namespace;
  return run(criu, wanted, "checkpoint");
}

Result<os::Pidfd> restore(const Criu& criu, const RestoreCall& call) {
  YADO_TRY(require(criu), "restore");
  constexpr int pipe_number = 100;  // any number that CRIU's own descriptors do not reach
  Run wanted;
  wanted.log = call.work / "restore.log";
  const fs::path pid_file = call.work / "restore.pid";
  ::unlink(wanted.log.c_str());
  ::unlink(pid_file.c_str());
  wanted.arguments = {criu.binary, "restore", "--images-dir", call.images, "--work-dir", call.work, "--log-file",
                      "restore.log", "--root", call.root, "--manage-cgroups=ignore", "--tcp-close", "--file-locks",
                      "--network-lock", "skip", "--restore-detached", "--restore-sibling", "--pidfile", pid_file,
                      "--inherit-fd", fmt::format("fd[{}]:{}", pipe_number, call.pipe_id)};
  if (call.stopped) wanted.arguments.push_back("--leave-stopped");
  for (const auto& [key, source] : call.externals.sources) {
    wanted.arguments.push_back("--external");
    const bool device = source.native().starts_with("/dev/");
    if (!device) wanted.offered.emplace(key, source);
    wanted.arguments.push_back(fmt::format("mnt[{}]:{}", key, device ? source.native() : RunDirectory::path_of(key).native()));
  }
  wanted.network_namespace = call.network_namespace;
  wanted.cgroup = call.cgroup;
  wanted.descriptors = {{call.pipe, pipe_number}};
  YADO_TRY(run(criu, wanted, "restore"), "CRIU");
  YADO_ASSIGN(const std::string text, os::read_text(pid_file), "restore");
  return os::Pidfd::open(static_cast<pid_t>(std::atoi(text.c_str())));
}

}  // namespace yado::container
