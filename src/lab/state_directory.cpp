#include "lab/state_directory.hpp"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <sstream>
#include <vector>

#include "os/file.hpp"
#include "os/pidfd.hpp"

namespace yado::lab {
namespace {

namespace fs = std::filesystem;

/// The tree in every hierarchy, groups in front of the ones above them: the order in which rmdir works.
std::vector<fs::path> directories_of(const std::string& cgroup) {
  const fs::path root = "/sys/fs/cgroup";
  std::error_code ignored;
  std::vector<fs::path> tops = {root / cgroup};
  for (const auto& hierarchy : fs::directory_iterator(root, ignored)) tops.push_back(hierarchy.path() / cgroup);
  std::vector<fs::path> found;
  for (const fs::path& top : tops) {
    if (!fs::is_directory(top, ignored)) continue;
    found.push_back(top);
    for (const auto& entry : fs::recursive_directory_iterator(top, ignored))
      if (entry.is_directory(ignored)) found.push_back(entry.path());
  }
  return {found.rbegin(), found.rend()};  // the iterator goes from the top down
}

std::vector<os::Pidfd> processes_in(const std::vector<fs::path>& directories) {
  std::vector<os::Pidfd> found;
  for (const fs::path& directory : directories) {
    std::istringstream lines(os::read_text(directory / "cgroup.procs").value_or(""));
    for (pid_t pid = 0; lines >> pid;)
      if (auto process = os::Pidfd::open(pid); pid > 0 && process) found.push_back(std::move(*process));
  }
  return found;
}

enum class Claim { got, busy };

/// The lock of the file that is at `path` now, not of one that its owner has just removed.
Result<Claim> claim(const fs::path& path, os::Fd& lock) {
  for (;;) {
    YADO_ASSIGN(lock, os::open_path(path, O_RDWR | O_CREAT, 0600), "lock");
    if (::flock(lock.get(), LOCK_EX | LOCK_NB) < 0) {
      if (errno == EWOULDBLOCK) return Claim::busy;
      return fail_errno(fmt::format("lock {}", path.native()));
    }
    struct stat held {
    }, there{};
    if (::fstat(lock.get(), &held) == 0 && ::stat(path.c_str(), &there) == 0 && held.st_ino == there.st_ino)
      return Claim::got;
    std::error_code ignored;
    fs::create_directories(path.parent_path(), ignored);
  }
}

/// The lock goes last: as long as it is held nobody takes the name, or the half-removed directory.
void remove_locked(const fs::path& directory, const std::string& lab) {
  remove_tree(cgroup_of(lab));
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(directory, ignored))
    if (entry.path().filename() != "lab.lock") fs::remove_all(entry.path(), ignored);
  fs::remove(directory / "lab.lock", ignored);
  fs::remove(directory, ignored);
}

void sweep_dead(const fs::path& run_directory, const std::string& except) {
  std::error_code ignored;
  std::vector<fs::path> labs;
  for (const auto& entry : fs::directory_iterator(run_directory, ignored))
    if (entry.path().filename() != except && fs::exists(entry.path() / "lab.lock", ignored))
      labs.push_back(entry.path());
  for (const fs::path& directory : labs) {
    os::Fd lock;
    if (const auto claimed = claim(directory / "lab.lock", lock); claimed && *claimed == Claim::got)
      remove_locked(directory, directory.filename());
  }
}

}  // namespace

std::string cgroup_of(const std::string& lab) { return "yado-" + lab; }

void thaw_tree(const std::string& cgroup) {
  for (const fs::path& directory : directories_of(cgroup)) {
    (void)os::write_kernel_file(directory / "cgroup.freeze", "0");
    (void)os::write_kernel_file(directory / "freezer.state", "THAWED");
  }
}

void remove_tree(const std::string& cgroup) {
  // A round per generation: what forked between the listing and the kill is in the next one.
  for (;;) {
    const std::vector<fs::path> directories = directories_of(cgroup);
    const std::vector<os::Pidfd> dying = processes_in(directories);
    if (dying.empty()) {
      for (const fs::path& directory : directories) ::rmdir(directory.c_str());
      return;
    }
    for (const os::Pidfd& process : dying) (void)process.send(SIGKILL);
    thaw_tree(cgroup);
    for (const os::Pidfd& process : dying) (void)process.ended_within(std::nullopt);
  }
}

Result<StateDirectory> StateDirectory::create(const fs::path& run_directory, const std::string& lab) {
  const fs::path path = run_directory / lab;
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return fail_errno(error.value(), fmt::format("make the lab's directory {}", path.native()));
  // Images lie below it, which are as secret as the memory they hold. Users of containers have to pass through.
  if (::chmod(path.c_str(), 0711) < 0) return fail_errno(fmt::format("chmod {}", path.native()));
  sweep_dead(run_directory, lab);

  os::Fd lock;
  YADO_ASSIGN(const Claim claimed, claim(path / "lab.lock", lock), "lab's directory");
  if (claimed == Claim::busy) {
    const std::string pid = os::read_text(path / "lab.lock").value_or("unknown");
    return fail(Errc::already_exists, "lab \"{}\" is running already (process {}): end it, or choose another name", lab,
                pid);
  }
  // Ours now; if it is a dead lab's, what that one left goes.
  StateDirectory directory(path, lab, std::move(lock));
  remove_tree(cgroup_of(lab));
  for (const auto& entry : fs::directory_iterator(path, error))
    if (entry.path().filename() != "lab.lock") fs::remove_all(entry.path(), error);
  if (::ftruncate(directory.lock_.get(), 0) < 0) return fail_errno("empty the lab's lock file");
  YADO_TRY(os::write_all(directory.lock_, fmt::format("{}", ::getpid())), "lab's lock file");
  return directory;
}

StateDirectory::~StateDirectory() {
  if (lock_.valid()) remove_locked(path_, lab_);
}

}  // namespace yado::lab
