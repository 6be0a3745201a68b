#pragma once
// What a lab leaves on the machine outside its namespaces: one directory, and control groups of its name.
//
//   <run directory>/<lab>/lab.lock    flock(2)ed while the lab lives, whatever it dies of; holds its process id
//   <run directory>/<lab>/<host>/     the host's state directory
//   cgroup yado-<lab>/<host>/…        in every hierarchy
//
// A directory whose lock is free belongs to a dead lab and is swept by the next start of any lab.

#include <filesystem>
#include <string>

#include "base/error.hpp"
#include "os/fd.hpp"

namespace yado::lab {

/// "yado-<lab>".
std::string cgroup_of(const std::string& lab);
/// Lets every group of the tree run again, also the frozen ones below it: under the v1 freezer nothing dies frozen.
void thaw_tree(const std::string& cgroup);
/// Kills what is in the tree and removes it. Best effort: a leftover is swept by the next start.
void remove_tree(const std::string& cgroup);

/// Move-only; destruction removes the directory and the control groups.
class StateDirectory {
 public:
  /// Errc::already_exists when a lab of that name is running. Sweeps dead labs first.
  static Result<StateDirectory> create(const std::filesystem::path& run_directory, const std::string& lab);
  StateDirectory(StateDirectory&&) noexcept = default;
  StateDirectory& operator=(StateDirectory&&) = delete;
  ~StateDirectory();

  const std::filesystem::path& path() const { return path_; }

 private:
  StateDirectory(std::filesystem::path path, std::string lab, os::Fd lock)
      : path_(std::move(path)), lab_(std::move(lab)), lock_(std::move(lock)) {}

  std::filesystem::path path_;
  std::string lab_;
  os::Fd lock_;
};

}  // namespace yado::lab
