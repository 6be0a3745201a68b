#pragma once
// A program of the demo: started with this process's environment, its output read line by line, ended with the demo.

#include <condition_variable>
#include <deque>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "os/process.hpp"

namespace yado::bench {

class Program {
 public:
  /// `arguments[0]` is an absolute path. It gets SIGTERM when the calling thread dies by whatever.
  static Result<std::unique_ptr<Program>> start(std::vector<std::string> arguments);
  ~Program() { end(); }
  Program(const Program&) = delete;

  /// Waits for a line that begins with `prefix`; when the program ends first, the error has its last lines.
  Result<std::string> wait_for_line(const std::string& prefix);
  /// Another handle of it, which may outlive this object.
  Result<os::Pidfd> handle() const { return os::Pidfd::open(process_.pidfd().pid()); }
  /// SIGTERM, and SIGKILL when it takes too long; returns when it is gone.
  void end();
  std::string last_lines();

 private:
  Program(os::Process process, os::Fd output, std::string name);
  void read_output();

  os::Process process_;
  os::Fd output_;
  std::string name_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::string> lines_;  // guarded by mutex_; the newest
  std::uint64_t forgotten_ = 0;    // guarded by mutex_; lines that were before them
  bool closed_ = false;            // guarded by mutex_
  std::thread reader_;
};

/// Runs a program to its end; its output, or an error with it.
Result<std::string> run_program(std::vector<std::string> arguments);

/// Has gnuplot draw `svg`. The script finds `files` (name -> content) in the directory that its variable `directory`
/// names, and writes to `output`.
Status run_gnuplot(const std::filesystem::path& script, const std::filesystem::path& svg,
                   const std::map<std::string, std::string>& files);

}  // namespace yado::bench
