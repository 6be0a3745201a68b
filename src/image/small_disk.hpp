#pragma once
// For tests: a full disk, in a child of this process.

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>

namespace yado::image {

/// Runs in a forked copy of this process; 0 is success, 1000 + N: ended by signal N.
inline int exit_code_of(const std::function<int()>& body) {
  const pid_t child = ::fork();
  EXPECT_GE(child, 0);
  if (child == 0) ::_exit(body());
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1000 + WTERMSIG(status);
}

/// What `body` returns in a forked copy of this process that sees a tmpfs of this size (as mount(8) writes it) at `root`; nothing:
/// no right to mount one.
inline std::optional<int> on_a_small_disk(const std::filesystem::path& root, const std::string& size, const std::function<int()>& body) {
  constexpr int cannot_mount = 77;
  const int code = exit_code_of([&] {
    const std::string options = "mode=0700,size=" + size;
    if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        ::mount("tmpfs", root.c_str(), "tmpfs", 0, options.c_str()) != 0)
      return cannot_mount;
    return body();
  });
  return code == cannot_mount ? std::nullopt : std::optional(code);
}

}  // namespace yado::image
